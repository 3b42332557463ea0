"""The threads of a save: values of leaves → chunks in data files, with their checksums. No JAX."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from .._catalog.written import ChunkTable, Leaf
from .._codecs.crc32c import crc32c
from .._core.boxes import Box, Shape, full_box, shape_of, size_of
from .._core.chunk_grid import cell_box, grid_shape, is_row_major, iter_cells, only_cell
from .._core.memory import ALIGN, Scratch
from .chunk_bytes import crc_contribution, fetch_pieces, gather_box, pad_chunk

PACK_BYTES = 4 * 1024 * 1024
"""Small leaves are written together, up to this size."""

SMALL_BYTES = 128 * 1024

RUN_BYTES = 32 * 1024 * 1024
"""Of a large leaf, bytes that one thread takes at a time."""

STEP_BYTES = 1024 * 1024
"""Bytes that are summed, and then written while they are in cache."""

_PROGRESS_S = 0.1

SYNC_BYTES = 64 * 1024 * 1024
"""Bytes after which the system is asked to begin with bringing them to the disk."""


class DataFile(Protocol):
    """Where chunks are written."""

    def write(self, data: Any, offset: int) -> None:
        """Writes bytes at an offset. From any thread."""
        ...

    def sync(self) -> None:
        """Returns when what was written is on the disk."""
        ...


@dataclass(slots=True)
class _Cell:
    """One chunk to write. `offset` is None where it is known only once it is compressed."""

    number: int
    box: Box
    offset: int | None


@dataclass(slots=True)
class _Job:
    """What one thread does at a time: small leaves that are neighbours, or chunks of one leaf.

    Attributes:
        transient: Bytes that it fetches from devices.
        packed: Its chunks are written by one call, from `start` to `stop`.
        nbytes: Of values.
        work: Of each leaf: the shape of its chunks, and those to write.
        pieces: Of each leaf, its values: held here, so that they are freed with the job.
    """

    transient: int = 0
    packed: bool = False
    start: int = 0
    stop: int = 0
    nbytes: int = 0
    work: list[tuple[Leaf, Shape, list[_Cell]]] = field(default_factory=list)
    pieces: list[Any] = field(default_factory=list)

    def add(self, leaf: Leaf, chunk: Shape, mine: list[_Cell]) -> None:
        self.work.append((leaf, chunk, mine))
        self.pieces.append(leaf.pieces)
        self.nbytes += sum(size_of(cell.box) for cell in mine) * leaf.dtype.itemsize


class Writer:
    """Writes the chunks that are this process's share, by threads of its own, once it is started.

    Args:
        leaves, chunks: All leaves of the tree, and the shape of the chunks of each.
        places: Filled in.
        file: Where to: number 0 in `places`.
        process: Index of this process.
        level: Of zstd; None writes raw, aligned chunks.
        threads: Workers.
        memory: Bytes that may be fetched from devices and not yet written; one leaf may be more.
        forget: Whether leaves give up their values as they are written.
    """

    def __init__(
        self,
        leaves: Sequence[Leaf],
        chunks: Sequence[Shape],
        places: ChunkTable,
        file: DataFile,
        *,
        process: int,
        level: int | None,
        threads: int,
        memory: int,
        forget: bool,
    ):
        self._places, self._file, self._level = places, file, level
        self._memory = memory
        self.end = 0
        """Bytes of the file so far."""
        self._jobs = deque(self._plan(leaves, chunks, process))
        self.total = sum(job.nbytes for job in self._jobs)
        self.done = 0
        """Bytes of values that were written."""
        self.encode_s = self.write_s = 0.0
        """Seconds of all threads together."""
        if forget:
            for leaf in leaves:
                leaf.pieces = ()
        self._condition = threading.Condition()
        self._in_flight = 0
        self._unsynced = 0
        self._running = threads
        self._error: BaseException | None = None
        self._stop = False
        self._threads = [
            threading.Thread(target=self._guarded, args=(self._work,), name=f"templax-save-{i}")
            for i in range(threads)
        ]
        self._threads.append(
            threading.Thread(target=self._guarded, args=(self._sync,), name="templax-sync")
        )

    def start(self) -> None:
        """Begins to write."""
        for thread in self._threads:
            thread.start()

    # --- what is written, and where

    def _plan(
        self, leaves: Sequence[Leaf], chunks: Sequence[Shape], process: int
    ) -> Iterator[_Job]:
        """Jobs in the order of the file. Small leaves come first, one behind the other: few writes
        make them, and few reads find them.
        """
        large: list[tuple[Leaf, Shape, list[_Cell]]] = []
        pack = _Job(packed=self._level is None)
        for leaf, chunk, first in zip(leaves, chunks, self._places.first_chunk, strict=False):
            if leaf.value_type == "string" or 0 in leaf.shape or not leaf.pieces:
                continue
            full = math.prod(chunk) * leaf.dtype.itemsize
            for box in _own(leaf, process):
                mine = list(_cells_in(box, leaf.shape, chunk, first))
                if len(mine) > 1 or full > SMALL_BYTES or leaf.transient:
                    large.append((leaf, chunk, mine))
                    continue
                if pack.nbytes + full + ALIGN * len(pack.work) > PACK_BYTES:
                    yield pack
                    pack = _Job(packed=pack.packed, start=self.end)
                self._locate(mine, full)
                pack.add(leaf, chunk, mine)
                pack.stop = self.end
        if pack.work:
            yield pack
        for leaf, chunk, mine in large:
            full = math.prod(chunk) * leaf.dtype.itemsize
            self._locate(mine, full)
            step = len(mine) if leaf.transient else max(1, RUN_BYTES // full)
            for i in range(0, len(mine), step):
                job = _Job()
                job.add(leaf, chunk, mine[i : i + step])
                job.transient = job.nbytes if leaf.transient else 0
                yield job

    def _locate(self, mine: list[_Cell], full: int) -> None:
        """Gives raw chunks their places, back to back from a multiple of 64."""
        if self._level is None:
            self.end = -(-self.end // ALIGN) * ALIGN
            for cell in mine:
                cell.offset = self.end
                self.end += full

    # --- workers

    def _guarded(self, work: Callable[[], None]) -> None:
        """Runs a thread; its error is raised by `wait`."""
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
            while (job := self._next()) is not None:
                begin, before = time.perf_counter(), scratch.write_s
                if job.packed:
                    self._write_pack(job, scratch)
                else:
                    self._write_chunks(job, scratch)
                took, wrote = time.perf_counter() - begin, scratch.write_s - before
                nbytes, transient = job.nbytes, job.transient
                del job  # and with it the values, if nobody else holds them
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

    def _next(self) -> _Job | None:
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
        """Lets the disk work while the workers do."""
        while True:
            with self._condition:
                self._condition.wait_for(lambda: not self._running or self._unsynced >= SYNC_BYTES)
                if not self._running:
                    return  # what is left is synced before the commit
                self._unsynced = 0
            self._file.sync()

    def _write_pack(self, job: _Job, scratch: Scratch) -> None:
        """Small leaves: one write for all, gaps between them zero."""
        out = scratch.bytes("pack", job.stop - job.start)
        at = 0
        places = self._places
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
        for (leaf, chunk, mine), pieces in zip(job.work, job.pieces, strict=True):
            values_of = fetch_pieces(pieces)
            for cell in mine:
                if self._stop:
                    return
                self._write_chunk(leaf, chunk, cell, values_of, scratch)

    def _write_chunk(
        self,
        leaf: Leaf,
        chunk: Shape,
        cell: _Cell,
        values_of: list[tuple[Box, np.ndarray]],
        scratch: Scratch,
    ) -> None:
        data = gather_box(cell.box, leaf, values_of, scratch)
        if cell.offset is not None:
            crc = 0
            for i in range(0, len(data), STEP_BYTES):
                some = data[i : i + STEP_BYTES]
                crc = crc32c(some, crc)
                self._write(some, cell.offset + i, scratch)
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
        places, n = self._places, cell.number
        places.file[n], places.offset[n], places.nbytes[n] = 0, offset, nbytes
        places.crc[n], places.element_crc[n] = crc, plain

    def _write(self, data: Any, offset: int, scratch: Scratch) -> None:
        begin = time.perf_counter()
        self._file.write(data, offset)
        scratch.write_s += time.perf_counter() - begin

    # --- who waits

    def stop(self) -> None:
        """Returns when no thread runs any more, whatever was written until then. Idempotent."""
        with self._condition:
            self._stop = True
            self._jobs.clear()
            self._condition.notify_all()
        for thread in self._threads:
            if thread.ident is not None:  # it was started
                thread.join()

    def wait(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Returns when all is written; raises the first error, after all threads have ended.

        Args:
            progress: Called with bytes done and in all, at most ten times a second, and at the end.
        """
        try:
            if progress is None:
                with self._condition:
                    self._condition.wait_for(lambda: not self._running)
            while progress is not None and self._running:
                with self._condition:
                    self._condition.wait_for(lambda: not self._running, _PROGRESS_S)
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


def _own(leaf: Leaf, process: int) -> Iterator[Box]:
    """The boxes of a leaf that a process writes: all of it, or its tiles."""
    if leaf.tile is None:
        if process == 0:
            yield full_box(leaf.shape)
        return
    yield from (box for box, owner in leaf.owners if owner == process)


def _cells_in(box: Box, shape: Shape, chunk: Shape, first: int) -> Iterator[_Cell]:
    """The chunks in a box, in C order. The box is a union of whole chunks."""
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
