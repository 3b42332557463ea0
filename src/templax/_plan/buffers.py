"""One leaf: the buffers for its boxes, and whether a buffer can be a mapping of the file. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from .._catalog.entry import Chunk, Extent
from .._core.boxes import (
    Box,
    Shape,
    intersect,
    is_contiguous,
    relative_box,
    shape_of,
    size_of,
    span_of,
)
from .._core.dtypes import host_cast_is_exact
from .._core.memory import ALIGN
from .._match.result import Pair


class Buffer(msgspec.Struct, frozen=True, gc=False):
    """Host memory for one box of one leaf.

    Attributes:
        pair: The leaf.
        box: The part of the leaf that it holds.
        shape: Of the box.
        dtype: The stored dtype where the cast happens during placement, else the target's.
        nbytes: Bytes of the box, in `dtype`.
        transient: Whether the memory is freed once the leaf is placed, as opposed to becoming the
            leaf.
        view: Bytes of the source that are mapped; None if the buffer is memory that reads fill.
    """

    pair: Pair
    box: Box
    shape: Shape
    dtype: np.dtype
    nbytes: int
    transient: bool = False
    view: Extent | None = None


class Measure(msgspec.Struct, frozen=True, gc=False):
    """The shape of a box, its number of elements, and the same box moved to the origin."""

    shape: Shape
    size: int
    origin: Box


class Measures(dict[Box, Measure]):
    """Box → its measure, computed once: most leaves of a model share a few shapes."""

    def __missing__(self, box: Box) -> Measure:
        self[box] = made = Measure(shape_of(box), size_of(box), relative_box(box, box))
        return made


def make_buffers(pair: Pair, measures: Measures) -> list[Buffer]:
    """Makes the buffers of a leaf, one per box that this process must hold."""
    target, dtype = pair.target, pair.entry.dtype
    # The cast happens during the copy where that gives the same bits, else during placement.
    transient = target.transient
    if dtype is not target.dtype and dtype != target.dtype:
        if target.kind != "scalar" and host_cast_is_exact(dtype, target.dtype):
            dtype = target.dtype
        else:
            transient = True
    itemsize = dtype.itemsize
    found: list[Buffer] = []
    for box in target.boxes:
        measure = measures[box]
        found.append(Buffer(pair, box, measure.shape, dtype, measure.size * itemsize, transient))
    return found


def find_view(pair: Pair, buffers: Sequence[Buffer], chunks: Sequence[Chunk]) -> Extent | str:
    """The stored bytes that can serve as a buffer when mapped, or a few words on why none can."""
    if len(buffers) != 1:
        return "for several devices"
    if len(chunks) != 1:
        return "in several places"
    (buffer,), (chunk,) = buffers, chunks
    extent, itemsize = chunk.extent, buffer.dtype.itemsize
    if pair.target.host:  # the caller may write to these
        return "numpy arrays or Python values"
    if chunk.origin is not None:
        return "laid otherwise than in memory"
    if chunk.codecs:
        return f"stored with {', '.join(chunk.codecs)}"
    if extent.inline is not None:
        return "held by an index, or computed"
    if buffer.dtype != pair.entry.dtype or buffer.dtype != pair.target.dtype:
        return "cast"
    if buffer.transient:
        return "copied to their device"
    src, shape = relative_box(buffer.box, chunk.box), shape_of(chunk.box)
    inside = intersect(chunk.box, buffer.box) == buffer.box
    if chunk.order != "C" or not inside or not is_contiguous(src, shape):
        return "laid otherwise than in memory"
    start = extent.start + span_of(src, shape, itemsize)[0]
    if start % ALIGN:
        return f"at no multiple of {ALIGN} bytes"
    return Extent(extent.key, start, start + buffer.nbytes)
