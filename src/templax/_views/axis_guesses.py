"""Which axes turn an array of one shape into one of another, as far as the shapes tell. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .._core.boxes import Shape
from .axes import Axes, Dim, format_dims, parse_axes

_SAME = "... -> ..."

_TURNED, _STRAIGHT = True, False

_USUAL: Mapping[tuple[int, int], Sequence[tuple[str, bool]]] = {
    (1, 2): [("(h k) -> h k", _STRAIGHT)],
    (2, 1): [("h k -> (h k)", _STRAIGHT)],
    (2, 2): [("f d -> d f", _TURNED)],
    (2, 3): [
        ("(h k) d -> d h k", _TURNED),
        ("d (h k) -> d h k", _STRAIGHT),
        ("d (h k) -> h k d", _TURNED),
        ("(h k) d -> h k d", _STRAIGHT),
    ],
    (3, 2): [
        ("d h k -> (h k) d", _TURNED),
        ("d h k -> d (h k)", _STRAIGHT),
        ("h k d -> d (h k)", _TURNED),
        ("h k d -> (h k) d", _STRAIGHT),
    ],
    (3, 3): [("o c w -> w c o", _TURNED), ("l f d -> l d f", _TURNED)],
    (4, 4): [("o c h w -> h w c o", _TURNED), ("h w c o -> o c h w", _TURNED)],
    (4, 2): [("o c h w -> (h w c) o", _TURNED)],
    (2, 4): [("(h w c) o -> o c h w", _TURNED)],
    (5, 5): [("o c t h w -> t h w c o", _TURNED), ("t h w c o -> o c t h w", _TURNED)],
}
"""Axes by the ranks of both sides, as libraries differ in them: the likelier ones first. Turned are
those that swap the inputs and the outputs of a layer."""

FUSED: Mapping[tuple[int, int], Sequence[tuple[str, bool]]] = {
    (1, 1): [("(t f) -> f", _STRAIGHT)],
    (1, 2): [("(t h k) -> h k", _STRAIGHT)],
    (2, 2): [
        ("(t f) d -> d f", _TURNED),
        ("(t f) d -> f d", _STRAIGHT),
        ("d (t f) -> d f", _STRAIGHT),
        ("d (t f) -> f d", _TURNED),
    ],
    (2, 3): [
        ("(t h k) d -> d h k", _TURNED),
        ("d (t h k) -> d h k", _STRAIGHT),
        ("d (t h k) -> h k d", _TURNED),
        ("(t h k) d -> h k d", _STRAIGHT),
    ],
}
"""Axes of a third of what holds queries, keys and values one after the other along `t`."""


_Move = tuple[tuple[int, int], ...]
"""The axes of a source in the order of the target, each with its size."""


@dataclass(frozen=True, slots=True)
class Guess:
    """Axes that turn the shapes of sources into those of their targets.

    Attributes:
        text: The axes of a rule; None to take the sources as they are.
        turned: Whether inputs and outputs are swapped.
        sizes: Sizes that the shapes of the sources do not tell.
    """

    text: str | None
    turned: bool = False
    sizes: Mapping[str, int] = field(default_factory=dict[str, int])


def list_guesses(
    pairs: Sequence[tuple[Shape, Shape]],
    before: Sequence[str],
    after: Sequence[str],
    extra: Mapping[str, int],
    usual: Mapping[tuple[int, int], Sequence[tuple[str, bool]]] = _USUAL,
) -> Iterator[Guess]:
    """Axes that fit all of some pairs of shapes, each of which moves values elsewhere.

    Args:
        pairs: The shapes of a source and of its target, each without the axes of `before` and
            `after`.
        before, after: Axes in front of the source's and of the target's: those along which
            leaves are taken apart, or stacked.
        extra: Sizes of axes that are known.
        usual: By the ranks of both sides, what to try.
    """
    moves: list[list[_Move]] = []
    if usual is _USUAL and all(source == target for source, target in pairs):
        axes = parse_axes(_SAME)
        plain = not before and not after
        moves.append([()] * len({*pairs}))
        yield Guess(None if plain else _write_axes(axes, before, after))
    (source, target), *_ = pairs
    ranks = {(len(s), len(t)) for s, t in pairs}
    if len(ranks) > 1:
        return
    for text, turned in usual.get((len(source), len(target)), ()):
        axes = parse_axes(text)
        solved = [_solve(axes, s, t, extra) for s, t in {*pairs}]
        found = [sizes for sizes in solved if sizes is not None]
        if len(found) == len(solved):
            moved = [_find_move(axes, sizes) for sizes in found]
            if moved not in moves:
                moves.append(moved)
                needed = _list_needed(axes, found, extra)
                yield Guess(_write_axes(axes, before, after), turned, needed)
    if usual is _USUAL and source != target and _drop_units(source) == _drop_units(target):
        axes = _drop_unit_axes(source, target)
        if all(pair == (source, target) for pair in pairs) and [()] not in moves:
            yield Guess(_write_axes(axes, before, after))


def _find_move(axes: Axes, sizes: Mapping[str, int]) -> _Move:
    """Where the values go, as the sizes and the order of what stays together; `()` if all do.

    Axes of one element are left out: with them, `f d -> d f` moves nothing.
    """
    left, right = (
        [axis for dim in side for axis in dim if sizes[axis] != 1]
        for side in (axes.left, axes.right)
    )
    order = [left.index(axis) for axis in right]
    return () if order == sorted(order) else tuple((i, sizes[left[i]]) for i in order)


def _write_axes(axes: Axes, before: Sequence[str], after: Sequence[str]) -> str:
    left = " ".join([*before, format_dims(axes.left)])
    return f"{left} -> {' '.join([*after, format_dims(axes.right)])}"


def _solve(
    axes: Axes, source: Shape, target: Shape, extra: Mapping[str, int]
) -> dict[str, int] | None:
    """The sizes of all axes; None if the shapes contradict each other."""
    sizes = dict(extra)
    equations = [*zip(axes.left, source, strict=True), *zip(axes.right, target, strict=True)]
    for dim, n in sorted(equations, key=lambda equation: len(equation[0])):
        if not _learn(sizes, dim, n):
            return None
    return sizes


def _learn(sizes: dict[str, int], dim: Dim, n: int) -> bool:
    unknown = [axis for axis in dim if axis not in sizes]
    known = math.prod(sizes[axis] for axis in dim if axis in sizes)
    if not unknown:
        return known == n
    if len(unknown) > 1 or known == 0 or n % known:
        return False
    sizes[unknown[0]] = n // known
    return True


def _list_needed(
    axes: Axes, solved: Sequence[Mapping[str, int]], known: Mapping[str, int]
) -> dict[str, int]:
    """The sizes to give, so that a source alone tells the shape of its target."""
    needed: dict[str, int] = {}
    for dim in axes.left:
        for axis in [axis for axis in dim if axis not in known][1:]:
            values = {sizes[axis] for sizes in solved}
            if len(values) == 1:
                needed[axis] = values.pop()
    return needed


def _drop_units(shape: Shape) -> Shape:
    return tuple(n for n in shape if n != 1)


def _drop_unit_axes(source: Shape, target: Shape) -> Axes:
    names = iter("abcdefgh"[: len(_drop_units(source))])
    left = tuple((next(names),) if n != 1 else () for n in source)
    names = iter("abcdefgh"[: len(_drop_units(target))])
    right = tuple((next(names),) if n != 1 else () for n in target)
    return Axes(left, right, "")
