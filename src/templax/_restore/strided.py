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
from .._core.memory import allocate_aligned

TILE_ROWS, TILE_BYTES = 512, 256 * 1024
"""A tile has at most this many rows and bytes, which stay in a core's cache."""

_MIN_TILE_BYTES = 8 * 1024
"""Smaller tiles cost more in calls than they save."""

_LINE_BYTES = 64
"""Size of a cache line in bytes."""

_BITS = {n: np.dtype(f"u{n}") for n in (1, 2, 4, 8)}


class _Tile(threading.local):
    """Memory of a thread for one tile."""

    def __init__(self) -> None:
        self.memory = allocate_aligned(TILE_BYTES + TILE_ROWS * 2 * _LINE_BYTES)


_tile = _Tile()


def copy_strided(out: np.ndarray, values: np.ndarray) -> None:
    """Copies `values` into `out`, of the same shape and dtype; see `fill_strided`."""
    fill_strided(_view_bits(out), _view_bits(values), np.copyto)


def fill_strided(
    out: np.ndarray, values: np.ndarray, fill: Callable[[np.ndarray, np.ndarray], None]
) -> None:
    """Makes each element of `out` from the one of `values` at the same index.

    If one of them is transposed, numpy fetches a cache line for each element: 2-byte elements are
    copied in 1 to 3 s/GiB. So this fills one tile after another, row by row as `values` lie, and
    copies each column by column, as `out` lies: 0.35 to 0.6 (one core of an Intel Xeon,
    2026-11-29).

    Args:
        out: Its dimensions are in the order of their strides, the longest first.
        values: Any strides, any dtype.
        fill: Takes two arrays of the same shape, of the dtypes of `out` and `values`, and makes the
            elements of the first from those of the second.
    """
    order, steps, strides = _choose_tile(out, values)
    if math.prod(steps) * out.itemsize < _MIN_TILE_BYTES:
        fill(out, values)
        return
    to, values = _view_bits(out).transpose(order), values.transpose(order)
    for start in itertools.product(*map(range, (0,) * to.ndim, to.shape, steps)):
        index = tuple(slice(i, i + step) for i, step in zip(start, steps, strict=True))
        piece = values[index]
        tile = np.ndarray(piece.shape, out.dtype, _tile.memory, 0, strides)  # pyright: ignore[reportArgumentType]
        fill(tile, piece)
        to[index] = _view_bits(tile)


def _view_bits(array: np.ndarray) -> np.ndarray:
    """The array as unsigned integers, which numpy copies faster than the dtypes of ml_dtypes."""
    bits = _BITS.get(array.itemsize)
    return array if bits is None else array.view(bits)


def _choose_tile(out: np.ndarray, values: np.ndarray) -> tuple[Shape, Shape, Shape]:
    """Chooses the tiles by which to copy.

    A column of a tile extends along the last dimension, in which elements of `out` are closest
    together; a row along those in which elements of `values` are closer together than in the last.

    Returns:
        The order of dimensions in a tile; in this order the shape of a whole tile, and its strides
        in bytes. The shape is empty if copying without tiles reads whole cache lines as well.
    """
    none = (), (0,), ()
    if out.nbytes < _MIN_TILE_BYTES:
        return none
    itemsize, last = out.itemsize, out.ndim - 1
    apart = [abs(stride) for stride in values.strides]
    row = sorted((i for i in range(last) if 0 < apart[i] < apart[last]), key=lambda i: -apart[i])
    if not row or apart[last] < _LINE_BYTES:
        return none
    rows = min(out.shape[last], TILE_ROWS)
    shape, width = list[int](), TILE_BYTES // (rows * itemsize)
    for i in reversed(row):
        shape.insert(0, min(out.shape[i], width))
        width //= shape[0]
    # Rows are an odd number of cache lines apart. If it were even, above all a power of two, the
    # elements of a column would compete for a few places of the cache.
    pitch = (-(-math.prod(shape) * itemsize // _LINE_BYTES) | 1) * _LINE_BYTES
    others = [i for i in range(last) if i not in row]
    return (
        (*others, last, *row),
        (*[1] * len(others), rows, *shape),
        (*[0] * len(others), pitch, *[step * itemsize for step in strides_of(shape)]),
    )


def compute_step(
    out: np.ndarray, values: np.ndarray, scale: float | None, add: float | None
) -> None:
    """Computes `(values.astype(float32) * scale + add).astype(out.dtype)` into `out`.

    Bit for bit: the factor and the summand are rounded to float32, the product and the sum are
    rounded separately, and the result once to the dtype of `out`. Values of float64 are computed in
    float64.
    """
    number = np.float64 if values.dtype == np.float64 else np.float32
    with np.errstate(all="ignore"):
        result = np.empty(values.shape, number)
        cast_into(result, values)
        if scale is not None:
            result *= number(scale)
        if add is not None:
            result += number(add)
    cast_into(out, result)
