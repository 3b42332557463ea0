"""Chunks whose elements are stored in another order than the leaf's, or with gaps.

An index map says where each element of such a chunk belongs in the leaf (see `Origin`), as for the
parts of a mapping. Any part of it can then be read without the rest, and no copy of the whole is
made.
"""

from __future__ import annotations

import numpy as np
from msgspec import structs

from .._core.boxes import Shape, full_box, shape_of
from .._core.index_map import IndexMap, MapAxis, strides_of
from .entry import Chunk, Extent, Origin


def make_strided_chunk(
    extent: Extent, shape: Shape, strides: Shape, dtype: np.dtype
) -> Chunk | None:
    """A chunk of elements with any steps between them.

    Args:
        extent: From the first element to the last; what is between them may be something else.
        shape: Of the leaf, without a 0.
        strides: Steps in each dimension, in elements, at least 0. One element serves for all
            indices of a dimension with 0.
        dtype: As stored.

    Returns:
        None if elements overlap in another way, which no index map describes.
    """
    steps = sorted((strides[i], i) for i, n in enumerate(shape) if n > 1 and strides[i])
    reach, dense = 0, True
    for step, i in steps:
        if step <= reach:
            return None
        dense = dense and step == reach + 1
        reach += (shape[i] - 1) * step
    if dense:
        dims = [i for _, i in reversed(steps)]
        stored, sources = tuple(shape[i] for i in dims), {i: (n, 1) for n, i in enumerate(dims)}
    else:
        stored, sources = (reach + 1,), {i: (0, step) for step, i in steps}
    axes = [MapAxis(n, sources.get(i), (i, 1)) for i, n in enumerate(shape) if n > 1]
    map = IndexMap(tuple(axes), (0,) * len(stored), (0,) * len(shape))
    return Chunk(extent, full_box(shape), origin=Origin(full_box(stored), dtype, map))


def move_chunk(chunk: Chunk, corner: Shape) -> Chunk:
    """Moves a chunk within its leaf by `corner`, in elements."""
    box = tuple((a + at, b + at) for (a, b), at in zip(chunk.box, corner, strict=True))
    origin = chunk.origin
    if origin is not None:
        target = tuple(a + at for a, at in zip(origin.map.target, corner, strict=True))
        origin = structs.replace(origin, map=structs.replace(origin.map, target=target))
    return structs.replace(chunk, box=box, origin=origin)


def divide_chunk(chunk: Chunk, dtype: np.dtype, minimum: int) -> Chunk:
    """Makes a plain chunk in F order of more than `minimum` bytes readable in parts.

    Any other chunk is returned unchanged.
    """
    extent = chunk.extent
    plain = not chunk.codecs and not chunk.sums and extent.inline is None and chunk.origin is None
    if chunk.order == "C" or not plain or extent.nbytes <= minimum:
        return chunk
    shape = shape_of(chunk.box)
    divided = make_strided_chunk(extent, shape, strides_of(shape, "F"), dtype)
    assert divided is not None
    return move_chunk(divided, tuple(low for low, _ in chunk.box))
