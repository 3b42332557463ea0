"""What a leaf of a target is made of: one source, or several that are joined. Pure.

Neither `From` nor `Concat` knows the name of its rule, so what is wrong with their arguments is
kept in `problems`, and the `Mapping` that they are put into raises it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, TypeVar

from .._core.text import format_value
from ..errors import MappingError
from .axes import (
    Axes,
    Dim,
    JoinAxes,
    find_name_problem,
    format_dims,
    parse_axes,
    parse_dim,
    parse_join_axes,
)
from .expressions import Expression, parse_expression
from .names import NamePattern, parse_name

MAX_NAMES = 1_000
"""Maximum number of names that a placeholder may stand for."""

_MAX_PARTS = 1_000
_MAX_INTEGER = (1 << 63) - 1

_INFINITIES = {"inf": math.inf, "-inf": -math.inf}
"""Spellings of the infinities, which JSON does not have."""

_Value = TypeVar("_Value")
_NO_AXES = JoinAxes((), "", "")


@dataclass(frozen=True, slots=True, init=False, repr=False)
class From:
    """Where a leaf comes from: a name, and how the axes of what is found there are rearranged.

    Without `axes` a leaf is taken as it is.

    Args:
        source: Name of the source, with `{placeholders}`. One that the target does not have is an
            axis of the right side: its leaves are stacked.
        axes: The axes, as in einops: `"(h k) d -> d h k"`. None for those of the source.
        select: The index that is taken of an axis on the left only: `{"three": 0}`.
        slice: The half-open range that is taken of an axis, or of several in parentheses:
            `{"f": (0, 4096)}`, `{"(h w)": (1, 13)}`.
        flip: Axes that are reversed.
        scale: A number, or an expression of axes such as `"k**-0.5"`, by which values are
            multiplied in float32; in float64 if they are stored so.
        add: A number or an expression that is then added, likewise.
        pad: Axes that may be longer in the target. They are filled with 0 at the end, or with the
            value given for each: `{"v": -1}`. Infinity may be written `"inf"` or `"-inf"`.
        crop: Axes that may be shorter in the target: what is beyond is left out.
        **sizes: The size of an axis, where the shapes do not tell it; or the names that a
            placeholder stands for, in order: `p=["gate_proj", "up_proj"]`.

    Attributes:
        source: The name of the source, as a pattern.
        axes: The axes; None for those of the source.
        sizes: The sizes given.
        names: The names given for placeholders.
        select, slice, flip, scale, add, pad, crop: As given, in one form each.
        problems: What is wrong with the arguments. A `Mapping` raises it.

    Example:
        >>> import templax as tx
        >>> query = tx.From("h.{i}.qkv", "d (three h k) -> d h k", select={"three": 0}, k=64)
        >>> query
        From('h.{i}.qkv', 'd (three h k) -> d h k', select={'three': 0}, k=64)
        >>> query.source.placeholders, query.axes.right
        (('i',), (('d',), ('h',), ('k',)))
    """

    source: NamePattern
    axes: Axes | None
    sizes: Mapping[str, int]
    names: Mapping[str, tuple[str, ...]]
    select: Mapping[str, int]
    slice: Mapping[Dim, tuple[int, int]]
    flip: tuple[str, ...]
    scale: Expression | None
    add: Expression | None
    pad: Mapping[str, int | float]
    crop: tuple[str, ...]
    problems: tuple[str, ...] = field(compare=False)

    def __init__(
        self,
        source: str,
        axes: str | None = None,
        /,
        *,
        select: Mapping[str, int] | None = None,
        slice: Mapping[str, Sequence[int]] | None = None,
        flip: str | Sequence[str] | None = None,
        scale: str | float | None = None,
        add: str | float | None = None,
        pad: str | Sequence[str] | Mapping[str, float] | None = None,
        crop: str | Sequence[str] | None = None,
        **sizes: int | Sequence[str],
    ):
        read = _Reader()
        if "axes" in sizes:
            del sizes["axes"]
            read.problems.append("axes= has no name: give it after the source")
        names = {name: size for name, size in sizes.items() if not hasattr(size, "__index__")}
        counts = {name: size for name, size in sizes.items() if name not in names}
        values = {
            "source": read.parse("", parse_name, source, parse_name("")),
            "axes": None if axes is None else read.parse("", parse_axes, axes, None),
            "sizes": read.parse_items("", counts, _parse_axis, _parse_size),
            "names": read.parse_items("", names, _parse_axis, _parse_names),
            "select": read.parse_items("select=", select, _parse_axis, _parse_index),
            "slice": read.parse_items("slice=", slice, parse_dim, _parse_range),
            "flip": read.parse("flip=", _parse_list, flip, ()),
            "scale": None if scale is None else read.parse("scale=", parse_expression, scale, None),
            "add": None if add is None else read.parse("add=", parse_expression, add, None),
            "pad": read.parse_items("pad=", _complete_fills(pad), _parse_axis, _parse_fill),
            "crop": read.parse("crop=", _parse_list, crop, ()),
            "problems": tuple(read.problems),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def list_options(self) -> dict[str, Any]:
        """The arguments that were given beside the source and the axes, as plain values."""
        options: dict[str, Any] = {
            "select": dict(self.select),
            "slice": {format_dims((dim,)): list(cut) for dim, cut in self.slice.items()},
            "flip": list(self.flip),
            "scale": None if self.scale is None else _simplify_expression(self.scale),
            "add": None if self.add is None else _simplify_expression(self.add),
            "pad": {axis: _spell_fill(value) for axis, value in self.pad.items()},
            "crop": list(self.crop),
            **self.sizes,
            **{name: list(names) for name, names in self.names.items()},
        }
        return {name: value for name, value in options.items() if value not in (None, {}, [])}

    def __hash__(self) -> int:
        return hash((self.source, self.axes))

    def __repr__(self) -> str:
        parts = [repr(self.source.text)]
        parts += [] if self.axes is None else [repr(self.axes.text)]
        parts += [f"{name}={value!r}" for name, value in self.list_options().items()]
        return f"From({', '.join(parts)})"

    def __reduce__(self) -> tuple[Any, ...]:
        if self.problems:
            raise MappingError(self.problems)
        axes = None if self.axes is None else self.axes.text
        return _make_from, (self.source.text, axes, self.list_options())


def _make_from(source: str, axes: str | None, options: dict[str, Any]) -> From:
    return From(source, axes, **options)


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Concat:
    """Where a leaf comes from that is made of several, one after the other along an axis.

    The right side of a part has the axes of the `Concat`, in any order. If their names differ, they
    correspond by position: axis by axis, or else dimension by dimension, as in `"h w -> (h w)"` for
    `"[n]"`.

    Args:
        parts: The sources. One without axes has those of the `Concat`.
        axes: The axes of the leaf, with the one along which parts are joined in brackets:
            `"d [f]"`, or `"(h [f]) r"`, which joins them for each `h`.

    Attributes:
        parts: The sources, each a `From`.
        axes: The axes.
        problems: What is wrong with the arguments. A `Mapping` raises it.

    Example:
        >>> import templax as tx
        >>> tx.Concat(["q.weight", tx.From("kv.weight", "f d -> d f")], "d [f]")
        Concat([From('q.weight'), From('kv.weight', 'f d -> d f')], 'd [f]')
    """

    parts: tuple[From, ...]
    axes: JoinAxes
    problems: tuple[str, ...] = field(compare=False)

    def __init__(self, parts: Sequence[From | str], axes: str):
        read = _Reader()
        if not isinstance(parts, (list, tuple)) or not 1 <= len(parts) <= _MAX_PARTS:
            read.problems.append(
                f"Expected a list of 1 to {_MAX_PARTS:,} sources to join, got {format_value(parts)}"
            )
            parts = ()
        made = [From(part) if isinstance(part, str) else part for part in parts]
        for i, part in enumerate(made):
            if not isinstance(part, From):
                read.problems.append(
                    f"part {i + 1}: Expected a name or a From, got {type(part).__name__}"
                )
            else:
                read.problems += [f"part {i + 1}: {problem}" for problem in part.problems]
        object.__setattr__(self, "parts", tuple(made))
        object.__setattr__(self, "axes", read.parse("", parse_join_axes, axes, _NO_AXES))
        object.__setattr__(self, "problems", tuple(read.problems))

    def __repr__(self) -> str:
        return f"Concat({list(self.parts)!r}, {self.axes.text!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        if self.problems:
            raise MappingError(self.problems)
        return Concat, (self.parts, self.axes.text)


Rule = From | Concat
"""What a leaf of the target is made of."""

OPTIONS = frozenset(f.name for f in fields(From)) - {"source", "axes", "sizes", "names", "problems"}
"""The arguments of `From` that have names of their own."""


class _Reader:
    """Parses arguments, and collects what is wrong with them."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def parse(
        self, option: str, parse: Callable[[Any], _Value], value: Any, default: Any = None
    ) -> _Value | Any:
        """The parsed value; `default` if it is invalid."""
        try:
            return parse(value)
        except ValueError as error:
            self.problems.append(f"{option} {error}".lstrip())
            return default

    def parse_items(
        self,
        option: str,
        given: Any,
        parse_key: Callable[[Any], Any],
        parse_value: Callable[[Any], Any],
    ) -> Mapping[Any, Any]:
        """The parsed items of a dict from axes, without the invalid ones."""
        found: dict[Any, Any] = {}
        if given is not None and not isinstance(given, Mapping):
            self.problems.append(f"{option} Expected a dict from axes, got {format_value(given)}")
            return found
        for key, value in (given or {}).items():
            name = self.parse(option, parse_key, key)
            if name is None:
                continue
            if name in found:
                self.problems.append(f"{option} has `{key}` twice: give it once".lstrip())
            where = f"{option} `{key}`:" if option else f"{key}="
            found[name] = self.parse(where, parse_value, value)
        return MappingProxyType(found)


