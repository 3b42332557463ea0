"""One rule × the shapes of its sources → the pieces of the leaves that it makes. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from .._catalog.entry import LeafEntry
from .._core.boxes import Shape
from .._core.index_map import IndexMap
from .axes import Dim
from .expressions import Expression
from .part_layout import PartLayout, Piece, RuleError
from .rules import Concat, From

Stack = dict[tuple[int, ...], LeafEntry]
"""The sources of a leaf by their position along each stacked placeholder."""


class RuleLayout:
    """The pieces of the leaves that a rule makes of sources of certain shapes.

    Attributes:
        shape: Of each leaf.
        counts: Placeholder that only the target's name has → number of leaves along it.
    """

    def __init__(
        self,
        rule: From | Concat,
        parts: Sequence[From],
        shapes: Sequence[Shape],
        counts: Sequence[Mapping[str, int]],
        expected: Shape | None,
        unstacked: Sequence[str],
    ):
        self._layouts: list[PartLayout] = []
        self._joined: list[str | None] = []
        for part, shape, stacked in zip(parts, shapes, counts, strict=True):
            left, right, joined = _list_dims(rule, part, len(shape))
            self._layouts.append(PartLayout(part, shape, stacked, left, right))
            self._joined.append(joined)
        if expected is not None:
            self._learn(expected)
        for layout in self._layouts:
            layout.finish()
        lengths = [
            0 if joined is None else layout.sizes.target[joined]
            for layout, joined in zip(self._layouts, self._joined, strict=True)
        ]
        self._offsets = [0, *itertools.accumulate(lengths)]
        shapes_made = [
            layout.target_shape(self._total(joined))
            for layout, joined in zip(self._layouts, self._joined, strict=True)
        ]
        self.shape = shapes_made[0]
        for part, made in zip(parts, shapes_made, strict=True):
            if made != self.shape:
                raise RuleError(
                    f"`{part.source.text}` gives the shape {made}, `{parts[0].source.text}` gives"
                    f" {self.shape}: parts differ along the joined axis only"
                )
        self.counts = {p: self._layouts[0].count_taken(p) for p in unstacked}
        self._steps = [_compute_step(layout) for layout in self._layouts]
        self._maps: dict[object, list[tuple[IndexMap, float | None]]] = {}

    def _total(self, joined: str | None) -> dict[str, int]:
        return {} if joined is None else {joined: self._offsets[-1]}

    def _learn(self, expected: Shape) -> None:
        """Works out sizes from the shape that is expected."""
        if self._joined[0] is None:
            self._layouts[0].learn_from(expected)
            return
        # Along the joined axis only the sum is known: all other dimensions tell sizes, and this
        # one does if a single part lacks its size.
        for layout, joined in zip(self._layouts, self._joined, strict=True):
            layout.learn_from(expected, skip=joined)
        unknown = [
            (layout, joined)
            for layout, joined in zip(self._layouts, self._joined, strict=True)
            if joined is not None and joined not in layout.sizes.target
        ]
        if len(unknown) == 1:
            layout, joined = unknown[0]
            known = sum(
                other.sizes.target[axis]
                for other, axis in zip(self._layouts, self._joined, strict=True)
                if axis is not None and other is not layout
            )
            layout.learn_joined(expected, joined, known)

    def explain(self, expected: Shape) -> str | None:
        """What to write so that the leaf gets another shape, if that takes a word only."""
        if self._joined[0] is not None or len(expected) != len(self.shape):
            return None
        advice: list[str] = []
        for dim, n, want in zip(self._layouts[0].right, self.shape, expected, strict=True):
            if n != want and len(dim) != 1:
                return None
            if n != want:
                advice.append(f'{"pad" if want > n else "crop"}="{dim[0]}"')
        return f"{', '.join(advice)} in its rule would make it {expected}" if advice else None

    def make_pieces(self, at: Mapping[str, int], found: Sequence[Stack]) -> Iterator[Piece]:
        """The pieces of a leaf.

        Args:
            at: The index of the leaf along each placeholder that only the target's name has.
            found: The sources of each part.
        """
        for k, (layout, sources) in enumerate(zip(self._layouts, found, strict=True)):
            joined, (scale, add) = self._joined[k], self._steps[k]
            for position, entry in sources.items():
                key = (k, position, *at.items())
                maps = self._maps.get(key)
                if maps is None:
                    offsets = {} if joined is None else {joined: self._offsets[k]}
                    maps = self._maps[key] = list(
                        layout.list_maps(
                            dict(zip(layout.stacked, position, strict=True)),
                            at,
                            offsets,
                            self._total(joined),
                        )
                    )
                for map, fill in maps:
                    if fill is None:
                        yield Piece(map, entry, scale, add)
                    else:
                        yield Piece(map, None, fill=fill)


def _compute_step(layout: PartLayout) -> tuple[float | None, float | None]:
    """The factor and the summand of a part."""
    sizes = {**layout.sizes.source, **layout.sizes.target}
    part = layout.part
    return _evaluate(part.scale, sizes), _evaluate(part.add, sizes)


def _evaluate(expression: Expression | None, sizes: Mapping[str, int]) -> float | None:
    if expression is None:
        return None
    try:
        value = expression.evaluate(sizes)
    except ValueError as error:
        raise RuleError(str(error)) from error
    with np.errstate(all="ignore"):
        rounded = float(np.float32(value))
    if math.isinf(rounded) or (value and not rounded):
        raise RuleError(
            f"`{expression.text}` is {value:.6g}, which float32 can't hold: give another"
        )
    return value


def _list_dims(
    rule: From | Concat, part: From, rank: int
) -> tuple[Sequence[Dim], Sequence[Dim], str | None]:
    """The dimensions of a part's source and target, as its axes, and the axis that is joined."""
    if isinstance(rule, From):
        if part.axes is None:  # computed in place
            dims = [(f"_{i}",) for i in range(rank)]
            return dims, dims, None
        return part.axes.left, part.axes.right, None
    dims, joined = rule.axes.dims, rule.axes.joined
    if part.axes is None:
        return dims, dims, joined
    mine = [axis for dim in part.axes.right for axis in dim]
    theirs = [axis for dim in dims for axis in dim]
    if sorted(mine) == sorted(theirs):
        return part.axes.left, dims, joined
    called = dict(zip(theirs, mine, strict=True))
    return part.axes.left, [tuple(called[axis] for axis in dim) for dim in dims], called[joined]
