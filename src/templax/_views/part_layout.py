"""One `From` of a rule × the shape of its sources → sizes of axes and index maps. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import ml_dtypes
import msgspec
import numpy as np

from .._catalog.entry import LeafEntry
from .._core.boxes import Shape
from .._core.dtypes import class_of
from .._core.index_map import IndexMap, MapAxis
from .axes import Dim
from .rules import From

Joined = str | int | None
"""What a part is joined along: an axis, or a dimension of the target, by its index."""


class RuleError(Exception):
    """What is wrong with a rule, and what to write instead."""


class SizeUnknown(RuleError):
    """Nothing tells the size of an axis."""


class Piece(msgspec.Struct, frozen=True, gc=False):
    """Elements of a leaf that come from one stored leaf, or that are filled in.

    Attributes:
        map: From the stored leaf to this one.
        source: The stored leaf; None if the elements are filled with `fill`.
        scale, add: See `Origin`.
        fill: What the elements are filled with.
    """

    map: IndexMap
    source: LeafEntry | None
    scale: float | None = None
    add: float | None = None
    fill: float = 0


@dataclass
class _Sizes:
    """The sizes of the axes of one part of a rule: in its source, and in its target.

    They are equal but for an axis that is cut, padded or cropped.
    """

    source: dict[str, int] = field(default_factory=dict[str, int])
    target: dict[str, int] = field(default_factory=dict[str, int])
    two: frozenset[str] = frozenset()

    def set(self, axis: str, size: int, side: str) -> None:
        if axis not in self.two or side == "source":
            self.source[axis] = size
        if axis not in self.two or side == "target":
            self.target[axis] = size


class PartLayout:
    """One `From` of a rule, for sources of one shape.

    Args:
        part: The part.
        shape: Shape of each source.
        counts: Stacked placeholder → number of sources along it.
        left, right: Dimensions of the source and of the target, as axes of this part.
    """

    def __init__(
        self,
        part: From,
        shape: Shape,
        counts: Mapping[str, int],
        left: Sequence[Dim],
        right: Sequence[Dim],
    ):
        self.part, self.shape = part, shape
        self.stacked = counts
        self.left, self.right = _expand(left, right, len(shape))
        self._slices = dict(part.slice)
        two = {*part.pad, *part.crop}
        two |= {dim[0] for dim in part.slice if len(dim) == 1}
        self.sizes = _Sizes(two=frozenset(two))
        for axis, n in counts.items():
            self.sizes.set(axis, n, "source")
            self.sizes.set(axis, n, "target")
        for axis, names in part.names.items():
            if axis in self._left_axes and (axis,) not in part.slice:  # one leaf for each name
                self.sizes.set(axis, len(names), "source")
        for axis, n in part.sizes.items():
            cut = (axis,) in part.slice
            self.sizes.set(axis, n, "source" if cut else "target")
        for dim, (start, stop) in part.slice.items():
            if len(dim) == 1:
                self.sizes.set(dim[0], stop - start, "target")
        self._of_source = [
            (dim, self._cut_length(dim, n)) for dim, n in zip(self.left, shape, strict=True)
        ]
        self._solve(self._of_source, "source")

    def _cut_length(self, dim: Dim, n: int) -> int:
        """The length of what a rule takes of a dimension of the source."""
        if len(dim) == 1 or dim not in self._slices:
            return n
        start, stop = self._slices[dim]
        if not 0 <= start <= stop <= n:
            raise RuleError(
                f"slice={{'{_spell(dim)}': ({start}, {stop})}} reaches beyond the {n} elements of"
                f" {self.part.source.text}"
            )
        return stop - start

    def measure_joined(self, joined: str | int) -> int:
        """The length of this part along what parts are joined along."""
        axes = (joined,) if isinstance(joined, str) else self.right[joined]
        return math.prod([self.sizes.target[axis] for axis in axes])

    def learn_from(self, shape: Shape, skip: Joined = None) -> None:
        """Works out sizes that the source does not tell from the shape that a template expects.

        Args:
            shape: The shape.
            skip: An axis, or a dimension, along which this part is only some of the leaf.
        """
        if len(shape) != len(self.right):
            return
        known = [
            (dim, n)
            for d, (dim, n) in enumerate(zip(self.right, shape, strict=True))
            if skip != d and skip not in dim
        ]
        self._solve(known, "target", lenient=True)
        self._solve(self._of_source, "source", lenient=True)

    def learn_joined(self, shape: Shape, joined: str, others: int) -> None:
        """Works out the size of a joined axis: what the other parts leave of the dimension."""
        if len(shape) != len(self.right):
            return
        for dim, n in zip(self.right, shape, strict=True):
            if joined in dim:
                beside = [self.sizes.target.get(axis) for axis in dim if axis != joined]
                known = math.prod([size for size in beside if size is not None])
                if None not in beside and known and n % known == 0 and n // known > others:
                    self.sizes.set(joined, n // known - others, "target")

    def _solve(
        self, equations: Sequence[tuple[Dim, int]], side: str, lenient: bool = False
    ) -> None:
        """Works out sizes from dimensions of which one axis is not known yet.

        Args:
            equations: Dimensions and their lengths.
            side: "source" or "target".
            lenient: Whether a length that does not fit is left to `finish`, or to the match.
        """
        pending = list(equations)
        progress = True
        while pending and progress:
            progress = False
            for dim, n in list(pending):
                sizes = self.sizes.source if side == "source" else self.sizes.target
                unknown = [axis for axis in dim if axis not in sizes]
                if len(unknown) > 1:
                    continue
                known = math.prod([sizes[axis] for axis in dim if axis in sizes])
                pending.remove((dim, n))
                progress = True
                if not unknown:
                    if known != n and not lenient:
                        raise RuleError(self._describe_length(dim, n, known))
                elif known and n % known == 0:
                    self.sizes.set(unknown[0], n // known, side)
                elif known and not lenient:
                    raise RuleError(
                        f"`{_spell(dim)}` has {n} elements, which {known} does not divide:"
                        f" check the sizes {self._spell_sizes(dim)}"
                    )

    def _describe_length(self, dim: Dim, n: int, known: int) -> str:
        return (
            f"Expected {known} elements along `{_spell(dim)}`, {self.part.source.text} has {n}:"
            f" check the sizes {self._spell_sizes(dim)}"
        )

    def _spell_sizes(self, dim: Dim) -> str:
        sizes = {**self.sizes.target, **self.sizes.source}
        return ", ".join(f"{axis}={sizes.get(axis, '?')}" for axis in dim)

    def finish(self) -> None:
        """Checks that all sizes are known, and that cuts lie within the source."""
        source, target = self.sizes.source, self.sizes.target
        for axis in {*self.part.pad, *self.part.crop}:
            if axis in source and axis not in target:
                raise SizeUnknown(
                    f"the new size of `{axis}` is not known without a template: give {axis}=N"
                )
        for dim, n in self._of_source:
            taken = math.prod([source.get(axis, 0) for axis in dim])
            if all(axis in source for axis in dim) and taken != n:
                raise RuleError(self._describe_length(dim, n, taken))
        axes = {axis for dim in (*self.left, *self.right) for axis in dim}
        missing = sorted(
            axis
            for axis in axes
            if (axis not in source and axis in self._left_axes)
            or (axis not in target and axis in self._right_axes)
        )
        if missing:
            raise SizeUnknown(
                f"the shape {self.shape} does not tell the size of"
                f" {' and '.join(f'`{axis}`' for axis in missing)}: give"
                f" {' or '.join(f'{axis}=N' for axis in missing)}"
            )
        for dim, (start, stop) in self.part.slice.items():
            if len(dim) == 1 and not 0 <= start <= stop <= source[dim[0]]:
                raise RuleError(
                    f"slice={{'{dim[0]}': ({start}, {stop})}} reaches beyond its"
                    f" {source[dim[0]]} elements"
                )
        for axis, index in self.part.select.items():
            if not 0 <= index < self.count_taken(axis):
                raise RuleError(
                    f"select={{'{axis}': {index}}} reaches beyond its {self.count_taken(axis)}"
                    " elements"
                )
        for axis in self.sizes.two:
            if (axis,) in self.part.slice:
                continue
            if target[axis] > source[axis] and axis not in self.part.pad:
                raise RuleError(
                    f"`{axis}` grows from {source[axis]} to {target[axis]}: allow it with"
                    f' pad="{axis}"'
                )
            if target[axis] < source[axis] and axis not in self.part.crop:
                raise RuleError(
                    f"`{axis}` shrinks from {source[axis]} to {target[axis]}: allow it with"
                    f' crop="{axis}"'
                )

    def count_taken(self, axis: str) -> int:
        """The number of elements that a rule takes of an axis of the source."""
        if (axis,) in self.part.slice:
            start, stop = self.part.slice[(axis,)]
            return stop - start
        return self.sizes.source[axis]

    def explain_size(self, axis: str, want: int) -> list[tuple[str, str]] | None:
        """What to write so that an axis of the target has another size; None if nothing does.

        Returns:
            Arguments of `From`: `pad` and `crop` with this axis, `slice` with its item, others with
            their values.
        """
        part = self.part
        if axis not in self._left_axes:
            # The number of leaves that are stacked is what it is.
            return [(axis, f"{want}")] if want and axis in part.sizes else None
        there = self.sizes.source[axis]
        if (axis,) in part.slice:
            start = self._find_start(axis)
            fits = want and start + want <= there
            return [("slice", f"'{axis}': ({start}, {start + want})")] if fits else None
        changes: list[tuple[str, str]] = []
        if want > there and axis not in part.pad:
            changes.append(("pad", axis))
        if want < there and axis not in part.crop:
            changes.append(("crop", axis))
        if axis in part.sizes and want:
            changes.append((axis, f"{want}"))
        return changes or None

    def _find_start(self, axis: str) -> int:
        """The first element that a rule takes of an axis of the source."""
        return self.part.slice[(axis,)][0] if (axis,) in self.part.slice else 0

    @property
    def _left_axes(self) -> set[str]:
        return {axis for dim in self.left for axis in dim}

    @property
    def _right_axes(self) -> set[str]:
        return {axis for dim in self.right for axis in dim}

    def target_shape(self, total: Mapping[str | int, int]) -> Shape:
        """The shape of the target.

        Args:
            total: The joined axis or dimension → its size in the target.
        """
        sizes = {**self.sizes.target, **total}
        return tuple(
            total.get(d, math.prod([sizes[axis] for axis in dim]))
            for d, dim in enumerate(self.right)
        )

    def list_maps(
        self,
        stacked: Mapping[str, int],
        unstacked: Mapping[str, int],
        offsets: Mapping[str | int, int],
        total: Mapping[str | int, int],
    ) -> Iterator[tuple[IndexMap, float | None]]:
        """The index maps from one source, and what is filled in beside it.

        Args:
            stacked: Stacked placeholder → the position of this source.
            unstacked: Placeholder of the target → the index that this target takes.
            offsets: The joined axis or dimension → where this part begins.
            total: The joined axis or dimension → its size in the target.

        Returns:
            Index maps with None, or with the value to fill with.
        """
        part, source, target = self.part, self.sizes.source, self.sizes.target
        source_step: dict[str, tuple[int, int]] = {}
        source_start = [0] * len(self.left)
        for d, dim in enumerate(self.left):
            step = 1
            for axis in reversed(dim):
                source_step[axis] = d, step
                step *= source[axis]
            if len(dim) > 1 and dim in self._slices:
                source_start[d] += self._slices[dim][0]
        for axis, index in {**part.select, **unstacked}.items():
            d, step = source_step.pop(axis)
            at = self.count_taken(axis) - 1 - index if axis in part.flip else index
            source_start[d] += (self._find_start(axis) + at) * step
        target_step: dict[str, tuple[int, int]] = {}
        target_start = [0] * len(self.right)
        for d, dim in enumerate(self.right):
            step = 1
            for axis in reversed(dim):
                target_step[axis] = d, step
                step *= total.get(axis, target[axis])
        for axis, index in [*stacked.items(), *offsets.items()]:  # one axis may be in both
            d, step = target_step[axis] if isinstance(axis, str) else (axis, 1)
            target_start[d] += index * step
        axes: list[MapAxis] = []
        names: list[str] = []
        for axis in [axis for dim in self.right for axis in dim]:
            if axis in stacked:
                continue
            to = target_step[axis]
            n = target[axis]
            by = source_step.get(axis)
            if by is not None:
                d, step = by
                first = self._find_start(axis)
                n = min(n, source[axis] - first)
                if axis in part.flip:
                    source_start[d] += (first + n - 1) * step
                    by = d, -step
                else:
                    source_start[d] += first * step
            axes.append(MapAxis(n, by, to))
            names.append(axis)
        whole = IndexMap(tuple(axes), tuple(source_start), tuple(target_start))
        if whole.size:
            yield _drop_units(whole), None
        yield from self._list_fills(whole, names)

    def _list_fills(
        self, whole: IndexMap, names: Sequence[str]
    ) -> Iterator[tuple[IndexMap, float]]:
        """What is filled in at the ends of axes that grow, one axis after the other."""
        sizes = [axis.size for axis in whole.axes]
        full = [self.sizes.target[name] for name in names]
        for k, name in enumerate(names):
            if name not in self.part.pad or sizes[k] == full[k]:
                continue
            ranges = [
                (0, sizes[i]) if i > k and names[i] in self.part.pad else (0, full[i])
                for i in range(len(names))
            ]
            ranges[k] = sizes[k], full[k]
            axes = tuple(
                MapAxis(n, None, axis.target) for n, axis in zip(full, whole.axes, strict=True)
            )
            grown = IndexMap(axes, (), whole.target).restrict(tuple(ranges))
            if grown.size:
                yield grown, self.part.pad[name]


def check_fill(value: float, dtype: np.dtype) -> None:
    """Refuses a value to fill with that a dtype would wrap, cut off or make infinite."""
    kind = class_of(dtype)
    if kind == "int":
        info = ml_dtypes.iinfo(dtype)
        fits = int(info.min) <= value <= int(info.max) and value == int(value)
    elif kind in ("float", "complex"):
        info = ml_dtypes.finfo(dtype)
        fits = float(info.min) <= value <= float(info.max)
        if math.isinf(value):
            fits = bool(np.isinf(np.array(value).astype(dtype)))
    else:
        fits = value in (0, 1)
    if not fits:
        raise RuleError(f"pad= fills with {value}, which {dtype.name} can't hold: give another")


def _drop_units(map: IndexMap) -> IndexMap:
    """The same map without axes of a single index."""
    if all(axis.size != 1 for axis in map.axes):
        return map
    return map.restrict(tuple((0, axis.size) for axis in map.axes))


def _expand(
    left: Sequence[Dim], right: Sequence[Dim], rank: int
) -> tuple[tuple[Dim, ...], tuple[Dim, ...]]:
    """Both sides with axes in place of the ellipsis."""
    if ("...",) not in left:
        if len(left) != rank:
            raise RuleError(
                f"the axes name {len(left)} dimensions, the source has {rank}: name each, or write"
                " `...` for the rest"
            )
        return tuple(left), tuple(right)
    n = rank - len(left) + 1
    if n < 0:
        raise RuleError(
            f"the axes name {len(left) - 1} dimensions and more, the source has only {rank}"
        )
    rest = [(f"...{i}",) for i in range(n)]

    def fill(dims: Sequence[Dim]) -> tuple[Dim, ...]:
        return tuple(
            itertools.chain.from_iterable(rest if dim == ("...",) else (dim,) for dim in dims)
        )

    return fill(left), fill(right)


def _spell(dim: Dim) -> str:
    return dim[0] if len(dim) == 1 else f"({' '.join(dim)})"
