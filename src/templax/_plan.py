"""Match + chunks → Plan: which bytes are read, and where each goes. Pure: no I/O, no JAX.

Chunk-first: each chunk that meets a wanted box is read and decoded once, however many boxes want a
piece of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ._boxes import Box, Shape, contiguous, intersect, shape_of, size_of, span_of, whole, within
from ._catalog import Chunk
from ._dtypes import host_cast_is_exact
from ._match import Match, Pair

GAP_BYTES = 64 * 1024
"""Bytes between two parts of a file that are read and dropped rather than asked for separately."""

LARGE_BYTES = 1024 * 1024
"""Parts of this size are requests of their own, so that they are read in place."""

REQUEST_BYTES = 4 * 1024 * 1024
"""Most bytes that small parts are joined to, so that every thread gets work."""

BATCH_BYTES = 128 * 1024 * 1024
"""Bytes of buffers after which a batch closes: it is placed while the next one is read."""

INLINE_PARTS = 512
"""Values held by an index that one job decodes."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A piece of a chunk that a buffer wants.

    Attributes:
        buffer: Index in the batch.
        src: Box within the chunk.
        dst: Box within the buffer; of the same shape.
    """

    buffer: int
    src: Box
    dst: Box


@dataclass(frozen=True, slots=True)
class Part:
    """What is read of one chunk, and who wants it.

    Attributes:
        name: The leaf.
        chunk: The chunk.
        dtype: As stored.
        start, stop: Bytes of the object that are read: all of the chunk unless it is raw.
        direct: The decoded bytes of the single copy lie back to back in its buffer, in its dtype:
            they are read or decoded in place.
        copies: At least one.
    """

    name: str
    chunk: Chunk
    dtype: np.dtype
    start: int
    stop: int
    direct: bool
    copies: tuple[Copy, ...]


@dataclass(frozen=True, slots=True)
class ReadOp:
    """One request, or a group of values that an index held (`start == stop`).

    Attributes:
        source: 0 for the checkpoint, 1 for the one given as `missing=`.
        key: The object.
        start, stop: Bytes, half open, that cover all parts.
        parts: In order of their start.
    """

    source: int
    key: str
    start: int
    stop: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Buffer:
    """Host memory for one box of one leaf; `dtype` is the stored one where `_place` casts."""

    pair: Pair
    box: Box
    dtype: np.dtype

    @property
    def shape(self) -> Shape:
        return shape_of(self.box)

    @property
    def nbytes(self) -> int:
        return size_of(self.box) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Batch:
    """Leaves that are read, and then placed, together. A leaf is whole in one batch."""

    reads: tuple[ReadOp, ...]
    buffers: tuple[Buffer, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """All reads of a restore.

    Attributes:
        match: What it fulfils.
        batches: In the order in which they are done.
    """

    match: Match
    batches: tuple[Batch, ...]

    @property
    def read_bytes(self) -> int:
        """Bytes asked of the sources, gaps included."""
        return sum(op.stop - op.start for batch in self.batches for op in batch.reads)

    @property
    def requests(self) -> int:
        return sum(op.stop > op.start for batch in self.batches for op in batch.reads)


def plan(match: Match, chunks: Sequence[Mapping[str, tuple[Chunk, ...]]]) -> Plan:
    """Plans the reads of a match without mismatches.

    Args:
        match: Pairs of targets and leaves.
        chunks: Of the checkpoint, and of the one given as `missing=`: name of the entry → chunks
            that tile it.

    Returns:
        Batches in template order. Every element of every buffer is written exactly once.
    """
    batches: list[Batch] = []
    buffers: list[Buffer] = []
    parts: list[tuple[int, Part]] = []
    nbytes = 0
    for pair in match.pairs:
        if pair.target.kind == "string":
            continue
        if nbytes >= BATCH_BYTES:
            batches.append(Batch(tuple(_requests(parts)), tuple(buffers)))
            buffers, parts, nbytes = [], [], 0
        dtype = _buffer_dtype(pair)
        mine = [Buffer(pair, box, dtype) for box in pair.target.boxes]
        source = int(pair.fallback)
        located = chunks[source][pair.entry.name]
        parts += [(source, part) for part in _parts(pair, mine, len(buffers), located)]
        buffers += mine
        nbytes += sum(buffer.nbytes for buffer in mine)
    if buffers:
        batches.append(Batch(tuple(_requests(parts)), tuple(buffers)))
    return Plan(match, tuple(batches))


def _buffer_dtype(pair: Pair) -> np.dtype:
    """The target's dtype where the engine may cast while it copies; else the stored one."""
    stored, wanted = pair.entry.dtype, pair.target.dtype
    if pair.target.kind != "scalar" and host_cast_is_exact(stored, wanted):
        return wanted
    return stored


def _parts(
    pair: Pair, buffers: Sequence[Buffer], first: int, chunks: Sequence[Chunk]
) -> Iterator[Part]:
    entry = pair.entry
    everything = whole(entry.shape)
    for chunk in chunks:
        copies = []
        inside = intersect(chunk.box, everything)  # an edge chunk reaches past the shape
        if inside is None:
            continue
        for i, buffer in enumerate(buffers, first):
            overlap = intersect(inside, buffer.box)
            if overlap is not None:
                copies.append(Copy(i, within(overlap, chunk.box), within(overlap, buffer.box)))
        if not copies:
            continue
        start, stop = chunk.extent.start, chunk.extent.stop
        shape = shape_of(chunk.box)
        raw = not chunk.codecs and chunk.order == "C" and chunk.extent.inline is None
        if raw:
            spans = [span_of(copy.src, shape, entry.dtype.itemsize) for copy in copies]
            stop = start + max(b for _, b in spans)
            start = start + min(a for a, _ in spans)
        buffer = buffers[copies[0].buffer - first]
        direct = (
            len(copies) == 1
            and chunk.order == "C"
            and buffer.dtype == entry.dtype
            and contiguous(copies[0].dst, buffer.shape)
            and (copies[0].src == whole(shape) or (raw and contiguous(copies[0].src, shape)))
        )
        yield Part(entry.name, chunk, entry.dtype, start, stop, direct, tuple(copies))


def _requests(parts: Sequence[tuple[int, Part]]) -> Iterator[ReadOp]:
    """Joins parts into requests: neighbours in one file, unless they are large or far apart."""
    stored = [item for item in parts if item[1].chunk.extent.inline is None]
    stored.sort(key=lambda item: (item[0], item[1].chunk.extent.key, item[1].start))
    group: list[Part] = []
    place: tuple[int, str] | None = None
    stop = 0
    for source, part in stored:
        here = source, part.chunk.extent.key
        if (
            group
            and here == place
            and part.start - stop <= GAP_BYTES
            and part.stop - part.start < LARGE_BYTES
            and group[-1].stop - group[-1].start < LARGE_BYTES
            and part.stop - group[0].start <= REQUEST_BYTES
        ):
            group.append(part)
            stop = max(stop, part.stop)
            continue
        if group and place is not None:
            yield ReadOp(*place, group[0].start, stop, tuple(group))
        group, place, stop = [part], here, part.stop
    if group and place is not None:
        yield ReadOp(*place, group[0].start, stop, tuple(group))
    for source in (0, 1):
        held = [p for s, p in parts if s == source and p.chunk.extent.inline is not None]
        for i in range(0, len(held), INLINE_PARTS):
            some = tuple(held[i : i + INLINE_PARTS])
            yield ReadOp(source, some[0].chunk.extent.key, 0, 0, some)
