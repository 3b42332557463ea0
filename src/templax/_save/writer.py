"""The threads of a save, which write leaves as chunks of a data file. No JAX.

`Writer` plans all jobs when it is made: packs of small leaves first, then runs of chunks of large
leaves. Worker threads take the jobs in order. Each gathers, checksums and writes its chunks, and
records them in the `ChunkTable`. Another thread keeps the disk busy with `sync`.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from .._catalog.written import ChunkTable, Leaf
from .._codecs.crc32c import crc32c
from .._core.boxes import Box, Shape, full_box, shape_of, size_of
from .._core.chunk_grid import cell_box, grid_shape, is_row_major, iter_cells, only_cell
from .._core.memory import ALIGN, Scratch
from .._core.progress import PROGRESS_S, Progress
from .chunk_bytes import crc_contribution, fetch_pieces, gather_box, pad_chunk

PACK_BYTES = 4 * 1024 * 1024
"""Small leaves are packed into writes of up to this size."""

GAP_BYTES = 4096
"""Two leaves are in one pack only if at most this lies between them."""

SMALL_BYTES = 128 * 1024
"""Leaves of one chunk up to this size are small."""

RUN_BYTES = 32 * 1024 * 1024
"""The bytes of a large leaf that one thread takes at a time."""

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


@dataclass(slots=True)
class _Cell:
    """One chunk to write.

    Attributes:
        number: Its row in the `ChunkTable`.
        box: Its elements, as a box of the leaf.
        offset: Its place in the file; None if it is to be compressed, as its size is not known yet.
    """

    number: int
    box: Box
    offset: int | None


@dataclass(slots=True)
class _Job:
    """The unit of work of a thread: adjacent small leaves, or a run of chunks of one leaf.

    Attributes:
        transient: The bytes that the job fetches from devices.
        packed: Whether the chunks are written by one call.
        start, stop: The byte range of that call.
        nbytes: The bytes of the job's values.
        work: For each leaf, the shape of its chunks and the chunks to write.
        pieces: For each leaf, its values. The job holds them, so that they are freed with it.
    """

    transient: int = 0
    packed: bool = False
    start: int = 0
    stop: int = 0
    nbytes: int = 0
    work: list[tuple[Leaf, Shape, list[_Cell]]] = field(default_factory=list)
    pieces: list[Any] = field(default_factory=list)

    def add(self, leaf: Leaf, chunk: Shape, cells: list[_Cell]) -> None:
        self.work.append((leaf, chunk, cells))
        self.pieces.append(leaf.pieces)
        self.nbytes += sum(size_of(cell.box) for cell in cells) * leaf.dtype.itemsize


class WriteOptions(NamedTuple):
    """How a process writes its share of a save.

    Attributes:
        process: The index of this process.
        level: The zstd level; None writes raw, aligned chunks.
        threads: Number of worker threads.
        memory: Bytes that may be fetched from devices and not yet written. A single larger leaf is
            fetched on its own.
        forget: Whether leaves give up their values as they are written, to free memory.
    """

    process: int
    level: int | None
    threads: int
    memory: int
    forget: bool


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
        self._memory = options.memory
        self.end = 0
        self._jobs = deque(self._plan(leaves, chunks, options.process, offsets))
        self.total = sum(job.nbytes for job in self._jobs)
        self.done = 0
        self.encode_s = self.write_s = 0.0
        if options.forget:
            for leaf in leaves:
                leaf.pieces = ()
        self._condition = threading.Condition()
        self._in_flight = 0
        self._unsynced = 0
        self._running = options.threads
        self._error: BaseException | None = None
        self._stop = False
        self._threads = [
            threading.Thread(target=self._run_thread, args=(self._work,), name=f"templax-save-{i}")
            for i in range(options.threads)
        ]
        self._threads.append(
            threading.Thread(target=self._run_thread, args=(self._sync,), name="templax-sync")
        )

    def start(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()

    def _plan(
        self,
        leaves: Sequence[Leaf],
        chunks: Sequence[Shape],
        process: int,
        offsets: Sequence[int] | None,
    ) -> Iterator[_Job]:
        """The jobs in the order of the file.

        Small leaves come first and lie next to each other, so that few writes store them and few
        reads fetch them.
        """
        large: list[tuple[Leaf, Shape, list[_Cell], int | None]] = []
        pack, whole = _Job(packed=self._level is None), True
        places = itertools.repeat(None) if offsets is None else offsets
        rows = self._table.first_chunk
        for leaf, chunk, first, at in zip(leaves, chunks, rows, places, strict=False):
            if leaf.value_type == "string" or 0 in leaf.shape or not leaf.pieces:
                continue
            full = math.prod(chunk) * leaf.dtype.itemsize
            for box in _owned_boxes(leaf, process):
                cells = list(_cells_in(box, leaf.shape, chunk, first))
                if len(cells) > 1 or full > SMALL_BYTES or leaf.transient:
                    large.append((leaf, chunk, cells, at))
                    whole = False  # a pack must not span it
                    continue
                span = pack.nbytes + ALIGN * len(pack.work) if at is None else at - pack.start
                near = at is None or (pack.work and whole and 0 <= at - self.end <= GAP_BYTES)
                if not near or span + full > PACK_BYTES:
                    if pack.work:
                        yield pack
                    pack = _Job(packed=pack.packed, start=self.end if at is None else at)
                whole = True
                self._assign_offsets(cells, full, at)
                pack.add(leaf, chunk, cells)
                pack.stop = self.end
        if pack.work:
            yield pack
        for leaf, chunk, cells, at in large:
            full = math.prod(chunk) * leaf.dtype.itemsize
            self._assign_offsets(cells, full, at)
            # A leaf on a device is one job: each job fetches the whole of its leaf.
            step = len(cells) if leaf.transient else max(1, RUN_BYTES // full)
            for i in range(0, len(cells), step):
                job = _Job()
                job.add(leaf, chunk, cells[i : i + step])
                job.transient = job.nbytes if leaf.transient else 0
                yield job

    def _assign_offsets(self, cells: list[_Cell], full: int, at: int | None) -> None:
        """Places raw chunks back to back, starting at `at` or at a multiple of `ALIGN` bytes."""
        if self._level is None:
            self.end = -(-self.end // ALIGN) * ALIGN if at is None else at
            for cell in cells:
                cell.offset = self.end
                self.end += full

    def _run_thread(self, work: Callable[[], None]) -> None:
        """The body of a thread. `wait` raises the first error of any of them."""
        try:
            work()
        except BaseException as error:
            with self._condition:
                self._error = self._error or error
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
                nbytes, transient = job.nbytes, job.transient
                del job  # frees the values, unless somebody else holds them
                with self._condition:
                    self.done += nbytes
                    self._unsynced += nbytes
                    self._in_flight -= transient
                    self.encode_s += took - wrote
                    self.write_s += wrote
                    self._condition.notify_all()
        finally:
            with self._condition:
                self._running -= 1
                self._condition.notify_all()

    def _take_job(self) -> _Job | None:
        with self._condition:
            while True:
                if self._stop or not self._jobs:
                    return None
                job = self._jobs[0]
                if not self._in_flight or self._in_flight + job.transient <= self._memory:
                    self._in_flight += job.transient
                    return self._jobs.popleft()
                self._condition.wait()

    def _sync(self) -> None:
        """Brings written bytes to the disk while the workers write more."""
        while True:
            with self._condition:
                self._condition.wait_for(lambda: not self._running or self._unsynced >= SYNC_BYTES)
                if not self._running:
                    return  # the remainder is synced before the commit
                self._unsynced = 0
            self._file.sync()

    def _write_pack(self, job: _Job, scratch: Scratch) -> None:
        """Writes a pack of small leaves in one call, with zeros between them."""
        out = scratch.bytes("pack", job.stop - job.start)
        at = 0
        places = self._table
        for (leaf, chunk, (cell,)), pieces in zip(job.work, job.pieces, strict=True):
            assert cell.offset is not None
            data = gather_box(cell.box, leaf, fetch_pieces(pieces), scratch)
            start = cell.offset - job.start
            if start > at:
                out[at:start] = bytes(start - at)
            at = start + len(data)
            out[start:at] = data
            crc = crc32c(data)
            places.file[cell.number] = 0
            places.offset[cell.number] = cell.offset
            places.nbytes[cell.number] = len(data)
            places.crc[cell.number] = crc
            places.element_crc[cell.number] = (
                crc
                if is_row_major(leaf.shape, chunk)
                else crc_contribution(data, cell.box, leaf, crc)
            )
        out[at:] = bytes(len(out) - at)
        self._write(out, job.start, scratch)

    def _write_chunks(self, job: _Job, scratch: Scratch) -> None:
        for (leaf, chunk, cells), pieces in zip(job.work, job.pieces, strict=True):
            values = fetch_pieces(pieces)
            for cell in cells:
                if self._stop:
                    return
                self._write_chunk(leaf, chunk, cell, values, scratch)

    def _write_chunk(
        self,
        leaf: Leaf,
        chunk: Shape,
        cell: _Cell,
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
            with self._condition:
                offset, self.end = self.end, self.end + nbytes
            self._write(stored, offset, scratch)
        if not is_row_major(leaf.shape, chunk):
            plain = crc_contribution(data, cell.box, leaf, plain)
        places, n = self._table, cell.number
        places.file[n], places.offset[n], places.nbytes[n] = 0, offset, nbytes
        places.crc[n], places.element_crc[n] = crc, plain

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


def _owned_boxes(leaf: Leaf, process: int) -> Iterator[Box]:
    """The boxes of a leaf that a process writes: the whole leaf, or this process's tiles."""
    if leaf.tile is None:
        if process == 0:
            yield full_box(leaf.shape)
        return
    yield from (box for box, owner in leaf.owners if owner == process)


def _cells_in(box: Box, shape: Shape, chunk: Shape, first: int) -> Iterator[_Cell]:
    """The chunks in a box, in C order. The box must be a union of whole chunks."""
    if only_cell(shape, chunk) is not None:
        yield _Cell(first, box, None)
        return
    counts = grid_shape(shape, chunk)
    corner = tuple(start // c for (start, _), c in zip(box, chunk, strict=True))
    for cell, _ in iter_cells(shape_of(box), chunk):
        at = tuple(a + b for a, b in zip(corner, cell, strict=True))
        number = 0
        for i, n in zip(at, counts, strict=True):
            number = number * n + i
        yield _Cell(first + number, cell_box(at, shape, chunk), None)
