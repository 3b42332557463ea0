"""How an array is divided into chunks: shapes of chunks, and the cells of a chunk grid."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator

from .boxes import Box, Shape, full_box, is_contiguous

CHUNK_BYTES = 4 * 1024 * 1024
"""Maximum size of a chunk, wherever the shape can be divided that finely. A reader that needs part
of a chunk has to read and check all of it, but smaller chunks mean more keys in the index. A
restore issues requests of the same size."""


@functools.lru_cache(maxsize=4096)
def chunk_shape(
    shape: Shape, itemsize: int, most: int | None = None, *, padded: bool = True
) -> Shape:
    """Chooses the shape of the chunks of an array.

    Each chunk is one contiguous byte range of the array in C order: leading dimensions are cut to
    length 1 as far as necessary, one dimension is cut into several parts, and those after it stay
    whole.

    The number of parts is chosen so that cuts coincide with those of most meshes: equal parts, and
    among the possible numbers one divisible by the largest power of two. If no equal division
    fits, the parts along the first dimension may be padded: the last one extends past the edge.

    Args:
        shape: Shape of the array, or of the part of it that one process holds.
        itemsize: Bytes per element.
        most: Bytes of a chunk, wherever the shape can be divided that finely; default
            `CHUNK_BYTES`.
        padded: Whether the last chunk may extend past the edge of the array.

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
    most = CHUNK_BYTES if most is None else most
    chunk = list(shape)
    for axis, n in enumerate(shape):
        row = math.prod(shape[axis + 1 :]) * itemsize
        if n * row <= most:
            break
        if row > most:
            chunk[axis] = 1
            continue
        # After a dimension that is cut to length 1, padding would lie between two chunks.
        chunk[axis] = _choose_length(n, -(-n // (most // row)), padded and axis == 0)
        break
    return tuple(chunk)


def _choose_length(n: int, count: int, padded: bool) -> int:
    """The length of each part when `n` is divided into at least `count` parts.

    The parts are equal if fewer than twice as many suffice for that. Otherwise the last one is
    padded; or, without padding, there are more parts, or fewer if `n` has no such divisor.
    """
    equal = [c for c in range(count, 2 * count) if n % c == 0]
    if equal:
        # `c & -c` is the largest power of two that divides c; of several such c, the smallest.
        return n // max(equal, key=lambda c: (c & -c, -c))
    if padded:
        return -(-n // count)
    more = next((c for c in range(2 * count, 16 * count) if n % c == 0), None)
    return n // (more or max(c for c in range(1, count) if n % c == 0))


def iter_cells(shape: Shape, chunk: Shape) -> Iterator[tuple[Shape, Box]]:
    """Yields the index of each cell of the grid, in C order, and its box within the array."""
    for cell in cell_indices(shape, chunk):
        yield cell, cell_box(cell, shape, chunk)


def cell_indices(shape: Shape, chunk: Shape) -> Iterator[Shape]:
    """Yields the index of each cell of the grid, in C order."""
    return itertools.product(*map(range, grid_shape(shape, chunk)))


@functools.lru_cache(maxsize=4096)
def only_cell(shape: Shape, chunk: Shape) -> Shape | None:
    """The index of the only cell if the grid has a single one, as for most leaves; else None."""
    counts = grid_shape(shape, chunk)
    return (0,) * len(counts) if all(n == 1 for n in counts) else None


@functools.lru_cache(maxsize=4096)
def grid_shape(shape: Shape, chunk: Shape) -> Shape:
    """Number of chunks along each dimension."""
    return tuple(-(-n // c) for n, c in zip(shape, chunk, strict=True))


def cell_box(cell: Shape, shape: Shape, chunk: Shape) -> Box:
    """The box of a cell, clipped to the array."""
    return tuple((i * c, min(i * c + c, n)) for i, c, n in zip(cell, chunk, shape, strict=True))


@functools.lru_cache(maxsize=4096)
def is_row_major(shape: Shape, chunk: Shape) -> bool:
    """Whether the chunks, concatenated in C order, give the array in C order."""
    return is_contiguous(full_box(chunk), shape)
