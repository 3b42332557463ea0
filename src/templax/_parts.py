"""One leaf: its boxes × its chunks → parts, the pieces of work that fill its buffers. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from ._boxes import Box, Shape, contiguous, intersect, shape_of, size_of, span_of, whole, within
from ._catalog import Chunk, Extent
from ._dtypes import host_cast_is_exact
from ._match import Pair

ALIGN = 64
"""Bytes. `jax.device_put` on CPU takes over a host buffer at such a boundary without a copy."""

IN_PLACE_BYTES = 128 * 1024
"""Raw parts of this size are requests of their own: they are read in place, for the price of a
system call (5 µs) instead of a copy."""

SPLIT_BYTES = 32 * 1024 * 1024
"""Raw parts larger than this are read by several threads."""


class Copy(msgspec.Struct, frozen=True, gc=False):
    """A piece of a chunk that a buffer wants.

    Attributes:
        buffer: Index in the batch.
        src: Box within the chunk.
        dst: Box within the buffer; of the same shape.
    """

    buffer: int
    src: Box
    dst: Box


class Part(msgspec.Struct, frozen=True, gc=False):
    """What is read of one chunk, and who wants it.

    Attributes:
        name: The leaf.
        chunk: The chunk.
        dtype: As stored.
        start, stop: Bytes of the object that are read: all of the chunk unless it is raw.
        direct: Set if the decoded bytes of the single copy lie back to back in its buffer, in its
            dtype: the byte of the buffer where they begin. They are read or decoded in place.
        nbytes: Bytes that the chunk decodes to; of a raw chunk those that are read.
        copies: At least one.
    """

    name: str
    chunk: Chunk
    dtype: np.dtype
    start: int
    stop: int
    direct: int | None
    nbytes: int
    copies: tuple[Copy, ...]


class Buffer(msgspec.Struct, frozen=True, gc=False):
    """Host memory for one box of one leaf.

    Attributes:
        pair: The leaf.
        box: Which part of it.
        shape: Of the box.
        dtype: The stored one where `_place` casts, else the target's.
        nbytes: Of the box, in `dtype`.
        view: Bytes of the source that are mapped in place of memory of our own.
    """

    pair: Pair
    box: Box
    shape: Shape
    dtype: np.dtype
    nbytes: int
    view: Extent | None = None

    @property
    def transient(self) -> bool:
        """Whether the memory is given back once the leaf is placed: it does not become the leaf."""
        target = self.pair.target
        return target.transient or self.dtype != target.dtype


class Measure(msgspec.Struct, frozen=True, gc=False):
    """Of a box: its shape, elements, and the same box at the origin."""

    shape: Shape
    size: int
    origin: Box


class Measures(dict[Box, Measure]):
    """Box → its measure: most leaves of a model share a few shapes."""

    def __missing__(self, box: Box) -> Measure:
        self[box] = made = Measure(shape_of(box), size_of(box), within(box, box))
        return made


def buffers_of(pair: Pair, measures: Measures) -> list[Buffer]:
    """The buffers of a leaf, one per box that this process must hold."""
    target, dtype = pair.target, pair.entry.dtype
    # The engine casts while it copies, where that gives the same bits.
    if dtype != target.dtype and target.kind != "scalar":
        dtype = target.dtype if host_cast_is_exact(dtype, target.dtype) else dtype
    found: list[Buffer] = []
    for box in target.boxes:
        measure = measures[box]
        found.append(Buffer(pair, box, measure.shape, dtype, measure.size * dtype.itemsize))
    return found


def view_of(pair: Pair, buffers: Sequence[Buffer], chunks: Sequence[Chunk]) -> Extent | None:
    """The bytes that are a buffer as they lie: one raw chunk, of its box and dtype, aligned."""
    if len(buffers) != 1 or len(chunks) != 1:
        return None
    (buffer,), (chunk,) = buffers, chunks
    extent, itemsize = chunk.extent, buffer.dtype.itemsize
    if (
        chunk.codecs
        or chunk.order != "C"
        or extent.inline is not None
        or buffer.dtype != pair.entry.dtype
        or pair.target.host  # numpy arrays are the user's own, to write to
        or buffer.transient
        or intersect(chunk.box, buffer.box) != buffer.box
    ):
        return None
    src, shape = within(buffer.box, chunk.box), shape_of(chunk.box)
    start = extent.start + span_of(src, shape, itemsize)[0]
    if start % ALIGN or not contiguous(src, shape):
        return None
    return Extent(extent.key, start, start + buffer.nbytes)


def parts_of(
    pair: Pair, buffers: Sequence[Buffer], first: int, chunks: Sequence[Chunk], measures: Measures
) -> Iterator[Part]:
    """What is read of each chunk that meets a buffer.

    Args:
        pair: The leaf.
        buffers: Some or all of its buffers.
        first: Index of the first of them in the batch.
        chunks: All chunks of the leaf.
        measures: Memo.
    """
    entry = pair.entry
    itemsize = entry.dtype.itemsize
    if len(chunks) == 1 == len(buffers) and chunks[0].box == buffers[0].box:
        (chunk,), (buffer,) = chunks, buffers
        same = chunk.order == "C" and buffer.dtype == entry.dtype
        measure = measures[chunk.box]
        start, stop = chunk.extent.start, chunk.extent.stop
        nbytes = measure.size * itemsize
        copies = (Copy(first, measure.origin, measure.origin),)
        part = Part(
            entry.name, chunk, entry.dtype, start, stop, 0 if same else None, nbytes, copies
        )
        if same and stop - start > SPLIT_BYTES and not chunk.codecs and chunk.extent.inline is None:
            yield from _split(part)
        else:
            yield part
        return
    everything = whole(entry.shape)
    for chunk in chunks:
        copies: tuple[Copy, ...] = ()
        inside = intersect(chunk.box, everything)  # an edge chunk reaches past the shape
        if inside is None:
            continue
        for i, buffer in enumerate(buffers, first):
            overlap = intersect(inside, buffer.box)
            if overlap is not None:
                mine = Copy(i, within(overlap, chunk.box), within(overlap, buffer.box))
                copies = (*copies, mine)
        if not copies:
            continue
        start, stop = chunk.extent.start, chunk.extent.stop
        shape = measures[chunk.box].shape
        nbytes = measures[chunk.box].size * itemsize
        raw = not chunk.codecs and chunk.order == "C" and chunk.extent.inline is None
        if raw:
            spans = [span_of(copy.src, shape, itemsize) for copy in copies]
            stop = start + max(b for _, b in spans)
            start = start + min(a for a, _ in spans)
            nbytes = stop - start
        buffer, dst = buffers[copies[0].buffer - first], copies[0].dst
        direct = None
        if (
            len(copies) == 1
            and chunk.order == "C"
            and buffer.dtype == entry.dtype
            and contiguous(dst, buffer.shape)
            and (copies[0].src == whole(shape) or (raw and contiguous(copies[0].src, shape)))
        ):
            direct = span_of(dst, buffer.shape, itemsize)[0]
        part = Part(entry.name, chunk, entry.dtype, start, stop, direct, nbytes, copies)
        if raw and direct is not None and nbytes > SPLIT_BYTES:
            yield from _split(part)
        else:
            yield part


def _split(part: Part) -> Iterator[Part]:
    """A large part that is read in place, in pieces along its first dimension that is one."""
    (copy,) = part.copies
    assert part.direct is not None
    axis = next(i for i, (a, b) in enumerate(copy.src) if b - a > 1)
    begin, end = copy.src[axis]
    row = part.nbytes // (end - begin)
    step = max(1, SPLIT_BYTES // row)
    for first in range(begin, end, step):
        last = min(first + step, end)
        shift = copy.dst[axis][0] - begin
        src = (*copy.src[:axis], (first, last), *copy.src[axis + 1 :])
        dst = (*copy.dst[:axis], (first + shift, last + shift), *copy.dst[axis + 1 :])
        offset, nbytes = (first - begin) * row, (last - first) * row
        yield Part(
            part.name,
            part.chunk,
            part.dtype,
            part.start + offset,
            part.start + offset + nbytes,
            part.direct + offset,
            nbytes,
            (Copy(copy.buffer, src, dst),),
        )


def scratch_of(part: Part, piece_bytes: int) -> int:
    """Bytes that a worker needs for a part beside its buffer."""
    if part.chunk.extent.inline is not None:
        return 0
    stored, decoded = part.stop - part.start, part.nbytes
    if part.direct is not None:
        return min(stored, piece_bytes) if part.chunk.codecs or stored < IN_PLACE_BYTES else 0
    if part.chunk.codecs == ("zstd",):
        return min(stored, piece_bytes) + decoded
    return stored + (decoded if part.chunk.codecs else 0)
