"""How an array is cut into chunks. Pure."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator

from .boxes import Box, Shape, full_box, is_contiguous

CHUNK_BYTES = 4 * 1024 * 1024
"""The most bytes of a chunk, if a row fits. A reader that needs a part of a chunk reads and checks
all of it; smaller chunks would cost keys in the index. Also what the engine reads whole."""


@functools.lru_cache(maxsize=4096)
def chunk_shape(shape: Shape, itemsize: int, *, padded: bool = True) -> Shape:
    """The shape of the chunks of an array: whole trailing dimensions, cut along the first that has
    to be, so that in C order they are one range of bytes.

    The cuts are where most meshes cut, too: equal chunks, whose number has the largest power of two
    that fits; else (along the first dimension only) ones of which the last is padded at its end.

    Args:
        shape: Of the array, or of the part of it that a process has.
        itemsize: Bytes of an element.
        padded: Whether the last chunk may reach past the edge.

    >>> chunk_shape((8192, 4096), 4)
    (256, 4096)
    >>> chunk_shape((50257, 768), 2)
    (1733, 768)
    >>> chunk_shape((3, 4096, 4096), 2)
    (1, 512, 4096)
    >>> chunk_shape((0, 5), 4), chunk_shape((), 4)
    ((1, 5), ())
    """
    if 0 in shape:
        return tuple(max(1, n) for n in shape)
    chunk = list(shape)
    for axis, n in enumerate(shape):
        row = math.prod(shape[axis + 1 :]) * itemsize
        if n * row <= CHUNK_BYTES:
            break
        if row > CHUNK_BYTES:
            chunk[axis] = 1
            continue
        # Behind a dimension that is cut to 1, padding would lie between two chunks.
        chunk[axis] = _step(n, -(-n // (CHUNK_BYTES // row)), padded and axis == 0)
        break
    return tuple(chunk)


def _step(n: int, count: int, padded: bool) -> int:
    """The length of each of `count` parts of `n`, or of up to twice as many, equal if possible."""
    equal = [c for c in range(count, 2 * count) if n % c == 0]
    if equal:
        return n // max(equal, key=lambda c: (c & -c, -c))  # a power of two of them, or nearly
    if padded:
        return -(-n // count)
    more = next((c for c in range(2 * count, 16 * count) if n % c == 0), None)
    return n // (more or max(c for c in range(1, count) if n % c == 0))


def iter_cells(shape: Shape, chunk: Shape) -> Iterator[tuple[Shape, Box]]:
    """Each cell of the grid in C order, and its box within the array."""
    for cell in cell_indices(shape, chunk):
        yield cell, cell_box(cell, shape, chunk)


def cell_indices(shape: Shape, chunk: Shape) -> Iterator[Shape]:
    """Each cell of the grid in C order."""
    return itertools.product(*map(range, grid_shape(shape, chunk)))


@functools.lru_cache(maxsize=4096)
def only_cell(shape: Shape, chunk: Shape) -> Shape | None:
    """The cell of a grid with a single cell, as most leaves have; else None."""
    counts = grid_shape(shape, chunk)
    return (0,) * len(counts) if all(n == 1 for n in counts) else None


@functools.lru_cache(maxsize=4096)
def grid_shape(shape: Shape, chunk: Shape) -> Shape:
    """Number of chunks along each dimension."""
    return tuple(-(-n // c) for n, c in zip(shape, chunk, strict=True))


def cell_box(cell: Shape, shape: Shape, chunk: Shape) -> Box:
    """The box of a cell, cut at the edge of the array."""
    return tuple((i * c, min(i * c + c, n)) for i, c, n in zip(cell, chunk, shape, strict=True))


@functools.lru_cache(maxsize=4096)
def is_row_major(shape: Shape, chunk: Shape) -> bool:
    """Whether the chunks, one after the other, are the array in C order."""
    return is_contiguous(full_box(chunk), shape)
