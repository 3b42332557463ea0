"""Names with placeholders: `layers.{i}.kernel` is a family of leaves. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from .._core.text import format_value
from .axes import ELLIPSIS, find_name_problem

Binding = dict[str, int | str]
"""What each placeholder stands for in a name: an integer, or one of the names given for it. `"..."`
stands for what `{...}` does."""

_MAX_LENGTH = 1 << 16
_MAX_PLACEHOLDERS = 16
_MAX_DIGITS = 18
"""Maximum number of digits of an integer in a name, so that 8 bytes hold it."""

_MAX_TRIES = 1 << 8
"""Maximum number of ways in which alternatives that begin with one another may be tried."""

_TOKEN = re.compile(r"\{\{|\}\}|\{[^{}]*\}|[{}]|[^{}]+")

_FIELD = re.compile(
    r"(?:(?P<name>[^\s()+:-]+)|\((?P<names>[^()]*)\))"
    r"(?P<offset>[+-][0-9]{1,6})?(?::0(?P<width>[0-9]{1,2}))?"
)


@dataclass(frozen=True, slots=True)
class Field:
    """A placeholder in a name.

    Attributes:
        names: What is in the braces. Several names stand for one integer that is made of theirs,
            the last of which varies fastest.
        offset: What is added to the integer.
        width: The least number of digits.
    """

    names: tuple[str, ...]
    offset: int = 0
    width: int = 1

    @property
    def plain(self) -> bool:
        """Whether it may stand for a given name, rather than only for an integer."""
        return len(self.names) == 1 and self.offset == 0 and self.width == 1

    @property
    def text(self) -> str:
        """The placeholder as a user writes it."""
        inner = self.names[0] if len(self.names) == 1 else f"({' '.join(self.names)})"
        offset = f"{self.offset:+}" if self.offset else ""
        width = f":0{self.width}" if self.width > 1 else ""
        return f"{{{inner}{offset}{width}}}"


_REST = Field((ELLIPSIS,))


@dataclass(frozen=True, slots=True)
class NamePattern:
    """A name with placeholders. `parse_name` makes it.

    Attributes:
        text: As the user wrote it.
        placeholders: Names of the placeholders, without `...`, each once, in order of first use.
        has_rest: Whether `{...}` occurs.
        segments: Literal text and placeholders, in order.
    """

    text: str
    placeholders: tuple[str, ...] = field(compare=False)
    has_rest: bool = field(compare=False)
    segments: tuple[str | Field, ...] = field(compare=False, repr=False)
    _matchers: dict[tuple[tuple[str, ...], ...], re.Pattern[str]] = field(
        compare=False, repr=False, default_factory=dict
    )
    """The regular expression for each choice of names that were given."""

    @property
    def specificity(self) -> tuple[bool, int, int]:
        """Greater for a pattern that wins over another which matches the same name: `{...}` comes
        after everything else, and of two such patterns the one with less literal text.
        """
        literal = sum(len(segment) for segment in self.segments if isinstance(segment, str))
        return not self.has_rest, literal, -len(self.placeholders)

    def match(
        self, name: str, names: Mapping[str, Sequence[str]], sizes: Mapping[str, int]
    ) -> Binding | None:
        """What the placeholders stand for in `name`; None if the pattern does not match it.

        Takes time linear in the length of the name.

        Args:
            name: Name of a leaf.
            names: The names that a placeholder may stand for. Those that are not listed stand for
                integers.
            sizes: The sizes of placeholders in `{(g c)}`, except for the first.
        """
        first = self.segments[0] if self.segments else ""
        last = self.segments[-1] if self.segments else ""
        if isinstance(first, str) and not name.startswith(first):
            return None
        if isinstance(last, str) and not name.endswith(last):
            return None
        if not self.placeholders and not self.has_rest:
            return {} if name == first else None
        if len(name) > _MAX_LENGTH:
            return None
        key = tuple(tuple(names.get(p, ())) for p in self.placeholders)
        matcher = self._matchers.get(key)
        if matcher is None:
            matcher = self._matchers[key] = self._make_matcher(names)
        found = matcher.fullmatch(name)
        return None if found is None else self._bind(found, names, sizes)

    def format(self, binding: Binding, sizes: Mapping[str, int]) -> str:
        """The name in which the placeholders stand for `binding`.

        Args:
            binding: A value for each placeholder, and for `"..."` if there is `{...}`.
            sizes: The sizes of placeholders in `{(g c)}`, except for the first.

        Raises:
            ValueError: An integer is negative or, inside `{(g c)}`, not less than its size.
        """
        parts: list[str] = []
        for segment in self.segments:
            if isinstance(segment, str):
                parts.append(segment)
            elif isinstance(value := binding[segment.names[0]], str) and segment.plain:
                parts.append(value)
            else:
                parts.append(_format_integer(segment, binding, sizes))
        return "".join(parts)

    def find_ambiguity(self, names: Mapping[str, Sequence[str]]) -> str | None:
        """Says why it can't be told where a placeholder ends, and what to write; None if it can.

        Args:
            names: See `match`.
        """
        for before, after in zip(self.segments, self.segments[1:], strict=False):
            if isinstance(before, str) or before == _REST or before.names[0] in names:
                continue
            if isinstance(after, str):
                starts = (after,)
            else:
                starts = names.get(after.names[0]) or ("0",)
            if any(start[:1] in _DIGITS for start in starts):
                text = after if isinstance(after, str) else after.text
                return (
                    f"`{self.text}` does not tell where the integer of `{before.text}` ends, as"
                    f" digits may follow in `{text[:80]}`: put something else between them, or give"
                    f" the names of one, as in {before.names[0]}=['0', '1']"
                )
        chosen = [s.names[0] for s in self.segments if not isinstance(s, str) and s != _REST]
        if prod(_count_nested(names[p]) for p in chosen if p in names) > _MAX_TRIES:
            return (
                f"`{self.text}` can be read in too many ways, as names given for its placeholders"
                " begin with one another: give other names, or write several rules"
            )
        return None

    def _make_matcher(self, names: Mapping[str, Sequence[str]]) -> re.Pattern[str]:
        parts: list[str] = []
        groups: dict[str, int] = {}
        count = 0
        for segment in self.segments:
            if isinstance(segment, str):
                parts.append(re.escape(segment))
                continue
            name = segment.names[0]
            if segment.plain and name in groups:
                parts.append(f"(?:\\{groups[name]})")
                continue
            count += 1
            if segment == _REST:
                parts.append("(.+)")
            elif segment.plain and name in names:
                groups[name] = count
                longest_first = sorted(names[name], key=len, reverse=True)
                parts.append(f"({'|'.join(map(re.escape, longest_first))})")
            else:
                parts.append(f"({_integer_matcher(segment.width)})")
        return re.compile("".join(parts), re.DOTALL)

    def _bind(
        self, found: re.Match[str], names: Mapping[str, Sequence[str]], sizes: Mapping[str, int]
    ) -> Binding | None:
        binding: Binding = {}
        groups = iter(found.groups())
        for segment in self.segments:
            if isinstance(segment, str):
                continue
            name = segment.names[0]
            if segment == _REST:
                binding[ELLIPSIS] = next(groups)
            elif segment.plain and name in names:
                if name not in binding:
                    binding[name] = next(groups)
            else:
                values = _split_integer(segment, int(next(groups)), sizes)
                if values is None:
                    return None
                for inner, value in values.items():
                    if binding.setdefault(inner, value) != value:
                        return None
        return binding


_DIGITS = frozenset("0123456789")


def escape_braces(text: str) -> str:
    """The pattern that matches one name only: that of a leaf, whose braces are doubled.

    >>> escape_braces("a.{b}")
    'a.{{b}}'
    """
    return text.replace("{", "{{").replace("}", "}}")


def parse_name(text: str) -> NamePattern:
    """Parses a name with placeholders.

    | In the name | Stands for |
    |---|---|
    | `{i}` | an integer: `0`, `12`; or one of the names given for `i` |
    | `{i+1}`, `{i-1}` | an integer that is 1 more, or less, than `i` |
    | `{i:02}` | an integer with at least two digits: `00`, `12`, `100` |
    | `{(g c)}` | `g * C + c`, where C is the size of `c` |
    | `{...}` | one or more elements, whatever they are |
    | `{{`, `}}` | braces |

    Raises:
        ValueError: The text is not valid. The message quotes it and says what to write.

    >>> pattern = parse_name("model.layers.{i}.norm{n}.weight")
    >>> pattern.match("model.layers.3.norm1.weight", {}, {})
    {'i': 3, 'n': 1}
    >>> pattern.format({"i": 0, "n": 2}, {})
    'model.layers.0.norm2.weight'
    """
    if not isinstance(text, str):
        raise ValueError(f"Expected a name as text, got {format_value(text)}")
    if len(text) > _MAX_LENGTH:
        raise ValueError(f"`{text[:80]}…` is longer than {_MAX_LENGTH:,} characters: shorten it")
    segments: list[str | Field] = []
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in ("{", "}"):
            raise ValueError(
                f"`{text:.200}` has a single `{token}` at character {match.start() + 1}: write"
                f" `{token * 2}` for a brace in the name, or `{{i}}` for a placeholder"
            )
        if token not in ("{{", "}}") and token[0] == "{":
            segments.append(_parse_field(text, token))
            continue
        literal = token[0] if token in ("{{", "}}") else token
        if segments and isinstance(segments[-1], str):
            segments[-1] += literal
        else:
            segments.append(literal)
    return _make_pattern(text, tuple(segments))


def _make_pattern(text: str, segments: tuple[str | Field, ...]) -> NamePattern:
    fields = [segment for segment in segments if isinstance(segment, Field)]
    if len(fields) > _MAX_PLACEHOLDERS:
        raise ValueError(f"`{text:.200}` has more than {_MAX_PLACEHOLDERS} placeholders: use fewer")
    if fields.count(_REST) > 1:
        raise ValueError(f"`{text:.200}` has `{{...}}` twice: use names for one, as in `{{p}}`")
    for i, segment in enumerate(segments):
        if segment != _REST:
            continue
        before = segments[i - 1] if i else "."
        after = segments[i + 1] if i + 1 < len(segments) else "."
        ends = isinstance(before, str) and before.endswith(".")
        if not ends or not isinstance(after, str) or not after.startswith("."):
            raise ValueError(
                f"`{text:.200}` has `{{...}}` beside other text in an element: it stands for whole"
                " elements, so put a `.` between them"
            )
    names = dict.fromkeys(name for f in fields if f != _REST for name in f.names)
    return NamePattern(text, tuple(names), _REST in fields, segments)


def _parse_field(text: str, token: str) -> Field:
    inner = token[1:-1]
    if inner == ELLIPSIS:
        return _REST
    found = _FIELD.fullmatch(inner)
    if found is None:
        raise ValueError(
            f"`{text:.200}` has `{token:.80}`: write a placeholder as `{{i}}`, `{{i+1}}`,"
            " `{i:02}`, `{(g c)}` or `{...}`, and a brace in the name as `{{`"
        )
    names = tuple(found["names"].split()) if found["name"] is None else (found["name"],)
    if not names:
        raise ValueError(f"`{text:.200}` has no name in `{token}`: write one, as in `{{(g c)}}`")
    for name in names:
        problem = find_name_problem(name)
        if problem is not None:
            raise ValueError(f"`{text:.200}` has `{name:.80}` in braces, which {problem}")
    if len(set(names)) < len(names):
        raise ValueError(f"`{text:.200}` has a name twice in `{token:.80}`: use another")
    width = 1 if found["width"] is None else int(found["width"])
    if not 1 <= width < _MAX_DIGITS:
        raise ValueError(
            f"`{text:.200}` has a width of {width} in `{token:.80}`: write one of 1 to"
            f" {_MAX_DIGITS - 1}, as in `:02`"
        )
    return Field(names, int(found["offset"] or 0), width)


def _integer_matcher(width: int) -> str:
    """A regular expression for integers as `str(n).zfill(width)` writes them.

    It is atomic: what follows is never tried after fewer digits.
    """
    if width == 1:
        return f"(?>0|[1-9][0-9]{{0,{_MAX_DIGITS - 1}}})"
    return f"(?>[1-9][0-9]{{{width},{_MAX_DIGITS - 1}}}|[0-9]{{{width}}})"


def _split_integer(field: Field, number: int, sizes: Mapping[str, int]) -> dict[str, int] | None:
    number -= field.offset
    if number < 0:
        return None
    values: dict[str, int] = {}
    for name in reversed(field.names[1:]):
        number, values[name] = divmod(number, sizes[name])
    values[field.names[0]] = number
    return values


def _format_integer(field: Field, binding: Binding, sizes: Mapping[str, int]) -> str:
    number = 0
    for i, name in enumerate(field.names):
        value = binding[name]
        size = sizes[name] if i else None
        if not isinstance(value, int) or value < 0 or (size is not None and value >= size):
            most = "" if size is None else f" and less than {size}"
            raise ValueError(
                f"`{field.text}` needs `{name}` at least 0{most}, got {format_value(value)}"
            )
        number = value if size is None else number * size + value
    number += field.offset
    if number < 0:
        raise ValueError(
            f"`{field.text}` would be {number} for {field.names[0]}={binding[field.names[0]]}"
        )
    return str(number).zfill(field.width)


def _count_nested(texts: Sequence[str]) -> int:
    """The most of `texts` that begin with one another.

    >>> _count_nested(["q", "qk", "qkv", "v"])
    3
    """
    most = 1
    stack: list[str] = []
    for text in sorted(texts):
        while stack and not text.startswith(stack[-1]):
            stack.pop()
        stack.append(text)
        most = max(most, len(stack))
    return most
