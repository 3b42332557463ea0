"""Box arithmetic. A box is a half-open index range per dimension, in array elements."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

Shape = tuple[int, ...]

Box = tuple[tuple[int, int], ...]


@functools.lru_cache(maxsize=4096)
def full_box(shape: Shape) -> Box:
    """The box of all of an array.

    >>> full_box((2, 3))
    ((0, 2), (0, 3))
    """
    return tuple((0, n) for n in shape)


def shape_of(box: Box) -> Shape:
    return tuple(stop - start for start, stop in box)


def fits_address_space(shape: Shape, itemsize: int) -> bool:
    """Whether numpy can make an array of a shape.

    It counts the bytes of a row even of an empty array.


    >>> [fits_address_space(shape, 4) for shape in [(0, 2**62), (0, 5), (1,) * 33]]
    [False, True, False]
    """
    return len(shape) <= 32 and math.prod([n for n in shape if n]) * itemsize < 2**63


def size_of(box: Box) -> int:
    return math.prod(stop - start for start, stop in box)


def intersect(a: Box, b: Box) -> Box | None:
    """Where two boxes overlap, or None. Boxes of a 0-d array, `()`, always do.

    >>> intersect(((0, 4), (2, 8)), ((1, 9), (0, 4)))
    ((1, 4), (2, 4))
    """
    result = []
    for (a0, a1), (b0, b1) in zip(a, b, strict=True):
        start, stop = max(a0, b0), min(a1, b1)
        if start >= stop:
            return None
        result.append((start, stop))
    return tuple(result)


def relative_box(inner: Box, outer: Box) -> Box:
    """`inner` in coordinates that start at the corner of `outer`."""
    return tuple((i0 - o0, i1 - o0) for (i0, i1), (o0, _) in zip(inner, outer, strict=True))


def box_slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in box)


def box_from_index(index: Sequence[slice], shape: Shape) -> Box:
    """A box from slices with step 1, such as a sharding's `devices_indices_map` gives."""
    return tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))


def is_contiguous(box: Box, shape: Shape) -> bool:
    """Whether the elements of `box` lie back to back in a C-ordered array of `shape`."""
    partial = False
    for (start, stop), n in zip(reversed(box), reversed(shape), strict=True):
        if partial and stop - start != 1:
            return False
        if stop - start != n:
            partial = True
    return True


def box_around(start: int, stop: int, shape: Shape) -> Box:
    """The smallest box that holds elements `start` to `stop` of a C-ordered array.

    Args:
        start, stop: At least one element, within the array.
        shape: Of the array.

    >>> box_around(8, 20, (4, 2, 4)), box_around(5, 7, (4, 2, 4))
    (((1, 3), (0, 2), (0, 4)), ((0, 1), (1, 2), (1, 3)))
    """
    first, last, size = start, stop - 1, math.prod(shape)
    box: list[tuple[int, int]] = []
    together = True
    for n in shape:
        size //= n
        if not together:
            box.append((0, n))
            continue
        (a, first), (b, last) = divmod(first, size), divmod(last, size)
        box.append((a, b + 1))
        together = a == b
    return tuple(box)


def span_of(box: Box, shape: Shape, itemsize: int) -> tuple[int, int]:
    """Bytes of a C-ordered array of `shape` that cover `box`.

    Args:
        box: A box that holds at least one element, within `shape`.
        shape: Of the array.
        itemsize: Bytes per element.

    Returns:
        `(start, stop)` in bytes from the array's first: the smallest single range that holds every
        element of `box`.

    >>> span_of(((1, 2), (0, 3)), (4, 3), 4)
    (12, 24)
    """
    first = last = 0
    for (start, stop), n in zip(box, shape, strict=True):
        first = first * n + start
        last = last * n + stop - 1
    return first * itemsize, (last + 1) * itemsize