def _parse_axis(name: Any) -> str:
    if not isinstance(name, str):
        raise ValueError(f"Expected the name of an axis, got {format_value(name)}")
    problem = find_name_problem(name)
    if problem is not None:
        raise ValueError(f"`{name:.80}` {problem}")
    return name


def _parse_integer(value: Any, least: int) -> int:
    if hasattr(value, "__index__") and not isinstance(value, bool):
        number = operator.index(value)
        if least <= number <= _MAX_INTEGER:
            return number
    raise ValueError(f"Expected an integer of at least {least}, got {format_value(value)}")


def _parse_size(value: Any) -> int:
    return _parse_integer(value, 1)


def _parse_index(value: Any) -> int:
    return _parse_integer(value, 0)


def _parse_range(value: Any) -> tuple[int, int]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError(f"Expected a range as (start, stop), got {format_value(value)}")
    start, stop = _parse_integer(value[0], 0), _parse_integer(value[1], 0)
    if start >= stop:
        raise ValueError(f"Expected start < stop, got ({start}, {stop})")
    return start, stop


def _parse_names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(n, str) and n for n in value):
        raise ValueError(f"Expected a size, or a list of names, got {format_value(value)}")
    if not 1 <= len(value) <= MAX_NAMES or len(set(value)) < len(value):
        raise ValueError(f"Expected 1 to {MAX_NAMES:,} distinct names, got {format_value(value)}")
    return tuple(value)


