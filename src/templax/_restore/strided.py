"""Copies between strided arrays, transposed or computed, at the speed of memory."""

from __future__ import annotations

import itertools
import sys
import threading

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .._core.dtypes import cast_into

TILE_ROWS, TILE_WORDS = 512, 32
"""A tile has this many rows of so many words of 8 bytes: 128 KiB, which stays in cache."""

_WORD = 8


class _Tiles(threading.local):
    """Memory of a thread for two tiles."""

    def __init__(self) -> None:
        # Rows one word longer: else a column's words share few lines of the cache.
        self.rows = np.empty((TILE_ROWS, TILE_WORDS + 1), np.uint64)[:, :TILE_WORDS]
        self.columns = np.empty(TILE_WORDS * TILE_ROWS, np.uint64)


_tiles = _Tiles()


def copy_strided(out: np.ndarray, values: np.ndarray) -> None:
    """Copies `values` into `out`, of the same shape and dtype.

    numpy copies a transposed array element by element and in long strides: 0.7 GiB/s of 2-byte
    elements on a core, where tiles in cache give 2.2 (AMD EPYC, 2026-11-29).

    Args:
        out: Its dimensions are in the order of their strides, the longest first.
        values: Any strides.
    """
    if out.dtype.itemsize in (1, 2, 4, 8):  # as numbers: numpy copies ml_dtypes more slowly
        bits = np.dtype(f"u{out.dtype.itemsize}")
        out, values = out.view(bits), values.view(bits)
    column = _find_column(out, values)
    if column is None:
        out[...] = values
        return
    axes = [i for i in range(out.ndim - 1) if i != column]
    order = (*axes, out.ndim - 1, column)
    out, values = out.transpose(order), values.transpose(order)
    for index in itertools.product(*map(range, out.shape[:-2])):
        _transpose(out[index].T, values[index])


def _find_column(out: np.ndarray, values: np.ndarray) -> int | None:
    """The dimension that is contiguous in `values`, if copying by tiles pays; else None.

    It pays if another dimension is contiguous in `out`, and both are long.
    """
    itemsize = out.dtype.itemsize
    if itemsize not in (1, 2, 4, 8) or sys.byteorder != "little" or out.ndim < 2:
        return None
    rows = out.shape[-1]
    if out.strides[-1] != itemsize or values.strides[-1] == itemsize or rows < 32:
        return None
    for i, (n, stride) in enumerate(zip(values.shape, values.strides, strict=True)):
        if stride == itemsize and n * itemsize >= 32 * _WORD and n * rows >= 16384:
            return i
    return None


def _transpose(out: np.ndarray, values: np.ndarray) -> None:
    """Copies `values` (rows, columns), whose rows are contiguous, into `out` (columns, rows), too.

    A tile is copied to cache, transposed there in words of 8 bytes, and each word is then divided
    into its elements, which are neighbours in a row of `values`.
    """
    itemsize = out.dtype.itemsize
    each = _WORD // itemsize
    rows, columns = values.shape
    whole = columns - columns % each
    if whole < columns:
        out[whole:] = values[:, whole:].T
    by_word = as_strided(
        out, (whole // each, each, rows), (out.strides[0] * each, *out.strides), writeable=True
    )
    for j in range(0, whole // each, TILE_WORDS):
        n = min(TILE_WORDS, whole // each - j)
        for i in range(0, rows, TILE_ROWS):
            m = min(TILE_ROWS, rows - i)
            tile = _tiles.rows[:m, :n]
            tile.view(out.dtype)[...] = values[i : i + m, j * each : (j + n) * each]
            turned = _tiles.columns[: n * m].reshape(n, m)
            turned[...] = tile.T
            to = by_word[j : j + n, :, i : i + m]
            np.copyto(to[:, 0], turned, casting="unsafe")  # the lowest bits
            for k in range(1, each):
                np.right_shift(turned, 8 * itemsize, out=turned)
                np.copyto(to[:, k], turned, casting="unsafe")


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
