"""Box arithmetic. A box is one half-open index range per dimension, in elements."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

Shape = tuple[int, ...]

Box = tuple[tuple[int, int], ...]


@functools.lru_cache(maxsize=4096)
def full_box(shape: Shape) -> Box:
    """The box that covers a whole array.

    >>> full_box((2, 3))
    ((0, 2), (0, 3))
    """
    return tuple((0, n) for n in shape)


def shape_of(box: Box) -> Shape:
    """The length of a box along each dimension."""
    return tuple(stop - start for start, stop in box)


MAX_RANK = 32
"""Maximum number of dimensions of an array: the limit of numpy 1 and TensorStore."""

MAX_NBYTES = 2**63 - 1
"""Maximum size of an array, in bytes."""


def fits_address_space(shape: Shape, itemsize: int) -> bool:
    """Whether numpy can create an array of this shape. Cheap even if the shape is absurd.

    numpy multiplies only the dimensions that are not 0, so even an empty array can be too large.

    >>> [fits_address_space(shape, 4) for shape in [(0, 2**62), (0, 5), (1,) * 33]]
    [False, True, False]
    """
    if len(shape) > MAX_RANK or not all(0 <= n <= MAX_NBYTES for n in shape):
        return False
    return math.prod([n for n in shape if n]) * itemsize <= MAX_NBYTES


def format_number(n: int) -> str:
    """Formats a number from a file for an error: Python refuses to print thousands of digits."""
    return str(n) if abs(n) <= 10**30 else "over 10**30" if n > 0 else "under -10**30"


def format_shape(shape: Sequence[int]) -> str:
    """Formats a shape from a file for an error: it may have any number of dimensions of any size.

    >>> format_shape((2, 3)), format_shape([7] * 10**6)
    ('(2, 3)', '(7, 7, 7, 7, ... 999996 more)')
    """
    shown = shape if len(shape) <= MAX_RANK else shape[:4]
    sizes = [format_number(n) for n in shown]
    if len(shown) < len(shape):
        sizes.append(f"... {len(shape) - len(shown)} more")
    return f"({sizes[0]},)" if len(sizes) == 1 else f"({', '.join(sizes)})"


def size_of(box: Box) -> int:
    """The number of elements in a box."""
    return math.prod(stop - start for start, stop in box)


def intersect(a: Box, b: Box) -> Box | None:
    """The overlap of two boxes, or None. Boxes of a 0-d array, `()`, always overlap.

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


def contains(outer: Box, inner: Box) -> bool:
    """Whether `inner`, which may be empty, lies in `outer`.

    >>> contains(((0, 4), (2, 8)), ((1, 4), (2, 2))), contains(((0, 4),), ((3, 5),))
    (True, False)
    """
    return all(o0 <= i0 and i1 <= o1 for (i0, i1), (o0, o1) in zip(inner, outer, strict=True))


def relative_box(inner: Box, outer: Box) -> Box:
    """`inner` in coordinates relative to the first corner of `outer`.

    >>> relative_box(((3, 5),), ((2, 8),))
    ((1, 3),)
    """
    return tuple((i0 - o0, i1 - o0) for (i0, i1), (o0, _) in zip(inner, outer, strict=True))


def box_slices(box: Box) -> tuple[slice, ...]:
    """A box as an index: `array[box_slices(box)]` is the part of `array` inside the box."""
    return tuple(slice(start, stop) for start, stop in box)


def box_from_index(index: Sequence[slice], shape: Shape) -> Box:
    """A box from slices with step 1, such as those of a sharding's `devices_indices_map`."""
    return tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))


def is_contiguous(box: Box, shape: Shape) -> bool:
    """Whether the elements of `box` are contiguous in a C-ordered array of `shape`."""
    # From the innermost dimension outwards: once a dimension is not covered completely, all those
    # outside it must have length 1.
    partial = False
    for (start, stop), n in zip(reversed(box), reversed(shape), strict=True):
        if partial and stop - start != 1:
            return False
        if stop - start != n:
            partial = True
    return True


def box_around(start: int, stop: int, shape: Shape) -> Box:
    """The smallest box that contains elements `start` to `stop` of a C-ordered array.

    Args:
        start, stop: Half-open range of flat indices, not empty and within the array.
        shape: Shape of the array.

    >>> box_around(8, 20, (4, 2, 4)), box_around(5, 7, (4, 2, 4))
    (((1, 3), (0, 2), (0, 4)), ((0, 1), (1, 2), (1, 3)))
    """
    first, last, size = start, stop - 1, math.prod(shape)
    box: list[tuple[int, int]] = []
    same_index = True  # the first and last element agree in all dimensions so far
    for n in shape:
        size //= n
        if not same_index:
            box.append((0, n))
            continue
        (a, first), (b, last) = divmod(first, size), divmod(last, size)
        box.append((a, b + 1))
        same_index = a == b
    return tuple(box)


def split_range(start: int, stop: int, shape: Shape) -> Iterator[Box]:
    """Splits a range of a C-ordered array into boxes, each of which is contiguous in it.

    Args:
        start, stop: Half-open range of flat indices, not empty and within the array.
        shape: Shape of the array.

    Returns:
        The boxes in the order of their elements: at most two for each dimension, and one more.

    >>> list(split_range(3, 11, (3, 4)))
    [((0, 1), (3, 4)), ((1, 2), (0, 4)), ((2, 3), (0, 3))]
    """
    if not shape:
        yield ()
        return
    row = math.prod(shape[1:])
    (first, head), (last, tail) = divmod(start, row), divmod(stop, row)
    if head:
        end = tail if first == last else row
        for box in split_range(head, end, shape[1:]):
            yield ((first, first + 1), *box)
        if first == last:
            return
        first += 1
    if first < last:
        yield ((first, last), *full_box(shape[1:]))
    if tail:
        for box in split_range(0, tail, shape[1:]):
            yield ((last, last + 1), *box)


def span_of(box: Box, shape: Shape, itemsize: int) -> tuple[int, int]:
    """The byte range of a C-ordered array that covers `box`.

    Args:
        box: A box within `shape` that contains at least one element.
        shape: Shape of the array.
        itemsize: Bytes per element.

    Returns:
        `(start, stop)`, relative to the first byte of the array: the smallest single range that
        contains every element of `box`.

    >>> span_of(((1, 2), (0, 3)), (4, 3), 4)
    (12, 24)
    """
    first = last = 0
    for (start, stop), n in zip(box, shape, strict=True):
        first = first * n + start
        last = last * n + stop - 1
    return first * itemsize, (last + 1) * itemsize
