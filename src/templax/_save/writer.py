"""The threads of a save, which write leaves as chunks of a data file. No JAX.

`Writer` has all jobs planned when it is made. Worker threads take them in order. Each gathers,
checksums and writes its chunks, and records them in the `ChunkTable`. Another thread keeps the disk
busy with `sync`.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from .._catalog.written import ChunkTable, Leaf
from .._codecs.crc32c import crc32c, crc32c_each
from .._core.boxes import Box, Shape
from .._core.chunk_grid import is_row_major
from .._core.memory import Scratch
from .._core.progress import PROGRESS_S, Progress
from ..storage.save_attempt import SaveEnded
from ..storage.sink import StreamedFile
from .chunk_bytes import crc_contribution, fetch_pieces, gather_box, pad_chunk, view_piece
from .jobs import Cell, Job, JobPlan, WriteOptions

STEP_BYTES = 1024 * 1024
"""The bytes that are checksummed at a time, and then written while they are still in the cache."""

SYNC_BYTES = 64 * 1024 * 1024
"""The data file is synced each time about this many more bytes have been written."""


class DataFile(Protocol):
    """The file that chunks are written to."""

    def write(self, data: Any, offset: int) -> None:
        """Writes bytes at an offset. May be called from any thread."""
        ...

    def sync(self) -> None:
        """Returns once everything written so far is on the disk."""
        ...


class Writer:
    """Writes this process's share of the chunks, with threads of its own, once it is started.

    Args:
        leaves, chunks: All leaves of the tree, and the shape of each leaf's chunks.
        table: The table of chunks to fill in.
        file: The data file, which has the number 0 in `table`.
        options: How to write.
        offsets: Where each leaf begins in the file. None to place leaves in the order in which they
            are written, each at a multiple of `ALIGN`.

    Attributes:
        end: The size of the file so far.
        total: The bytes of all values to write.
        done: The bytes of the values written so far.
        found: How many of `total` an earlier process had written.
        encode_s: Seconds that all threads together spent on fetching, checksums and compression.
        write_s: Seconds that all threads together spent on writing.
    """

    def __init__(
        self,
        leaves: Sequence[Leaf],
        chunks: Sequence[Shape],
        table: ChunkTable,
        file: DataFile,
        options: WriteOptions,
        *,
        offsets: Sequence[int] | None = None,
    ):
        self._table, self._file, self._level = table, file, options.level
        self._memory, self._reader, self._journal = options.memory, options.reader, options.journal
        plan = JobPlan(table, options)
        self._jobs = deque(plan.list_jobs(leaves, chunks, offsets))
        self._active: dict[int, int] = {}  # id of a job in progress → offset of its first write
        self._in_order = offsets is None and options.level is None
        self._stream = file if isinstance(file, StreamedFile) else None
        self._unsettled: list[tuple[int, int]] = []  # jobs done: first offset, bytes they may hold
        self._appending = threading.Lock()
        self.end, self.found = plan.end, plan.found
        self.total = self.found + sum(job.nbytes for job in self._jobs)
        self.done = self.found
        if self._stream is not None:
            self._memory //= 2  # the other half is for what is being sent
            self._stream.expect(max(self.end, self.total), self._memory)
        threads = options.threads
        if self._reader is not None:
            most = max((job.transient for job in self._jobs), default=0)
            threads = max(1, min(threads, self._memory // most if most else threads))
        self.encode_s = self.write_s = 0.0
        if options.forget:
            for leaf in leaves:
                leaf.pieces = ()
        self._condition = threading.Condition()
        self._in_flight = 0
        self._unsynced, self._unrecorded = 0, list[int]()
        self._running = threads
        self._error: BaseException | None = None
        self._stop = False
        self._threads = [
            threading.Thread(target=self._run_thread, args=(self._work,), name=f"templax-save-{i}")
            for i in range(threads)
        ]
        self._threads.append(
            threading.Thread(target=self._run_thread, args=(self._sync,), name="templax-sync")
        )

    def start(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()

    def _run_thread(self, work: Callable[[], None]) -> None:
        """The body of a thread. `wait` raises the first error of any of them."""
        try:
            work()
        except BaseException as error:
            with self._condition:
                if self._error is None or isinstance(self._error, SaveEnded):
                    self._error = error  # the reason may come after what it did to other threads
                self._stop = True
                self._condition.notify_all()
            if not isinstance(error, Exception):
                raise

    def _work(self) -> None:
        scratch = Scratch()
        try:
            while (job := self._take_job()) is not None:
                begin, before = time.perf_counter(), scratch.write_s
                if job.packed:
                    self._write_pack(job, scratch)
                else:
                    self._write_chunks(job, scratch)
                took, wrote = time.perf_counter() - begin, scratch.write_s - before
                nbytes, held, number = job.nbytes, self._measure_memory(job), id(job)
                first = job.first if self._waits_in_stream else 0
                rows = [] if self._journal is None or self._stop else job.rows
                del job  # frees the values, unless somebody else holds them
                with self._condition:
                    self._unrecorded += rows
                    self.done += nbytes
                    self._unsynced += nbytes
                    self._unsettled.append((first, held))
                    del self._active[number]
                    settled = self._find_settled()
                    if not self._waits_in_stream:
                        self._release(first + 1)
                    self.encode_s += took - wrote
                    self.write_s += wrote
                    self._condition.notify_all()
                if settled and self._stream is not None and not self._stop:
                    self._stream.settle(settled)
                    with self._condition:
                        self._release(settled)
                        self._condition.notify_all()
        finally:
            with self._condition:
                self._running -= 1
                self._condition.notify_all()

    def _take_job(self) -> Job | None:
        with self._condition:
            while True:
                if self._stop or not self._jobs:
                    return None
                job = self._jobs[0]
                held = self._measure_memory(job)
                if not self._in_flight or self._in_flight + held <= self._memory:
                    self._in_flight += held
                    self._active[id(job)] = job.first
                    return self._jobs.popleft()
                self._condition.wait()

    @property
    def _waits_in_stream(self) -> bool:
        """Whether what a job has written stays in memory until all jobs before it are done."""
        return self._stream is not None and self._in_order

    def _measure_memory(self, job: Job) -> int:
        """The most bytes of host memory that a job holds beyond the tree."""
        if self._stream is None:
            return job.transient
        if self._in_order:  # a pack is joined before it is written
            return job.transient + job.nbytes * (2 if job.packed else 1)
        if self._reader is not None:
            return job.transient
        # A chunk that is compressed is gathered, padded and compressed as a whole.
        largest = max([math.prod(chunk) * leaf.dtype.itemsize for leaf, chunk, _ in job.work])
        return job.transient + 3 * largest

    def _release(self, settled: int) -> None:
        """Lets other jobs have the memory of those that are done, up to an offset of the file."""
        self._in_flight -= sum([held for first, held in self._unsettled if first < settled])
        self._unsettled = [job for job in self._unsettled if job[0] >= settled]

    def _find_settled(self) -> int:
        """The offset before which no job will write; 0 if the jobs are not in order."""
        if not self._in_order:
            return 0
        begins = [*self._active.values(), *(job.first for job in itertools.islice(self._jobs, 1))]
        return min(begins, default=self.end)

    def _sync(self) -> None:
        """Brings written bytes to the disk while the workers write more."""
        while True:
            with self._condition:
                self._condition.wait_for(lambda: not self._running or self._unsynced >= SYNC_BYTES)
                if not self._running and (self._journal is None or self._stop):
                    return  # the remainder is synced before the commit
                last = not self._running
                self._unsynced, rows, self._unrecorded = 0, self._unrecorded, []
            self._file.sync()
            if self._journal is not None:
                self._journal.record(self._table, rows)
            if last:
                return

    def _write_pack(self, job: Job, scratch: Scratch) -> None:
        """Writes a pack of small leaves in one call, with zeros between them."""
        arrays = self._gather_pack(job, scratch)
        offsets: list[Any] = [cell.offset for _, _, (cell,) in job.work]
        sizes = [array.nbytes for array in arrays]
        parts, at = list[Any](), job.start
        for offset, nbytes, array in zip(offsets, sizes, arrays, strict=True):
            if offset > at:
                parts.append(bytes(offset - at))
            parts.append(array)
            at = offset + nbytes
        parts.append(bytes(job.stop - at))
        crcs = crc32c_each(arrays)
        element_crcs = crcs.copy()
        for i, (leaf, chunk, (cell,)) in enumerate(job.work):
            if chunk != leaf.shape and not is_row_major(leaf.shape, chunk):
                data = memoryview(arrays[i].reshape(-1).view(np.uint8))  # pyright: ignore
                element_crcs[i] = crc_contribution(data, cell.box, leaf, crcs[i])
        places, rows = self._table, np.array(job.rows)
        places.file[rows] = 0
        places.offset[rows], places.nbytes[rows] = offsets, sizes
        places.crc[rows], places.element_crc[rows] = crcs, element_crcs
        self._write(memoryview(bytearray().join(parts)), job.start, scratch)

    def _gather_pack(self, job: Job, scratch: Scratch) -> list[np.ndarray]:
        """The bytes of each leaf of a pack in C order: its own memory, or a copy."""
        arrays = list[np.ndarray]()
        if self._reader is not None:
            for (leaf, _, (cell,)), values in zip(job.work, self._fetch(job), strict=True):
                arrays.append(np.array(gather_box(cell.box, leaf, values, scratch)))
            return arrays
        for (leaf, _, (cell,)), pieces in zip(job.work, job.pieces, strict=True):
            array = view_piece(cell.box, leaf, pieces)
            if array is None:
                array = np.array(gather_box(cell.box, leaf, fetch_pieces(pieces), scratch))
            arrays.append(array)
        return arrays

    def _fetch(self, job: Job) -> Iterator[list[tuple[Box, np.ndarray]]]:
        """The values of each leaf or block of a job, one after the other."""
        if self._reader is None:
            yield from map(fetch_pieces, job.pieces)
            return
        for block, values in zip(job.blocks, self._reader.read(job.blocks), strict=True):
            yield [(block.box, values)]

    def _write_chunks(self, job: Job, scratch: Scratch) -> None:
        for (leaf, chunk, cells), values in zip(job.work, self._fetch(job), strict=True):
            for cell in cells:
                if self._stop:
                    return
                self._write_chunk(leaf, chunk, cell, values, scratch)

    def _write_chunk(
        self,
        leaf: Leaf,
        chunk: Shape,
        cell: Cell,
        values: list[tuple[Box, np.ndarray]],
        scratch: Scratch,
    ) -> None:
        data = gather_box(cell.box, leaf, values, scratch)
        if cell.offset is not None:
            crc = 0
            for i in range(0, len(data), STEP_BYTES):
                block = data[i : i + STEP_BYTES]
                crc = crc32c(block, crc)
                self._write(block, cell.offset + i, scratch)
            offset, nbytes, plain = cell.offset, len(data), crc
        else:
            plain = crc32c(data)
            stored = scratch.compress(pad_chunk(data, cell.box, chunk, leaf, scratch), self._level)
            nbytes, crc = len(stored), crc32c(stored)
            if self._stream is None:
                offset = self._take_place(nbytes)
                self._write(stored, offset, scratch)
            else:
                with self._appending:  # in order, so that nothing waits in memory
                    offset = self._take_place(nbytes)
                    self._write(stored, offset, scratch)
        if not is_row_major(leaf.shape, chunk):
            plain = crc_contribution(data, cell.box, leaf, plain)
        places, n = self._table, cell.number
        places.file[n], places.offset[n], places.nbytes[n] = 0, offset, nbytes
        places.crc[n], places.element_crc[n] = crc, plain

    def _take_place(self, nbytes: int) -> int:
        """The offset of the next bytes whose size was not known in advance."""
        with self._condition:
            offset, self.end = self.end, self.end + nbytes
            return offset

    def _write(self, data: Any, offset: int, scratch: Scratch) -> None:
        begin = time.perf_counter()
        self._file.write(data, offset)
        scratch.write_s += time.perf_counter() - begin

    def stop(self) -> None:
        """Stops all threads, whatever they have written by then, and waits for them. Idempotent."""
        with self._condition:
            self._stop = True
            self._jobs.clear()
            self._condition.notify_all()
        for thread in self._threads:
            if thread.ident is not None:  # it was started
                thread.join()

    def wait(self, progress: Progress | None = None) -> None:
        """Returns once everything is written.

        Args:
            progress: Called with the bytes done and the bytes in all, at most ten times a second,
                and at the end.

        Raises:
            BaseException: The first error of any thread, after all threads have ended.
        """
        try:
            if progress is None:
                with self._condition:
                    self._condition.wait_for(lambda: not self._running)
            while progress is not None and self._running:
                with self._condition:
                    self._condition.wait_for(lambda: not self._running, PROGRESS_S)
                if self._running:
                    progress(self.done, self.total)
        except BaseException:
            self.stop()
            raise
        for thread in self._threads:
            thread.join()
        if self._error is not None:
            raise self._error
        if progress is not None:
            progress(self.done, self.total)
