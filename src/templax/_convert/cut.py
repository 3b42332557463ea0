"""Divides a leaf into the blocks in which it is read and written. Pure.

A block consists of whole chunks of what is written, and follows the chunks of what is read: one
that must be decoded whole is decoded once, or twice where the two grids don't fit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .._audit.diff_blocks import Overlapping, find_pinned
from .._catalog.entry import Chunk
from .._core.boxes import Box, Shape, intersect, size_of
from .._plan.parts import is_raw

BLOCK_BYTES = 8 * 1024 * 1024
"""Size of a block. It is larger where a chunk that must be decoded whole is larger."""

MAX_STREAMS = 64
"""At most so many chunks are decoded side by side, as each takes some memory."""

Chunks = Sequence[Chunk]


class Cut(NamedTuple):
    """Elements that are read at a time.

    Attributes:
        box: The elements.
        chunks: The chunks that overlap them.
        streamed: Whether it is the next of several blocks for which the same chunks are decoded,
            piece by piece.
    """

    box: Box
    chunks: Chunks
    streamed: bool = False


def cut_blocks(
    box: Box, itemsize: int, unit: Shape, chunks: Chunks, axis: int = 0
) -> Iterator[list[Cut]]:
    """Divides a box into blocks.

    Args:
        box: Range of a leaf, not empty, that begins and ends where chunks of `unit` do.
        itemsize: Bytes per element, as stored.
        unit: Shape of the chunks that are written: each is contiguous in the leaf, apart from
            padding.
        chunks: The chunks that overlap the box.
        axis: The first dimension that may be cut.

    Returns:
        In C order, the blocks that one thread reads one after the other: one, or several of which
        each is decoded as it is needed.
    """
    axis = next((i for i in range(axis, len(box)) if box[i][1] - box[i][0] > unit[i]), len(box))
    nbytes = size_of(box) * itemsize
    if nbytes <= BLOCK_BYTES or axis == len(box):
        yield [Cut(box, chunks)]
        return
    start, stop = box[axis]
    length, row = unit[axis], nbytes // (stop - start)
    step = max(length, BLOCK_BYTES // row // length * length)
    pinned = find_pinned([c for c in chunks if c.codecs != ("fill",)], axis)
    overlapping = Overlapping(chunks, axis)
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
            low = low // length * length
            end = low if low > at else min(-(-high // length) * length, stop)
        here = (*box[:axis], (at, end), *box[axis + 1 :])
        mine = overlapping.take(at, end)
        if (end - at) * row <= BLOCK_BYTES:
            yield [Cut(here, mine)]
        elif end - at == 1:
            yield from cut_blocks(here, itemsize, unit, mine, axis + 1)
        elif _can_stream(mine, axis):
            parts = itertools.chain.from_iterable(cut_blocks(here, itemsize, unit, (), axis))
            yield [
                Cut(part.box, _find_overlapping(mine, part.box), streamed=True) for part in parts
            ]
        else:
            yield [Cut(here, mine)]
        at = end


def _can_stream(chunks: Chunks, axis: int) -> bool:
    """Whether each chunk can be decoded piece by piece in the order of blocks cut along `axis`."""
    if len(chunks) > MAX_STREAMS or all(map(is_raw, chunks)):
        return False
    return all(
        chunk.codecs in (("zstd",), ("fill",))
        and chunk.order == "C"
        and chunk.origin is None
        and (chunk.extent.inline is None or chunk.codecs == ("fill",))
        and size_of(chunk.box[:axis]) == 1
        for chunk in chunks
    )


def _find_overlapping(chunks: Chunks, box: Box) -> Chunks:
    return [chunk for chunk in chunks if intersect(chunk.box, box) is not None]


def count_memory_of_block(cut: Cut, itemsize: int, written: int) -> int:
    """The most memory that reading and casting a block takes, in bytes.

    Args:
        cut: The block.
        itemsize: Bytes per element, as stored.
        written: Bytes per element, as written.
    """
    size = size_of(cut.box)
    nbytes = size * (itemsize if written == itemsize else itemsize + written)
    encoded = [chunk for chunk in cut.chunks if not is_raw(chunk) and chunk.codecs != ("fill",)]
    plain = all(chunk.codecs == ("zstd",) and chunk.origin is None for chunk in encoded)
    if cut.streamed or plain:
        return nbytes
    return nbytes + max(
        size_of(chunk.stored_box) * itemsize + chunk.extent.nbytes for chunk in encoded
    )
