"""One rule × the shapes of its sources → the pieces of the leaves that it makes. Pure."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from .._catalog.entry import LeafEntry
from .._core.boxes import Shape
from .._core.index_map import IndexMap
from .axes import ELLIPSIS, Dim, flatten_dims
from .expressions import Expression
from .part_layout import Joined, PartLayout, Piece, RuleError
from .rules import Concat, From

Stack = dict[tuple[int, ...], LeafEntry]
"""The sources of a leaf by their position along each stacked placeholder."""


class RuleLayout:
    """The pieces of the leaves that a rule makes of sources of certain shapes.

    Attributes:
        shape: Of each leaf.
        counts: Placeholder that only the target's name has → number of leaves along it.
        parts: The sources, each with the sizes of its axes.
        joined: What each part is joined along; None if there is only one.
        offsets: Where each part begins along that, and where the last one ends.
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
        self.parts: list[PartLayout] = []
        self.joined: list[Joined] = []
        for part, shape, stacked in zip(parts, shapes, counts, strict=True):
            left, right, joined = list_dims(rule, part, len(shape))
            self.parts.append(PartLayout(part, shape, stacked, left, right))
            self.joined.append(joined)
        if expected is not None:
            self._learn(expected)
        for layout in self.parts:
            layout.finish()
        lengths = [
            0 if joined is None else layout.measure_joined(joined)
            for layout, joined in zip(self.parts, self.joined, strict=True)
        ]
        self.offsets = [0, *itertools.accumulate(lengths)]
        shapes_made = [
            layout.target_shape(self._total(joined))
            for layout, joined in zip(self.parts, self.joined, strict=True)
        ]
        self.shape = shapes_made[0]
        for part, made in zip(parts, shapes_made, strict=True):
            if made != self.shape:
                raise RuleError(
                    f"`{part.source.text}` gives the shape {made}, `{parts[0].source.text}` gives"
                    f" {self.shape}: parts differ along the joined axis only"
                )
        self.counts = {p: self.parts[0].count_taken(p) for p in unstacked}
        self._steps = [_compute_step(layout) for layout in self.parts]
        self._maps: dict[object, list[tuple[IndexMap, float | None]]] = {}

    def _total(self, joined: Joined) -> dict[str | int, int]:
        return {} if joined is None else {joined: self.offsets[-1]}

    def _learn(self, expected: Shape) -> None:
        """Works out sizes from the shape that is expected."""
        if self.joined[0] is None:
            self.parts[0].learn_from(expected)
            return
        # Along the joined axis only the sum is known: all other dimensions tell sizes, and this
        # one does if a single part lacks its size.
        for layout, joined in zip(self.parts, self.joined, strict=True):
            layout.learn_from(expected, skip=joined)
        unknown = [
            (layout, joined)
            for layout, joined in zip(self.parts, self.joined, strict=True)
            if isinstance(joined, str) and joined not in layout.sizes.target
        ]
        if len(unknown) == 1:
            layout, joined = unknown[0]
            known = sum(
                other.measure_joined(axis)
                for other, axis in zip(self.parts, self.joined, strict=True)
                if axis is not None and other is not layout
            )
            layout.learn_joined(expected, joined, known)

    def explain(self, expected: Shape) -> str | None:
        """What to write so that the leaf gets another shape, if that takes a word only."""
        if self.joined[0] is not None or len(expected) != len(self.shape):
            return None
        advice: dict[str, list[str]] = {}
        for dim, n, want in zip(self.parts[0].right, self.shape, expected, strict=True):
            if n == want:
                continue
            changes = self.parts[0].explain_size(dim[0], want) if len(dim) == 1 else None
            if changes is None:
                return None
            for option, value in changes:
                advice.setdefault(option, []).append(value)
        words = [f"{option}={_spell_advice(option, given)}" for option, given in advice.items()]
        return f"{', '.join(words)} in its rule would make it {expected}" if words else None

    def make_pieces(self, at: Mapping[str, int], found: Sequence[Stack]) -> Iterator[Piece]:
        """The pieces of a leaf.

        Args:
            at: The index of the leaf along each placeholder that only the target's name has.
            found: The sources of each part.
        """
        for k, (layout, sources) in enumerate(zip(self.parts, found, strict=True)):
            joined, (scale, add) = self.joined[k], self._steps[k]
            for position, entry in sources.items():
                key = (k, position, *at.items())
                maps = self._maps.get(key)
                if maps is None:
                    offsets = {} if joined is None else {joined: self.offsets[k]}
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


def _spell_advice(option: str, given: Sequence[str]) -> str:
    if option == "slice":
        return f"{{{', '.join(given)}}}"
    if option not in ("pad", "crop"):
        return given[0]
    return json.dumps(given[0] if len(given) == 1 else given)


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


def list_dims(
    rule: From | Concat, part: From, rank: int
) -> tuple[Sequence[Dim], Sequence[Dim], Joined]:
    """The dimensions of a part's source and target, as its axes, and what it is joined along."""
    if isinstance(rule, From):
        if part.axes is None:  # computed in place
            dims = [(f"_{i}",) for i in range(rank)]
            return dims, dims, None
        return part.axes.left, part.axes.right, None
    dims, joined = rule.axes.dims, rule.axes.joined
    if part.axes is None:
        return dims, dims, joined
    mine, theirs = flatten_dims(part.axes.right), flatten_dims(dims)
    if sorted(mine) == sorted(theirs):
        return part.axes.left, dims, joined
    if [axis == ELLIPSIS for axis in mine] == [axis == ELLIPSIS for axis in theirs]:
        called = dict(zip(theirs, mine, strict=True))
        return part.axes.left, [tuple(called[axis] for axis in dim) for dim in dims], called[joined]
    # Dimension by dimension: that of the joined axis may be composite.
    d, dim = next((d, dim) for d, dim in enumerate(dims) if joined in dim)
    one = part.axes.right[d]
    along = one[dim.index(joined)] if len(one) == len(dim) else d
    return part.axes.left, part.axes.right, along
