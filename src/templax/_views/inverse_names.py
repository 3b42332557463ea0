"""Names in a mapping that is undone: which leaves they mean, and how to leave some out. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from .names import Field, NamePattern, escape_braces, parse_name
from .part_layout import RuleError
from .rules import Concat, From

NameKey = tuple[str, tuple[tuple[str, tuple[str, ...]], ...]]
"""The name of a source, and the names that are given for its placeholders."""


def key_of_source(part: From) -> NameKey:
    """Tells apart the leaves that parts of rules are made of."""
    given = [(p, part.names[p]) for p in sorted(part.source.placeholders) if p in part.names]
    return part.source.text, tuple(given)


def ignore_placeholders(text: str) -> str:
    """A name without what its placeholders are called.

    >>> ignore_placeholders("layers.{i}.w")
    'layers.{}.w'
    """
    segments = parse_name(text).segments
    return "".join(
        s if isinstance(s, str) else "{...}" if s.names == ("...",) else "{}" for s in segments
    )


def list_name_sizes(target: NamePattern, part: From) -> dict[str, int]:
    """The sizes that names of leaves need, as `{(g c)}` does that of `c`."""
    segments = (*target.segments, *part.source.segments)
    counted = {name for s in segments if isinstance(s, Field) for name in s.names[1:]}
    return {name: n for name, n in part.sizes.items() if name in counted}


def list_drops(target: NamePattern, rule: From | Concat) -> Iterator[str]:
    """Patterns for the `drop=` of the leaves that a rule makes.

    Raises:
        RuleError: None says which those are.
    """
    if target.has_rest:
        raise RuleError(
            "its source fills other leaves as well, and no pattern says which of them `{...}`"
            " leaves for this rule: write rules without `{...}`"
        )
    parts = rule.parts if isinstance(rule, Concat) else (rule,)
    names = {p: values for part in parts for p, values in part.names.items()}
    chosen = [p for p in target.placeholders if p in names]
    for values in itertools.product(*[names[p] for p in chosen]):
        binding = dict(zip(chosen, values, strict=True))
        yield "".join(_spell_segment(segment, binding) for segment in target.segments)


def _spell_segment(segment: str | Field, binding: dict[str, str]) -> str:
    if isinstance(segment, str):
        return escape_braces(segment)
    if segment.names[0] in binding:
        return escape_braces(binding[segment.names[0]])
    if len(segment.names) == 1:
        return segment.text
    return Field(("_".join(segment.names),), segment.offset, segment.width).text
