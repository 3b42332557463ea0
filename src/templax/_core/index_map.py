"""Index maps: which element of one array is which element of another.

An index map says for a set of indices `e`, one for each of its axes, which elements of a source and
of a target they stand for. In each dimension of either array the index is a constant plus a step
for each axis, as when dimensions are split, merged, transposed, stacked or reversed. The elements
of a box of the target that lie in a box of the source are then a few boxes of `e`, and each of
these is one copy between two strided arrays.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from .boxes import Box, Shape


class MapAxis(msgspec.Struct, frozen=True, gc=False):
    """One of the axes of an index map.

    Attributes:
        size: Number of its indices.
        source: Dimension of the source and step in it (negative if reversed). None if the same
            elements of the source serve for all indices.
        target: Dimension of the target and step in it, which is positive.
    """

    size: int
    source: tuple[int, int] | None
    target: tuple[int, int]


class StridedCopy(msgspec.Struct, frozen=True, gc=False):
    """A copy between two strided arrays. Everything is in elements.

    Attributes:
        buffer: Index of the buffer in the batch.
        shape: Of both, dimensions ordered by their step in the target; equal to `(n,)` with steps
            of 1 if both are contiguous.
        src: The first element in the source.
        src_strides: Steps in the source: negative where it is reversed, 0 where it is repeated.
        dst, dst_strides: Likewise in the target.
    """

    buffer: int
    shape: Shape
    src: int
    src_strides: Shape
    dst: int
    dst_strides: Shape

    @property
    def src_span(self) -> tuple[int, int]:
        """The first element of the source that is needed, and the one after the last."""
        ends = [(n - 1) * s for n, s in zip(self.shape, self.src_strides, strict=True)]
        low = self.src + sum(end for end in ends if end < 0)
        return low, self.src + sum(end for end in ends if end > 0) + 1

    @property
    def is_contiguous(self) -> bool:
        """Whether it copies a run of neighbours to a run of neighbours."""
        return self.shape == () or self.src_strides == self.dst_strides == (1,)


def span_copies(copies: Sequence[StridedCopy]) -> tuple[int, int]:
    """The smallest range of elements of the source that contains those of all copies."""
    spans = [copy.src_span for copy in copies]
    return min(start for start, _ in spans), max(stop for _, stop in spans)


class IndexMap(msgspec.Struct, frozen=True, gc=False):
    """A set of pairs of elements: of a source, and of a target.

    In each dimension the steps of the axes are nested: a step is at least as long as all the axes
    with smaller steps reach together.

    Attributes:
        axes: Its axes; it has an element for each combination of their indices.
        source: The constant part of the index in each dimension of the source.
        target: Likewise of the target.

    >>> axes = MapAxis(2, (0, 1), (1, 1)), MapAxis(3, (1, 1), (0, 1))
    >>> transpose = IndexMap(axes, (0, 0), (0, 0))
    >>> transpose.split_target(((0, 2), (0, 2)))
    [((0, 2), (0, 2))]
    """

    axes: tuple[MapAxis, ...]
    source: Shape
    target: Shape

    @property
    def size(self) -> int:
        """Number of pairs of elements."""
        return math.prod([axis.size for axis in self.axes])

    def split_source(self, box: Box) -> list[Box]:
        """The pairs whose source lies in a box of the source, as boxes of `e`."""
        return self._split([axis.source for axis in self.axes], self.source, box)

    def split_target(self, box: Box) -> list[Box]:
        """The pairs whose target lies in a box of the target, as boxes of `e`."""
        return self._split([axis.target for axis in self.axes], self.target, box)

    def _split(self, steps: Sequence[tuple[int, int] | None], starts: Shape, box: Box) -> list[Box]:
        whole = [(0, axis.size) for axis in self.axes]
        least, most = list(starts), list(starts)  # what the map reaches in each dimension
        for axis, step in zip(self.axes, steps, strict=True):
            if step is not None:
                dim, by = step
                ends = most if by > 0 else least
                ends[dim] += by * (axis.size - 1)
        choices: list[list[dict[int, tuple[int, int]]]] = []
        for dim, (low, high) in enumerate(box):
            if low <= least[dim] and most[dim] < high:
                continue
            nested = [
                (i, step[1], self.axes[i].size)
                for i, step in enumerate(steps)
                if step is not None and step[0] == dim
            ]
            nested.sort(key=lambda axis: -abs(axis[1]))
            found = list(_split_range(nested, low - starts[dim], high - starts[dim]))
            if not found:
                return []
            choices.append(found)
        boxes: list[Box] = []
        for chosen in itertools.product(*choices):
            ranges = list(whole)
            for each in chosen:
                for i, r in each.items():
                    ranges[i] = r
            boxes.append(tuple(ranges))
        return boxes

    def restrict(self, box: Box) -> IndexMap:
        """The pairs in a box of `e`, as an index map of their own."""
        source, target = list(self.source), list(self.target)
        axes: list[MapAxis] = []
        for axis, (first, last) in zip(self.axes, box, strict=True):
            target[axis.target[0]] += first * axis.target[1]
            if axis.source is not None:
                source[axis.source[0]] += first * axis.source[1]
            if last - first != 1:
                axes.append(MapAxis(last - first, axis.source, axis.target))
        return IndexMap(tuple(axes), tuple(source), tuple(target))

    def bound_target(self, box: Box) -> Box:
        """The smallest box of the target around the pairs of a box of `e`."""
        lows, highs = list(self.target), [start + 1 for start in self.target]
        for (first, last), axis in zip(box, self.axes, strict=True):
            dim, step = axis.target
            lows[dim] += first * step
            highs[dim] += (last - 1) * step
        return tuple(zip(lows, highs, strict=True))

    def make_copy(
        self,
        box: Box,
        source: Box,
        source_strides: Sequence[int],
        target: Box,
        target_strides: Sequence[int],
        buffer: int = 0,
    ) -> StridedCopy:
        """The copy of the pairs in a box of `e`.

        Args:
            box: Not empty.
            source: The box that the memory copied from holds.
            source_strides: Steps of its dimensions, in elements.
            target, target_strides: Likewise for the memory copied to.
            buffer: See `StridedCopy`.
        """
        src = _dot(self.source, source, source_strides)
        dst = _dot(self.target, target, target_strides)
        dims: list[tuple[int, int, int]] = []
        for axis, (first, last) in zip(self.axes, box, strict=True):
            dim, step = axis.target
            to = step * target_strides[dim]
            dim, step = axis.source or (0, 0)
            by = step * source_strides[dim] if step else 0
            src += first * by
            dst += first * to
            if last - first > 1:
                dims.append((last - first, by, to))
        shape, src_strides, dst_strides = merge_dims(dims)
        return StridedCopy(buffer, shape, src, src_strides, dst, dst_strides)


def _dot(starts: Shape, box: Box, strides: Sequence[int]) -> int:
    return sum(
        (start - low) * stride for start, (low, _), stride in zip(starts, box, strides, strict=True)
    )


def merge_dims(dims: Iterable[tuple[int, int, int]]) -> tuple[Shape, Shape, Shape]:
    """Orders dimensions by their step in the target, and merges those that are contiguous in both.

    Args:
        dims: For each: its length, its step in the source, and in the target.

    Returns:
        The shape, and the strides in the source and in the target.

    >>> merge_dims([(3, 8, 8), (2, 4, 4), (4, 1, 1)])
    ((24,), (1,), (1,))
    """
    shape: list[int] = []
    src: list[int] = []
    dst: list[int] = []
    for n, by, to in sorted(dims, key=lambda dim: -dim[2]):
        if shape and src[-1] == n * by and dst[-1] == n * to:
            shape[-1] *= n
            src[-1], dst[-1] = by, to
        else:
            shape.append(n)
            src.append(by)
            dst.append(to)
    return tuple(shape), tuple(src), tuple(dst)


def _split_range(
    axes: Sequence[tuple[int, int, int]], low: int, high: int
) -> Iterator[dict[int, tuple[int, int]]]:
    """The combinations of indices whose sum of steps lies in a range, as boxes.

    Args:
        axes: For each its number, its step and its size; nested, the longest step first.
        low, high: Half-open range.

    Returns:
        Boxes that do not overlap: number → range. At most two for each axis, and one more.
    """
    if low >= high:
        return
    if not axes:
        if low <= 0 < high:
            yield {}
        return
    (number, step, size), inner = axes[0], axes[1:]
    if step < 0:  # the same with the indices counted from the end
        end = step * (size - 1)
        for found in _split_range([(number, -step, size), *inner], low - end, high - end):
            first, last = found[number]
            yield {**found, number: (size - last, size - first)}
        return
    least = sum((n - 1) * s for _, s, n in inner if s < 0)
    most = sum((n - 1) * s for _, s, n in inner if s > 0)
    # Indices with all that is inside in the range; those with a part of it are beside these.
    first = max(0, -((least - low) // step))
    last = min(size, (high - 1 - most) // step + 1)
    touched = max(0, -((most - low) // step)), min(size, (high - 1 - least) // step + 1)
    if first < last:
        yield {number: (first, last)} | {i: (0, n) for i, _, n in inner}
    else:
        first = last = touched[1]
    for at in (*range(touched[0], first), *range(last, touched[1])):
        for found in _split_range(inner, low - at * step, high - at * step):
            yield {number: (at, at + 1)} | found


def strides_of(shape: Sequence[int], order: str = "C") -> Shape:
    """The steps, in elements, of the dimensions of an array in C or Fortran order.

    >>> strides_of((2, 3, 4)), strides_of((2, 3, 4), "F")
    ((12, 4, 1), (1, 2, 6))
    """
    strides: list[int] = []
    step = 1
    for n in reversed(shape) if order == "C" else shape:
        strides.append(step)
        step *= n
    return tuple(reversed(strides)) if order == "C" else tuple(strides)
