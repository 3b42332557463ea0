"""Composes two index maps into maps from the first source to the last target. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import msgspec

from .._core.index_map import IndexMap, MapAxis

_MAX_MAPS = 256
"""Maximum number of index maps into which two are composed."""


class TooManyMapsError(Exception):
    """The axes of two maps cut a leaf into too many pieces, for example sizes of 5 and of 7."""


class _Digit(msgspec.Struct, frozen=True, gc=False):
    """An axis of a map, or a part of one: its indices are `start + factor * (0 … size - 1)`.

    Attributes:
        axis: The number of the axis.
        size: The number of its indices.
        step: What each index adds to the position in the dimension that both maps share.
        factor, start: See above.
    """

    axis: int
    size: int
    step: int
    factor: int = 1
    start: int = 0

    def cut(self, first: int, size: int) -> _Digit:
        return _Digit(self.axis, size, self.step, self.factor, self.start + self.factor * first)


_Match = tuple[_Digit | None, _Digit | None]
"""Digits of both maps that go together, of equal size; None beside a single index of the other."""


def compose_maps(first: IndexMap, second: IndexMap) -> list[IndexMap]:
    """The index maps that apply `first` and then `second`, which reads the target of `first`.

    Raises:
        TooManyMapsError: There would be more than `_MAX_MAPS`.

    >>> halves = IndexMap((MapAxis(2, (0, 3), (1, 1)), MapAxis(3, (0, 1), (0, 1))), (0,), (0, 0))
    >>> turned = IndexMap((MapAxis(3, (0, 1), (1, 1)), MapAxis(2, (1, 1), (0, 1))), (0, 0), (0, 0))
    >>> (whole,) = compose_maps(halves, turned)
    >>> [(axis.source, axis.target) for axis in whole.axes]
    [((0, 1), (1, 1)), ((0, 3), (0, 1))]
    """
    choices: list[list[list[_Match]]] = []
    for dim, (begin, other) in enumerate(zip(first.target, second.source, strict=True)):
        delta = other - begin
        ones = [
            _Digit(i, axis.size, axis.target[1])
            for i, axis in enumerate(first.axes)
            if axis.target[0] == dim and axis.size > 1
        ]
        others: list[_Digit] = []
        for i, axis in enumerate(second.axes):
            if axis.size > 1 and axis.source is not None and axis.source[0] == dim:
                step = axis.source[1]
                others.append(_Digit(i, axis.size, abs(step)))
                delta += min(step, 0) * (axis.size - 1)
        ones.sort(key=lambda digit: -digit.step)
        others.sort(key=lambda digit: -digit.step)
        found = list(itertools.islice(_match_digits(ones, others, delta), _MAX_MAPS + 1))
        if not found:
            return []
        choices.append(found)
        count = 1
        for each in choices:
            count *= len(each)
        if count > _MAX_MAPS:
            raise TooManyMapsError
    return [
        _join(first, second, list(itertools.chain.from_iterable(chosen)))
        for chosen in itertools.product(*choices)
    ]


def _match_digits(
    ones: Sequence[_Digit], others: Sequence[_Digit], delta: int
) -> Iterator[list[_Match]]:
    """Yields the ways in which the sum of `ones` equals the sum of `others` plus `delta`.

    Args:
        ones, others: Nested digits, the longest step first.
        delta: What is added to the others.
    """
    most, other = _reach(ones), _reach(others)
    if delta > most or delta + other < 0:
        return
    if not ones and not others:
        yield []
        return
    if not ones or (others and others[0].step > ones[0].step):
        for found in _match_digits(others, ones, -delta):
            yield [(b, a) for a, b in found]
        return
    head, *rest = ones
    if others and others[0].step == head.step:
        yield from _match_heads(head, rest, others[0], others[1:], delta)
        return
    if others and head.step % others[0].step == 0:
        digit, *smaller = others
        n = head.step // digit.step
        whole = digit.size // n * n
        if whole and whole < digit.size:
            yield from _match_digits(ones, [digit.cut(0, whole), *smaller], delta)
            left = digit.cut(whole, digit.size - whole)
            yield from _match_digits(ones, [left, *smaller], delta + whole * digit.step)
            return
        if whole:
            outer = _Digit(digit.axis, whole // n, head.step, digit.factor * n, digit.start)
            inner = _Digit(digit.axis, n, digit.step, digit.factor)
            yield from _match_digits(ones, [outer, inner, *smaller], delta)
            return
    # One index of the longest step at a time: the others reach only a few, or don't divide it.
    begin = max(0, -((_reach(rest) - delta) // head.step))
    for index in range(begin, min(head.size, (delta + other) // head.step + 1)):
        for found in _match_digits(rest, others, delta - index * head.step):
            yield [(head.cut(index, 1), None), *found]


def _match_heads(
    head: _Digit, rest: Sequence[_Digit], other: _Digit, smaller: Sequence[_Digit], delta: int
) -> Iterator[list[_Match]]:
    """Matches digits whose first ones have the same step."""
    quotient, remainder = divmod(delta, head.step)
    for carry in (0, 1):  # the smaller digits together reach less than twice the step
        shift = quotient + carry
        begin = max(0, -shift)
        size = min(other.size, head.size - shift) - begin
        if size <= 0:
            continue
        pair = head.cut(begin + shift, size), other.cut(begin, size)
        for found in _match_digits(rest, smaller, remainder - carry * head.step):
            yield [pair, *found]


def _reach(digits: Sequence[_Digit]) -> int:
    return sum((digit.size - 1) * digit.step for digit in digits)


def _join(first: IndexMap, second: IndexMap, matches: Sequence[_Match]) -> IndexMap:
    """The index map of the elements for which all digits match."""
    source, target = list(first.source), list(second.target)
    flipped = {
        i for i, axis in enumerate(second.axes) if axis.source is not None and axis.source[1] < 0
    }
    for i in flipped:
        dim, step = second.axes[i].target
        target[dim] += (second.axes[i].size - 1) * step
    axes: list[MapAxis] = []
    for one, other in matches:
        turned = other is not None and other.axis in flipped
        by: tuple[int, int] | None = None
        origin = None if one is None else first.axes[one.axis].source
        if one is not None and origin is not None:
            dim, stride = origin[0], origin[1] * one.factor
            source[dim] += origin[1] * one.start + (stride * (one.size - 1) if turned else 0)
            by = dim, -stride if turned else stride
        if other is not None:
            dim, step = second.axes[other.axis].target
            begin = other.start + (other.factor * (other.size - 1) if turned else 0)
            target[dim] += (-begin if turned else begin) * step
            if other.size > 1:
                axes.append(MapAxis(other.size, by, (dim, step * other.factor)))
    axes += [axis for axis in second.axes if axis.source is None]
    return IndexMap(tuple(axes), tuple(source), tuple(target))
