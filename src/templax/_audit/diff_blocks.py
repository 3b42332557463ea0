"""Reads the same leaves of two checkpoints, block by block, and compares each block.

The blocks of a leaf are read with the plan and the threads of a restore, so that every format,
codec and layout that can be restored can be compared. No more than a few blocks are in memory.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np
from msgspec import structs

from .._catalog.catalog import Catalog
from .._catalog.entry import Chunk, LeafEntry
from .._catalog.strided import divide_chunk
from .._core.boxes import Box, full_box, size_of
from .._core.memory import count_memory
from .._core.progress import PROGRESS_S, Progress
from .._core.text import format_size
from .._match.result import Match, Pair
from .._plan.build import build_plan
from .._plan.parts import is_raw
from .._restore.execute import execute_plan
from .._template.template import Target, Template
from ..errors import CheckpointError, SourceError, Unsupported
from .diff_values import Sums, ValueComparer

SPREAD_BYTES = 96 * 1024 * 1024
"""Size of a block of a leaf that is transposed, whose elements lie far apart in the file."""

BLOCK_BYTES = 8 * 1024 * 1024
"""Size of a block, of the larger of its two sides. It is larger where a chunk that must be decoded
whole is larger, and where a single element of the dimension that is cut is."""

PINNED_BYTES = 64 * 1024 * 1024
"""A block whose rows can't be cut is cut along the next dimension, too, if it is larger."""

SUMMED_BYTES = 512 * 1024
"""Blocks of a checksum that are larger are better not divided by a cut: both sides read them."""

MEMORY_BYTES = 256 * 1024 * 1024
"""What the plan may have in flight."""

PLANNED_BYTES = 4 * 1024 * 1024 * 1024
"""Leaves of this size together are planned at a time, so that plans of large trees stay small."""

PLANNED_LEAVES = 1 << 14
"""At most so many leaves are planned at a time."""

_MAX_RATIO = 1000
"""A leaf larger than the memory of the machine is refused if it is so many times its stored size:
a small file may declare any number of elements."""

