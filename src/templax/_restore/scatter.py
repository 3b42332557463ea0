"""Copies pieces of a decoded chunk to the buffers that want them, casting on the way."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable

import numpy as np
from msgspec import structs

from .._codecs.decode import decode
from .._core.boxes import Box, Shape, box_slices, full_box, shape_of
from .._core.dtypes import cast_into
from .._core.index_map import strides_of
from .._plan.parts import BLOCK_BYTES, Part, find_long_axis
from ..errors import Corrupted
from .buffers import HostMemory
from .strided import compute_step, copy_strided, fill_strided


def scatter(part: Part, decoded: memoryview, memory: HostMemory) -> float:
    """Copies the pieces of a chunk, or of the bytes read of a raw one, to their buffers.

    Returns:
        The seconds that casts took.

    Raises:
        Corrupted: `decoded` has fewer bytes than the chunk.
    """
    chunk = part.chunk
    if chunk.origin is not None:
        return scatter_strided(part, decoded, memory)
    steps = strides_of(shape_of(chunk.box), chunk.order)
    strides = [step * part.dtype.itemsize for step in steps]
    in_full = chunk.codecs or chunk.extent.inline is not None
    first = 0 if in_full else part.start - chunk.extent.start
    cast_s = 0.0
    for src, wanted in _list_copies(part, memory):
        offset = sum(start * stride for (start, _), stride in zip(src, strides, strict=True))
        try:
            piece = np.ndarray(shape_of(src), part.dtype, decoded, offset - first, strides)
        except (TypeError, ValueError) as error:
            raise Corrupted(f"Expected {part.nbytes} bytes, got {len(decoded)}") from error
        cast_s += _copy_piece(wanted, piece)
    return cast_s


def scatter_strided(part: Part, decoded: memoryview, memory: HostMemory) -> float:
    """Like `scatter`, for a chunk with an `origin`."""
    chunk, origin = part.chunk, part.chunk.origin
    assert origin is not None
    itemsize = part.dtype.itemsize
    in_full = chunk.codecs or chunk.extent.inline is not None
    first = 0 if in_full else (part.start - chunk.extent.start) // itemsize
    cast_s = 0.0
    for copy in part.strided:
        low, high = copy.src_span
        if (high - first) * itemsize > len(decoded) or low < first:
            raise Corrupted(f"Expected {part.nbytes} bytes, got {len(decoded)}")
        piece = _view_strided(decoded, part.dtype, copy.shape, copy.src - first, copy.src_strides)
        buffer = memory.array(copy.buffer)
        wanted = _view_strided(buffer, buffer.dtype, copy.shape, copy.dst, copy.dst_strides)
        if origin.is_computed:
            begin = time.perf_counter()
            compute = functools.partial(compute_step, scale=origin.scale, add=origin.add)
            fill_strided(wanted, piece, compute)
            cast_s += time.perf_counter() - begin
        else:
            cast_s += _copy_piece(wanted, piece)
    return cast_s


def _view_strided(
    memory: memoryview | np.ndarray,
    dtype: np.dtype,
    shape: Shape,
    start: int,
    strides: Shape,
) -> np.ndarray:
    """A view of memory as an array. `start` and `strides` are in elements."""
    size = dtype.itemsize
    return np.ndarray(shape, dtype, memory, start * size, [step * size for step in strides])  # pyright: ignore[reportArgumentType]


def scatter_blocks(
    part: Part,
    fill: Callable[[memoryview], None],
    scratch: Callable[[int], memoryview],
    memory: HostMemory,
) -> float:
    """Like `scatter`, for a chunk in C order that is decoded block by block.

    Args:
        part: A whole chunk.
        fill: Fills the memory that it is given with the next bytes of the chunk.
        scratch: Returns memory of a given number of bytes.
        memory: The buffers that want pieces.
    """
    shape, pairs = shape_of(part.chunk.box), _list_copies(part, memory)
    (src, wanted), *others = pairs
    if not others and src == full_box(shape) and wanted.flags.c_contiguous:
        shape = (math.prod(shape),)  # a block may end anywhere
        pairs = [(full_box(shape), wanted.reshape(-1))]
    axis = find_long_axis(shape)
    row = math.prod(shape[axis + 1 :]) * part.dtype.itemsize
    step = max(1, BLOCK_BYTES // row)
    memory_of_block = scratch(min(step, shape[axis]) * row)
    cast_s = 0.0
    for first in range(0, shape[axis], step):
        last = min(first + step, shape[axis])
        data = memory_of_block[: (last - first) * row]
        fill(data)
        block = np.ndarray((*shape[:axis], last - first, *shape[axis + 1 :]), part.dtype, data)
        for src, wanted in pairs:
            start, stop = src[axis]
            low, high = max(start, first), min(stop, last)
            if low < high:
                here = (*src[:axis], (low - first, high - first), *src[axis + 1 :])
                there = (slice(None),) * axis + (slice(low - start, high - start),)
                cast_s += _copy_piece(wanted[there], block[box_slices(here)])
    return cast_s


def scatter_fill(part: Part, element: memoryview, memory: HostMemory) -> float:
    """Like `scatter`, for a chunk of codec `"fill"`: one element stands for all."""
    one = decode(("fill",), element, part.dtype.itemsize)
    value = np.frombuffer(one, part.dtype).reshape(())
    if part.chunk.origin is not None:
        repeated = [
            structs.replace(copy, src=0, src_strides=(0,) * len(copy.shape))
            for copy in part.strided
        ]
        return scatter_strided(structs.replace(part, strided=tuple(repeated)), one, memory)
    return sum(
        _copy_piece(wanted, np.broadcast_to(value, wanted.shape))
        for _, wanted in _list_copies(part, memory)
    )


def _list_copies(part: Part, memory: HostMemory) -> list[tuple[Box, np.ndarray]]:
    """For each copy, its box within the chunk and the array to copy it to."""
    return [  # the ellipsis makes them views, of 0-d arrays too
        (copy.src, memory.array(copy.buffer)[(*box_slices(copy.dst), ...)]) for copy in part.copies
    ]


def _copy_piece(wanted: np.ndarray, piece: np.ndarray) -> float:
    """Copies a piece, cast if need be; returns the seconds that the cast took."""
    if wanted.dtype == piece.dtype:
        copy_strided(wanted, piece)
        return 0.0
    begin = time.perf_counter()
    fill_strided(wanted, piece, cast_into)
    return time.perf_counter() - begin
