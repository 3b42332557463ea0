"""The stored leaves that a leaf is made of, stacked or not, and its name. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from .._catalog.entry import LeafEntry
from .names import Binding, NamePattern
from .part_layout import RuleError
from .rule_layout import Stack
from .rules import From


def order_stack(
    part: From, target: NamePattern, sources: Mapping[tuple[int | str, ...], LeafEntry]
) -> Stack:
    """The sources of a member by position; there must be one for each combination of positions."""
    stacked = list_stacked(part, target)
    ordered: list[list[int | str]] = []
    for k, placeholder in enumerate(stacked):
        values = {position[k] for position in sources}
        if placeholder in part.names:
            ordered.append(list(part.names[placeholder]))
        else:
            n = max([value for value in values if isinstance(value, int)], default=-1) + 1
            if n > len(values):  # before as many numbers are listed as a name may say
                missing = next(i for i in range(n) if i not in values)
                raise RuleError(
                    f"`{{{placeholder}}}` in `{part.source.text}` goes up to {n - 1}, but there is"
                    f" no {missing}: what is stacked has no holes"
                )
            ordered.append(list(range(n)))
    found: Stack = {}
    for combination in itertools.product(*[enumerate(values) for values in ordered]):
        values = tuple(value for _, value in combination)
        if values not in sources:
            at = dict(zip(stacked, values, strict=True))
            raise RuleError(f"the checkpoint has no `{part.source.text}` for {at}")
        found[tuple(i for i, _ in combination)] = sources[values]
    return found


def list_stacked(part: From, target: NamePattern) -> list[str]:
    """The placeholders along which sources are stacked: those that only their name has."""
    return [p for p in part.source.placeholders if p not in target.placeholders]


def describe_sources(found: Sequence[Stack], advice: str | None) -> str:
    """The stored leaves that a leaf is made of, and what would help it to fit."""
    names = [entry.name for sources in found for entry in sources.values()]
    if len(names) <= 2:
        text = " and ".join(names)
    else:
        text = f"{len(names)} leaves, {names[0]} to {names[-1]}"
    return f"{text}; {advice}" if advice else text


def name_member(target: NamePattern, binding: Binding, sizes: Mapping[str, int]) -> str:
    """The name of a leaf that a rule makes."""
    try:
        return target.format(binding, sizes)
    except ValueError as error:  # an integer below 0, or beyond its size
        raise RuleError(f"{error}: correct the numbers in the names of the rule") from error


def format_source(part: From, binding: Binding) -> str:
    """The name of a source, and the values that its placeholders have there."""
    values = ", ".join(f"{name}={value}" for name, value in binding.items())
    return f"`{part.source.text}`" + (f" for {values}" if values else "")