Chunks = Sequence[Chunk]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two checkpoints.

    Attributes:
        label: "A" or "B".
        catalog: The checkpoint.
    """

    label: str
    catalog: Catalog

    @contextmanager
    def name_errors(self) -> Generator[None]:
        """Says in errors which of the checkpoints they are about."""
        try:
            yield
        except CheckpointError as error:
            raise self.name_error(error) from error

    def name_error(self, error: CheckpointError, leaf: str | None = None) -> CheckpointError:
        """A copy of an error that says which checkpoint it is about, and the right leaf."""
        return type(error)(
            f"{error.what} in {self.label}, {self.catalog.url}",
            leaf=error.leaf if leaf is None else leaf,
            file=error.file,
            start=error.start,
            stop=error.stop,
            hint=error.hint,
            box=error.box,
        )


EntryPair = tuple[LeafEntry, LeafEntry]


def compare_leaves(
    sides: tuple[Side, Side],
    pairs: Sequence[EntryPair],
    threads: int,
    progress: Progress | None = None,
) -> list[Sums]:
    """Reads leaves of two checkpoints and compares their values.

    Args:
        sides: The checkpoints, A first.
        pairs: A leaf of each, of the same shape, and of dtypes that have a common one.
        threads: Workers that read and decode, and as many that compare.
        progress: Called by this thread with the bytes compared so far and in all.

    Returns:
        One result per pair.

    Raises:
        Corrupted, Unsupported: A leaf of one of the checkpoints can't be read. Says which.
        SourceError: The storage failed, or a checkpoint changed meanwhile.
    """
    results = [Sums() for _ in pairs]
    meter = _Meter(sum(a.nbytes + b.nbytes for a, b in pairs), progress)
    with ThreadPoolExecutor(threads, thread_name_prefix="templax") as pool:
        for group in _group_pairs(pairs):
            blocks = list(_list_blocks(sides, pairs, group))
            _compare_blocks(sides, pairs, blocks, threads, pool, results, meter)
    meter.finish()
    return results


class _Meter:
    """What has been compared so far, told to a callback from time to time."""

    def __init__(self, total: int, progress: Progress | None):
        self._total, self._progress = total, progress
        self._done, self._told = 0, time.monotonic()

    def add(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress is not None and time.monotonic() - self._told >= PROGRESS_S:
            self._told = time.monotonic()
            self._progress(self._done, self._total)

    def finish(self) -> None:
        if self._progress is not None:
            self._progress(self._total, self._total)


def _group_pairs(pairs: Sequence[EntryPair]) -> Iterator[list[int]]:
    """Groups the pairs, as indices, so that one group is planned at a time."""
    group: list[int] = []
    nbytes = 0
    for i, (a, b) in enumerate(pairs):
        if group and (nbytes >= PLANNED_BYTES or len(group) >= PLANNED_LEAVES):
            yield group
            group, nbytes = [], 0
        group.append(i)
        nbytes += a.nbytes + b.nbytes
    if group:
        yield group


@dataclass(frozen=True, slots=True)
class _Block:
    """The same elements of two leaves.

    Attributes:
        number: Index of the pair.
        box: The elements.
        chunks: Those of each leaf that overlap the box.
    """

    number: int
    box: Box
    chunks: tuple[Chunks, Chunks]


def _list_blocks(
    sides: tuple[Side, Side], pairs: Sequence[EntryPair], group: Sequence[int]
) -> Iterator[_Block]:
    located: list[dict[str, Chunks]] = []
    for i, side in enumerate(sides):
        with side.name_errors():
            entries = [pairs[number][i] for number in group]
            found = side.catalog.locate(entries)
        located.append({e.name: divide_chunks(found[e.name], e.dtype) for e in entries})
    for number in group:
        pair = pairs[number]
        if not size_of(full_box(pair[0].shape)):
            continue
        chunks = located[0][pair[0].name], located[1][pair[1].name]
        for side, entry, mine in zip(sides, pair, chunks, strict=True):
            with side.name_errors():
                check_size(entry, mine)
        itemsize = max(entry.dtype.itemsize for entry in pair)
        for box, here in cut_box(full_box(pair[0].shape), itemsize, chunks):
            yield _Block(number, box, here)


def check_size(entry: LeafEntry, chunks: Chunks) -> None:
    """Refuses a leaf that no machine could hold, of which a small file says that it exists.

    Raises:
        Unsupported: It is larger than the memory, and very much larger than what is stored.
    """
    if entry.nbytes <= count_memory():
        return
    stored = sum(chunk.extent.nbytes for chunk in chunks)
    if entry.nbytes > _MAX_RATIO * stored:
        what = f"Expected a leaf that fits into memory, got {format_size(entry.nbytes)}"
        raise Unsupported(what, leaf=entry.name)


def cut_box(
    box: Box, itemsize: int, chunks: tuple[Chunks, Chunks], axis: int = 0
) -> Iterator[tuple[Box, tuple[Chunks, Chunks]]]:
    """Cuts a box into blocks that are compared one after another.

    Cuts avoid the chunks that are decoded whole. Where they can't avoid those of both sides, they
    avoid the longer ones, so that none is decoded more often than twice or so.

    Args:
        box: Range of a leaf, in elements, not empty.
        itemsize: Bytes per element.
        chunks: Of each side, those that overlap the box.
        axis: The first dimension that may be cut.

    Returns:
        The blocks in order, which tile the box, each with the chunks that overlap it.
    """
    axis = next((i for i in range(axis, len(box)) if box[i][1] - box[i][0] > 1), len(box))
    nbytes = size_of(box) * itemsize
    if nbytes <= BLOCK_BYTES or axis == len(box):
        yield box, chunks
        return
    start, stop = box[axis]
    row = nbytes // (stop - start)
    step = max(1, BLOCK_BYTES // row)
    pinned = max((find_pinned(mine, axis) for mine in chunks), key=_longest)
    ahead = [Overlapping(mine, axis) for mine in chunks]
    at, i = start, 0
    while at < stop:
        end = min(at + step, stop)
        while i < len(pinned) and pinned[i][1] <= at:
            i += 1
        j = i
        while j < len(pinned) and pinned[j][1] < end:
            j += 1
        if j < len(pinned) and pinned[j][0] < end < pinned[j][1]:
            low, high = pinned[j]
            end = low if low > at else min(high, stop)
        here = (*box[:axis], (at, end), *box[axis + 1 :])
        mine = ahead[0].take(at, end), ahead[1].take(at, end)
        if end - at == 1 or (end - at) * row > PINNED_BYTES:
            yield from cut_box(here, itemsize, mine, axis + 1)
        else:
            yield here, mine
        at = end


def divide_chunks(chunks: Chunks, dtype: np.dtype) -> Chunks:
    """Makes large plain chunks in F order readable in blocks; returns the others unchanged."""
    return [divide_chunk(chunk, dtype, SPREAD_BYTES) for chunk in chunks]


def find_pinned(chunks: Chunks, axis: int) -> list[tuple[int, int]]:
    """The ranges of a dimension that no cut should divide, in order and disjoint."""
    found: list[tuple[int, int]] = []
    ranges = (each for chunk in chunks for each in _list_pinned(chunk, axis))
    for start, stop in sorted(ranges):
        if found and start < found[-1][1]:
            found[-1] = found[-1][0], max(stop, found[-1][1])
        else:
            found.append((start, stop))
    return found


def _list_pinned(chunk: Chunk, axis: int) -> Iterator[tuple[int, int]]:
    """The ranges of a dimension of which a chunk is decoded, or compared with a checksum, whole."""
    start, stop = chunk.box[axis]
    if chunk.origin is not None and is_raw(chunk):
        # A block of a transposed leaf is spread over all of the chunk: it is read in large pieces.
        row = size_of(chunk.box[axis + 1 :]) * chunk.origin.dtype.itemsize
        step = max(1, SPREAD_BYTES // max(1, row))
        for first in range(start, stop, step):
            yield first, min(first + step, stop)
    elif not is_raw(chunk):
        yield start, stop
    elif chunk.sums and chunk.block > SUMMED_BYTES:
        row = chunk.extent.nbytes // size_of(chunk.box[: axis + 1])
        rows, rest = divmod(chunk.block, row)
        repeats = size_of(chunk.box[:axis]) == 1 or row * (stop - start) % chunk.block == 0
        if rows and not rest and repeats:
            for first in range(start, stop, rows):
                yield first, min(first + rows, stop)
        elif row % chunk.block and chunk.block > BLOCK_BYTES:
            yield start, stop


def _longest(ranges: Iterable[tuple[int, int]]) -> int:
    return max((stop - start for start, stop in ranges), default=0)


class Overlapping:
    """The chunks that overlap ranges of a dimension, which are asked for in order."""

    def __init__(self, chunks: Chunks, axis: int):
        self._axis = axis
        self._ahead = sorted(chunks, key=lambda chunk: chunk.box[axis], reverse=True)
        self._here: list[Chunk] = []

    def take(self, start: int, stop: int) -> list[Chunk]:
        axis = self._axis
        while self._ahead and self._ahead[-1].box[axis][0] < stop:
            self._here.append(self._ahead.pop())
        self._here = [chunk for chunk in self._here if chunk.box[axis][1] > start]
        return list(self._here)


def _compare_blocks(
    sides: tuple[Side, Side],
    pairs: Sequence[EntryPair],
    blocks: Sequence[_Block],
    threads: int,
    pool: ThreadPoolExecutor,
    results: list[Sums],
    meter: _Meter,
) -> None:
    """Reads blocks, and adds what is found to the results of their pairs."""
    wanted: list[Pair] = []
    chunks: tuple[dict[str, tuple[Chunk, ...]], ...] = ({}, {})
    for i, block in enumerate(blocks):
        for side in (0, 1):
            # The plan is of blocks: to it, each one is a leaf with a name of its own.
            name = str(2 * i + side)
            chunks[side][name] = tuple(block.chunks[side])
            wanted.append(_ask_for(name, pairs[block.number][side], block.box, side))
    plan = build_plan(
        Match("", Template(()), pairs=tuple(wanted)),
        chunks,
        threads=threads,
        memory=MEMORY_BYTES,
        blocks=True,
        verify="required",  # so that checksums of which a block needs a part are compared, too
    )
    comparers: dict[tuple[np.dtype, np.dtype], ValueComparer] = {}
    held: np.ndarray | None = None  # side A of a block, whose side B comes next
    with (
        _name_blocks(sides, pairs, blocks),
        closing(execute_plan(plan, [side.catalog.source for side in sides])) as finished,
    ):
        for done in finished:
            jobs: list[tuple[int, Future[Sums]]] = []
            for buffer, array in zip(done.batch.buffers, done.arrays, strict=True):
                if buffer.pair.source == 0:
                    held = array
                    continue
                assert held is not None
                number = blocks[int(buffer.pair.entry.name) // 2].number
                a, b = pairs[number]
                comparer = comparers.get((a.dtype, b.dtype))
                if comparer is None:
                    comparer = comparers[a.dtype, b.dtype] = ValueComparer(a.dtype, b.dtype)
                jobs.append((number, pool.submit(comparer.compare, held, array)))
                held = None
            for number, job in jobs:
                results[number].add(job.result())
            meter.add(sum(array.nbytes for array in done.arrays))
            del done, jobs  # frees their memory before the next batch needs more


def _ask_for(name: str, entry: LeafEntry, box: Box, source: int) -> Pair:
    """What a plan takes for a block: a target of the same dtype, in host memory that is dropped."""
    shape = entry.shape
    target = Target(name, entry.path, shape, entry.dtype, boxes=(box,), transient=True)
    return Pair(target, structs.replace(entry, name=name), source)


@contextmanager
def _name_blocks(
    sides: tuple[Side, Side], pairs: Sequence[EntryPair], blocks: Sequence[_Block]
) -> Generator[None]:
    """Says in errors which leaf of which checkpoint they are about, instead of which block."""

    def find(name: str) -> tuple[Side, str]:
        side = int(name) % 2
        return sides[side], pairs[blocks[int(name) // 2].number][side].name

    try:
        yield
    except CheckpointError as error:
        if error.leaf is None:
            raise
        side, leaf = find(error.leaf)
        raise side.name_error(error, leaf) from error
    except SourceError as error:
        notes: list[str] = getattr(error, "__notes__", [])
        for i, note in enumerate(notes):
            name = note.removeprefix("while leaf `").removesuffix("` was read")
            if name.isdecimal() and name != note:
                side, leaf = find(name)
                notes[i] = f"while leaf `{leaf}` of {side.label} was read"
        raise
