"""The axes of a rule, in the notation of einops: `"(h k) d -> d h k"`. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from .._core.text import format_value

Dim = tuple[str, ...]
"""The axes that one dimension consists of, outermost first. `()` is a unit axis, and `("...",)` the
ellipsis, which stands for any number of dimensions."""

ELLIPSIS = "..."

RESERVED = frozenset(
    ("from", "axes", "concat", "select", "slice", "flip", "scale", "add", "pad", "crop")
)
"""What no axis may be called, since rules have options of these names."""

_MAX_LENGTH = 1_000
_MAX_DIMS = 32
_MAX_AXES = 64

_TOKEN = re.compile(r"->|[()\[\]]|[^\s()\[\]>-]+|\S")

_ASCII_DIGITS = frozenset("0123456789")


@dataclass(frozen=True, slots=True)
class Axes:
    """How the dimensions of a source become those of a target.

    Attributes:
        left: The dimensions of the source.
        right: The dimensions of the target.
        text: As the user wrote it.
    """

    left: tuple[Dim, ...]
    right: tuple[Dim, ...]
    text: str


@dataclass(frozen=True, slots=True)
class JoinAxes:
    """The dimensions along one of whose axes parts are joined.

    Attributes:
        dims: The dimensions of the target, in which the joined axis is one like the others.
        joined: Name of the axis in the bracket.
        text: As the user wrote it.
    """

    dims: tuple[Dim, ...]
    joined: str
    text: str


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    column: int


def flatten_dims(dims: Sequence[Dim]) -> tuple[str, ...]:
    """The axes of all dimensions, in order.

    >>> flatten_dims((("h", "k"), (), ("d",)))
    ('h', 'k', 'd')
    """
    return tuple(chain.from_iterable(dims))


def format_dims(dims: Sequence[Dim]) -> str:
    """Dimensions as a user writes them.

    >>> format_dims((("h", "k"), (), ("...",)))
    '(h k) 1 ...'
    """
    return " ".join(
        "1" if not dim else dim[0] if len(dim) == 1 else f"({' '.join(dim)})" for dim in dims
    )


def parse_axes(text: str) -> Axes:
    """Parses the axes of a rule.

    Names are as in einops: identifiers that neither begin nor end with an underscore, each at most
    once on a side. `(h k)` is a composite axis, `1` or `()` a unit axis, and `...` what is not
    named. Unlike in einops, an axis may be on one side only.

    Raises:
        ValueError: The text is not valid. The message quotes it, points at the place, and says what
            to write.

    >>> parse_axes("(h k) d -> d h k").left
    (('h', 'k'), ('d',))
    """
    tokens = _read_tokens(text)
    arrows = [i for i, token in enumerate(tokens) if token.text == "->"]
    if not arrows:
        raise ValueError(f"`{text}` has no arrow: write the axes as `source -> target`")
    if len(arrows) > 1:
        raise _error_at(text, tokens[arrows[1]], "a second arrow", "keep one `->`")
    left = _parse_dims(text, tokens[: arrows[0]])
    right = _parse_dims(text, tokens[arrows[0] + 1 :])
    if ((ELLIPSIS,) in left) != ((ELLIPSIS,) in right):
        raise ValueError(f"`{text}` has `...` on one side only: write it on both, or on neither")
    if len({*flatten_dims(left), *flatten_dims(right)}) > _MAX_AXES:
        raise ValueError(f"`{text[:80]}` has more than {_MAX_AXES} axes: use fewer")
    return Axes(left, right, text)


def parse_join_axes(text: str) -> JoinAxes:
    """Parses the axes of a `Concat`, one of which is in brackets.

    Raises:
        ValueError: The text is not valid. The message quotes it, points at the place, and says what
            to write.

    >>> parse_join_axes("(h [f]) r")
    JoinAxes(dims=(('h', 'f'), ('r',)), joined='f', text='(h [f]) r')
    """
    tokens = _read_tokens(text)
    arrow = next((token for token in tokens if token.text == "->"), None)
    if arrow is not None:
        raise _error_at(
            text, arrow, "an arrow", "give only the axes of the target here, those of parts there"
        )
    opening = [i for i, token in enumerate(tokens) if token.text == "["]
    if not opening:
        raise ValueError(
            f"`{text}` has no brackets: put the axis along which to join in them, as in `d [f]`"
        )
    if len(opening) > 1:
        raise _error_at(text, tokens[opening[1]], "a second bracket", "join along one axis")
    start = opening[0]
    inside = [token.text for token in tokens[start + 1 : start + 3]]
    if len(inside) < 2 or inside[1] != "]" or not inside[0].isidentifier():
        raise _error_at(text, tokens[start], "a bracket", "put one name in it, as in `d [f]`")
    bare = [*tokens[:start], tokens[start + 1], *tokens[start + 3 :]]
    return JoinAxes(_parse_dims(text, bare), inside[0], text)


def parse_dim(text: str) -> Dim:
    """Parses one dimension: `"f"`, or `"(h w)"`.

    Raises:
        ValueError: It is not one dimension with at least one axis.

    >>> parse_dim("(h w)")
    ('h', 'w')
    """
    dims = _parse_dims(text, _read_tokens(text))
    if len(dims) != 1 or not dims[0] or dims[0] == (ELLIPSIS,):
        raise ValueError(f"`{text}` is not one axis: write one, as in `f` or `(h w)`")
    return dims[0]


def find_name_problem(name: str) -> str | None:
    """Says why no axis or placeholder can be called `name`, and what to write; None if one can.

    >>> find_name_problem("_h")
    'begins or ends with `_`: call it `h`'
    """
    if not name.isidentifier():
        return "is not a name: begin it with a letter, and use letters, digits and `_`"
    if name[0] == "_" or name[-1] == "_":
        return f"begins or ends with `_`: call it `{name.strip('_') or 'x'}`"
    if name in RESERVED:
        return f"is the name of an option: give the axis another, such as `{name}_axis`"
    return None


def _read_tokens(text: str) -> list[_Token]:
    if not isinstance(text, str):
        raise ValueError(f"Expected axes as text, as in `h k -> k h`, got {format_value(text)}")
    if len(text) > _MAX_LENGTH:
        raise ValueError(f"`{text[:80]}…` is longer than {_MAX_LENGTH:,} characters: shorten it")
    return [_Token(match[0], match.start()) for match in _TOKEN.finditer(text)]


def _parse_dims(text: str, tokens: Sequence[_Token]) -> tuple[Dim, ...]:
    dims = tuple(_iterate_dims(text, tokens))
    if len(dims) > _MAX_DIMS:
        raise ValueError(f"`{text[:80]}` has more than {_MAX_DIMS} dimensions on a side")
    return dims


def _iterate_dims(text: str, tokens: Sequence[_Token]) -> Iterator[Dim]:
    seen: set[str] = set()
    opening: _Token | None = None
    group: list[str] = []
    for token in tokens:
        word = token.text
        if word == "(":
            if opening is not None:
                raise _error_at(text, token, "`(` inside parentheses", "list all axes in one pair")
            opening, group = token, []
        elif word == ")":
            if opening is None:
                raise _error_at(text, token, "`)` that closes nothing", "remove it, or open it")
            yield tuple(group)
            opening = None
        elif word == ELLIPSIS and opening is not None:
            raise _error_at(text, token, "`...` inside parentheses", "move it out of them")
        elif word.isdecimal():
            if word != "1":
                instead = f"name the axis and give its size, as in `n={word}`"
                raise _error_at(text, token, f"the number `{word}`", instead)
            if opening is None:
                yield ()
        else:
            _check_name(text, token)
            if word in seen:
                raise _error_at(text, token, f"`{word}` once more", "name each axis once on a side")
            seen.add(word)
            if opening is None:
                yield (word,)
            else:
                group.append(word)
    if opening is not None:
        raise _error_at(text, opening, "`(` that nothing closes", "add the `)`")


def _check_name(text: str, token: _Token) -> None:
    if token.text == ELLIPSIS:
        return
    if not token.text.isidentifier() and token.text[0] not in _ASCII_DIGITS:
        instead = "use names, parentheses, `1`, `...` and one `->`"
        if token.text in ("[", "]"):
            instead = "brackets are for the axes of a Concat"
        raise _error_at(text, token, f"`{token.text}`", instead)
    problem = find_name_problem(token.text)
    if problem is not None:
        where = f"at character {token.column + 1}"
        raise ValueError(f"`{text}` has `{token.text}` {where}, which {problem}")


def _error_at(text: str, token: _Token, what: str, instead: str) -> ValueError:
    return ValueError(f"`{text}` has {what} at character {token.column + 1}: {instead}")
