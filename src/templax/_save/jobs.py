"""The jobs of a save: what a thread writes at a time, planned before any thread starts. No I/O.

Packs of small leaves come first, then runs of chunks of large leaves. The values are in memory, as
`Leaf.pieces`, or a `BlockReader` reads them as they are written.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np

from .._catalog.written import NO_FILE, ChunkTable, Leaf
from .._core.boxes import Box, Shape, full_box, shape_of, size_of
from .._core.chunk_grid import cell_box, grid_shape, iter_cells, only_cell
from .._core.memory import ALIGN

PACK_BYTES = 4 * 1024 * 1024
"""Small leaves are packed into writes of up to this size."""

GAP_BYTES = 4096
"""Two leaves are in one pack only if at most this lies between them."""

SMALL_BYTES = 128 * 1024
"""Leaves of one chunk up to this size are small."""

RUN_BYTES = 32 * 1024 * 1024
"""The bytes of a large leaf that one thread takes at a time."""


class Block(NamedTuple):
    """Elements of a leaf that are read from elsewhere and then written.

    Attributes:
        leaf: The leaf.
        box: The elements: those of some chunks that follow each other in C order.
        row: The row of the first of these chunks in the `ChunkTable`.
    """

    leaf: Leaf
    box: Box
    row: int


class BlockReader(Protocol):
    """Reads the values of leaves that are not in memory. Thread-safe."""

    def cut(self, leaf: Leaf, chunk: Shape) -> Iterator[tuple[list[Box], int]]:
        """Divides a leaf into blocks.

        Args:
            leaf: A leaf that has elements.
            chunk: The shape of the chunks in which it is written.

        Returns:
            Lists of blocks, in C order, that one thread reads one after the other, each list with
            the most memory that this takes, in bytes. Each block consists of whole chunks that
            follow each other in C order.
        """
        ...

    def read(self, blocks: Sequence[Block]) -> Iterator[np.ndarray]:
        """The values of a list of blocks of `cut`, or of some small leaves.

        Returns:
            The values of each block, C-contiguous, valid until the next are asked for.
        """
        ...


class Journal(Protocol):
    """Keeps which chunks are in the data file, so that a later process need not write them."""

    def restore(self, table: ChunkTable) -> None:
        """Fills in the rows of the chunks that an earlier process has written."""
        ...

    def record(self, table: ChunkTable, rows: Sequence[int]) -> None:
        """Notes chunks that are on the disk now."""
        ...


class Cell(msgspec.Struct, gc=False):
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
class Job:
    """The unit of work of a thread: adjacent small leaves, or a run of chunks of one leaf.

    Attributes:
        transient: The memory that the job takes for values that are not in memory.
        packed: Whether the chunks are written by one call.
        start, stop: The byte range of that call.
        nbytes: The bytes of the job's values.
        work: For each leaf or block, the shape of its chunks and the chunks to write.
        pieces: For each leaf, its values. The job holds them, so that they are freed with it.
        blocks: With a `BlockReader`, what to read in place of `pieces`.
    """

    transient: int = 0
    packed: bool = False
    start: int = 0
    stop: int = 0
    nbytes: int = 0
    work: list[tuple[Leaf, Shape, list[Cell]]] = field(default_factory=list)
    pieces: list[Any] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)

    def add(self, leaf: Leaf, chunk: Shape, cells: list[Cell], box: Box | None = None) -> None:
        self.work.append((leaf, chunk, cells))
        self.pieces.append(leaf.pieces)
        if chunk == leaf.shape:  # the common case
            self.nbytes += leaf.nbytes
        else:
            self.nbytes += sum([size_of(cell.box) for cell in cells]) * leaf.dtype.itemsize
        if box is not None:
            self.blocks.append(Block(leaf, box, cells[0].number))

    @property
    def first(self) -> int:
        """Offset of its first write; 0 if that is not known in advance."""
        return self.work[0][2][0].offset or 0

    @property
    def rows(self) -> list[int]:
        return [cell.number for _, _, cells in self.work for cell in cells]


class WriteOptions(NamedTuple):
    """How a process writes its share of a save.

    Attributes:
        process: The index of this process.
        level: The zstd level; None writes raw, aligned chunks.
        threads: Number of worker threads.
        memory: Bytes that may be fetched from devices, or read, and not yet written. A single
            larger leaf or block is taken on its own.
        forget: Whether leaves give up their values as they are written, to free memory.
        reader: Reads the values of all leaves; None if they are in memory.
        journal: Keeps which chunks are written; None if nothing is to be resumed.
        data: The name of the data file, if it must be known before; None to choose one at random.
    """

    process: int
    level: int | None
    threads: int
    memory: int
    forget: bool
    reader: BlockReader | None = None
    journal: Journal | None = None
    data: str | None = None


class JobPlan:
    """Places the chunks in the file and lists the jobs.

    Args:
        table: The table of chunks.
        options: How to write.

    Attributes:
        end: The size of the file so far.
        found: Bytes of values that an earlier process had written.
    """

    def __init__(self, table: ChunkTable, options: WriteOptions):
        self._table, self._level = table, options.level
        self._process, self._reader = options.process, options.reader
        self._resumes = options.journal is not None
        self.end = self.found = 0
        if options.journal is not None:
            options.journal.restore(table)
            if self._level is not None:
                self.end = int((table.offset + table.nbytes).max(initial=0))

    def list_jobs(
        self, leaves: Sequence[Leaf], chunks: Sequence[Shape], offsets: Sequence[int] | None
    ) -> Iterator[Job]:
        """The jobs in the order of the file.

        Small leaves come first and lie next to each other, so that few writes store them and few
        reads fetch them.
        """
        large: list[tuple[Leaf, Shape, list[Cell], int | None]] = []
        pack, whole = Job(packed=self._level is None), True
        places = itertools.repeat(None) if offsets is None else offsets
        rows = self._table.first_chunk
        for leaf, chunk, first, at in zip(leaves, chunks, rows, places, strict=False):
            if leaf.value_type == "string" or 0 in leaf.shape:
                continue
            if not leaf.pieces and self._reader is None:
                continue
            is_whole = chunk == leaf.shape  # the common case
            full = leaf.nbytes if is_whole else math.prod(chunk) * leaf.dtype.itemsize
            for box in _owned_boxes(leaf, self._process):
                cells = _list_cells(box, leaf.shape, chunk, first)
                if len(cells) > 1 or full > SMALL_BYTES or leaf.transient:
                    large.append((leaf, chunk, cells, at))
                    whole = False  # a pack must not span it
                    continue
                span = pack.nbytes + ALIGN * len(pack.work) if at is None else at - pack.start
                near = at is None or (pack.work and whole and 0 <= at - self.end <= GAP_BYTES)
                if not near or span + full > PACK_BYTES:
                    yield from self._leave_out_written(pack)
                    pack = Job(packed=pack.packed, start=self.end if at is None else at)
                whole = True
                self._assign_offsets(cells, full, at)
                pack.add(leaf, chunk, cells, None if self._reader is None else box)
                pack.stop = self.end
        yield from self._leave_out_written(pack)
        for leaf, chunk, cells, at in large:
            full = math.prod(chunk) * leaf.dtype.itemsize
            self._assign_offsets(cells, full, at)
            if self._reader is not None:
                yield from self._plan_blocks(self._reader, leaf, chunk, cells)
                continue
            # A leaf on a device is one job: each job fetches the whole of its leaf.
            step = len(cells) if leaf.transient else max(1, RUN_BYTES // full)
            for i in range(0, len(cells), step):
                job = Job()
                job.add(leaf, chunk, cells[i : i + step])
                job.transient = job.nbytes if leaf.transient else 0
                yield job

    def _plan_blocks(
        self, reader: BlockReader, leaf: Leaf, chunk: Shape, cells: list[Cell]
    ) -> Iterator[Job]:
        """The jobs of a large leaf that is read block by block."""
        first = 0
        # A chunk that is compressed is gathered, padded and compressed as a whole.
        whole = 0 if self._level is None else 3 * math.prod(chunk) * leaf.dtype.itemsize
        for boxes, transient in reader.cut(leaf, chunk):
            job = Job(transient=transient + whole)
            for box in boxes:
                last = first + math.prod(grid_shape(shape_of(box), chunk))
                job.add(leaf, chunk, cells[first:last], box)
                first = last
            yield from self._leave_out_written(job)

    def _leave_out_written(self, job: Job) -> Iterator[Job]:
        """The job, unless it has no work, or an earlier process has done all of it."""
        rows = job.rows
        if self._resumes and (self._table.file[rows] != NO_FILE).all():
            self.found += job.nbytes
        elif rows:
            yield job

    def _assign_offsets(self, cells: list[Cell], full: int, at: int | None) -> None:
        """Places raw chunks back to back, starting at `at` or at a multiple of `ALIGN` bytes."""
        if self._level is None:
            self.end = -(-self.end // ALIGN) * ALIGN if at is None else at
            for cell in cells:
                cell.offset = self.end
                self.end += full


def _owned_boxes(leaf: Leaf, process: int) -> list[Box]:
    """The boxes of a leaf that a process writes: the whole leaf, or this process's tiles."""
    if leaf.tile is None:
        return [full_box(leaf.shape)] if process == 0 else []
    return [box for box, owner in leaf.owners if owner == process]


def _list_cells(box: Box, shape: Shape, chunk: Shape, first: int) -> list[Cell]:
    """The chunks in a box, in C order. The box must be a union of whole chunks."""
    if chunk == shape or only_cell(shape, chunk) is not None:  # the first is the common case
        return [Cell(first, box, None)]
    found: list[Cell] = []
    counts = grid_shape(shape, chunk)
    corner = tuple(start // c for (start, _), c in zip(box, chunk, strict=True))
    for cell, _ in iter_cells(shape_of(box), chunk):
        at = tuple(a + b for a, b in zip(corner, cell, strict=True))
        number = 0
        for i, n in zip(at, counts, strict=True):
            number = number * n + i
        found.append(Cell(first + number, cell_box(at, shape, chunk), None))
    return found