def _parse_list(value: Any) -> tuple[str, ...]:
    """The axes of `flip=` and `crop=`."""
    if value is None:
        return ()
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)):
        raise ValueError(f"Expected an axis or a list of axes, got {format_value(value)}")
    parsed = tuple(map(_parse_axis, names))
    if len(set(parsed)) < len(parsed):
        raise ValueError(f"Expected distinct axes, got {format_value(value)}")
    return parsed


def _complete_fills(pad: Any) -> Any:
    """The argument `pad=` as a dict, as far as it is one or names axes."""
    if isinstance(pad, str):
        return {pad: 0}
    if isinstance(pad, (list, tuple)) and all(isinstance(name, str) for name in pad):
        return dict.fromkeys(pad, 0)
    return pad


def _parse_fill(value: Any) -> int | float:
    if hasattr(value, "__index__") and not isinstance(value, bool):
        number = operator.index(value)
        if abs(number) < 1 << 64:
            return number
    elif isinstance(value, float) and not math.isnan(value):
        return float(value)
    elif isinstance(value, str) and value in _INFINITIES:
        return _INFINITIES[value]
    raise ValueError(
        f'Expected a number to fill with, or "inf" or "-inf", got {format_value(value)}'
    )


def _spell_fill(value: float) -> str | int | float:
    """The value as `pad=` takes it, in a form that JSON has."""
    return next((text for text, number in _INFINITIES.items() if number == value), value)


def _simplify_expression(expression: Expression) -> str | int | float:
    """A number if the expression is one, so that JSON has one too."""
    for read in () if expression.names else (int, float):
        try:
            number = read(expression.text)
        except ValueError:
            continue
        if repr(number) == expression.text:
            return number
    return expression.text
