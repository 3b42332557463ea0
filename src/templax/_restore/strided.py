"""Copies between strided arrays, transposed, cast or computed, at the speed of a core's cache."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable

import numpy as np

from .._core.boxes import Shape
from .._core.dtypes import cast_into
from .._core.index_map import strides_of

TILE_ROWS, ROW_BYTES = 512, 512
"""A tile has at most this many rows of so many bytes: 256 KiB, which stay in a core's cache."""

_PITCH_BYTES = ROW_BYTES + 64
"""From a row of a tile to the next: an odd number of cache lines. Of an even number, above all of a
power of two, the elements of a column would compete for a few places of the cache."""

_MIN_TILE_BYTES = 8 * 1024
"""Smaller tiles cost more in calls than they save."""


class _Tile(threading.local):
    """Memory of a thread for one tile."""

    def __init__(self) -> None:
        self.memory = np.empty(TILE_ROWS * _PITCH_BYTES, np.uint8)


_tile = _Tile()


def copy_strided(out: np.ndarray, values: np.ndarray) -> None:
    """Copies `values` into `out`, of the same shape and dtype; see `fill_strided`."""
    if out.dtype.itemsize in (1, 2, 4, 8):  # as numbers: numpy copies ml_dtypes more slowly
        bits = np.dtype(f"u{out.dtype.itemsize}")
        out, values = out.view(bits), values.view(bits)
    fill_strided(out, values, np.copyto)


def fill_strided(
    out: np.ndarray, values: np.ndarray, fill: Callable[[np.ndarray, np.ndarray], None]
) -> None:
    """Makes each element of `out` of one of `values`, of the same shape.

    If one of them is transposed, numpy fetches a cache line for each element that it copies. So
    this copies to a tile, row by row as `values` lie, and from there column by column, as `out`
    lies.

    Args:
        out: Its dimensions are in the order of their strides, the longest first.
        values: Any strides, any dtype.
        fill: Makes the elements of its first argument, of the dtype of `out`, of those of its
            second, which is of the same shape.
    """
    order, steps, strides = _choose_tile(out, values)
    if math.prod(steps) * out.dtype.itemsize < _MIN_TILE_BYTES:
        fill(out, values)
        return
    out, values = out.transpose(order), values.transpose(order)
    for start in itertools.product(*map(range, (0,) * out.ndim, out.shape, steps)):
        index = tuple(slice(i, i + step) for i, step in zip(start, steps, strict=True))
        piece = values[index]
        tile = np.ndarray(piece.shape, out.dtype, _tile.memory, 0, strides)  # pyright: ignore[reportArgumentType]
        fill(tile, piece)
        out[index] = tile


def _choose_tile(out: np.ndarray, values: np.ndarray) -> tuple[Shape, Shape, Shape]:
    """Chooses the tiles by which to copy.

    A row of a tile extends along the dimensions that are closer together in `values` than the last
    one, which is the closest in `out`; a column extends along the last one.

    Returns:
        The order of dimensions in a tile, and in this order the shape of the largest tile and its
        strides in bytes. The shape is empty if all dimensions are in the same order already.
    """
    itemsize, last = out.dtype.itemsize, out.ndim - 1
    apart = [abs(stride) for stride in values.strides]
    row = [i for i in range(last) if 0 < apart[i] < apart[last]]
    row.sort(key=lambda i: -apart[i])
    if not row:
        return (), (0,), ()
    shape, width = list[int](), ROW_BYTES // itemsize
    for i in reversed(row):
        shape.insert(0, min(out.shape[i], width))
        width //= shape[0]
    others = [i for i in range(last) if i not in row]
    rows = min(out.shape[last], TILE_ROWS)
    strides = [step * itemsize for step in strides_of(shape)]
    return (
        (*others, last, *row),
        (*[1] * len(others), rows, *shape),
        (*[0] * len(others), _PITCH_BYTES, *strides),
    )


def compute_step(
    out: np.ndarray, values: np.ndarray, scale: float | None, add: float | None
) -> None:
    """Computes `(values.astype(float32) * scale + add).astype(out.dtype)` into `out`.

    Bit for bit: the factor and the summand are rounded to float32, the product and the sum are
    rounded separately, and the result once to the dtype of `out`.
    """
    with np.errstate(all="ignore"):
        result = np.empty(values.shape, np.float32)
        cast_into(result, values)
        if scale is not None:
            result *= np.float32(scale)
        if add is not None:
            result += np.float32(add)
    cast_into(out, result)
