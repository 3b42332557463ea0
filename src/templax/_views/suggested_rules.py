"""The rules that pairs of families amount to, and what can't be told about them. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .._catalog.entry import LeafEntry
from .._core.text import list_names
from .._template.template import Target
from .axis_choices import choose_axes
from .families import PLACEHOLDERS, Family, group_families
from .fused_families import write_cut, write_join
from .mapping import Mapping as LeafMapping
from .pair_families import REPLICA, find_pairs
from .rules import Concat, From

_MAX_STEPS = 3_000_000
"""Maximum product of the numbers of rules and of leaves; bounds the time to join and try them."""

_KEPT = 4
"""Leaves are kept under their own names, without rules, if one of so many rules would do that."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A mapping that may fit.

    Attributes:
        mapping: The mapping.
        plain: The same without `{...}`.
        covered: Names of the targets that it fills.
        notes: What can't be told, in words.
        undecidable: Names of targets that may be transposed.
        orders: The notes on leaves that hold several others in an order that can't be told.
    """

    mapping: LeafMapping
    plain: LeafMapping
    covered: frozenset[str]
    notes: tuple[str, ...]
    undecidable: tuple[str, ...]
    orders: tuple[str, ...]


class _Rule(NamedTuple):
    """A rule: the target, the source, the axes, and more arguments of `From`.

    One with parts is a `Concat` of these, whose source is that of the first.
    """

    target: str
    source: str
    axes: str | None
    options: Mapping[str, Any]
    parts: Sequence[From] = ()


def suggest_rules(stored: Sequence[LeafEntry], targets: Sequence[Target]) -> Suggestion | None:
    """Looks for a mapping from the leaves of a checkpoint to those of a template.

    Args:
        stored: The leaves of the checkpoint.
        targets: The leaves of the template that hold data.
    """
    if not stored or not targets:
        return None
    wanted, there = group_families(targets), group_families(stored)
    made = _suggest(wanted, there, None)
    sizes = {entry.shape[:1] for entry in stored}
    if len(sizes) == 1 and () not in sizes:
        first = _suggest(wanted, there, sizes.pop()[0])
        if first is not None and (made is None or len(first.covered) > len(made.covered)):
            return first
    return made


def _suggest(
    wanted: Sequence[Family], there: Sequence[Family], replicas: int | None
) -> Suggestion | None:
    paired = find_pairs(wanted, there, replicas)
    if paired is None or not paired.found:
        return None
    choices, square, notes = choose_axes(paired.found, replicas)
    notes += [*paired.notes, *paired.orders]
    rules: list[_Rule] = []
    joined: dict[str, list[From]] = {}
    for one, guess in zip(paired.found, choices, strict=True):
        options: dict[str, Any] = {**one.options, **guess.sizes}
        if replicas is not None:
            options["select"] = {REPLICA: 0}
        if one.cut is not None and guess.text is not None and one.is_joined:
            target, source = one.pairings[0].target, one.pairings[0].source
            if target not in joined:
                joined[target] = []
                rules.append(
                    _Rule(target, source, write_join(guess.text, one.cut[0]), {}, joined[target])
                )
            joined[target].append(From(source, guess.text, **options))
            continue
        if one.cut is not None and guess.text is not None:
            options["slice"] = write_cut(guess.text, one.cut)
        rules += [_Rule(p.target, p.source, guess.text, options) for p in one.pairings]
        if one.tied:
            notes.append(
                f"`{one.target.first.name}` is not stored: `{one.source.first.name}` fills it, too,"
                " as in models that tie the two"
            )
    if len(rules) * sum(len(family.members) for family in there) > _MAX_STEPS:
        return None
    if replicas is not None:
        notes.append(f"every leaf has a leading axis of {replicas}: the first of them is taken")
    used = {id(one.source) for one in paired.found}
    left = [family for family in there if id(family) not in used]
    same = sum(map(_is_same, rules))
    keep = replicas is None and _KEPT * same >= len(rules)
    drop = _list_dropped(left, there)
    if drop:
        notes.append(f"left out: {list_names([family.first.name for family in left])}")
    rest = "keep" if keep else "error"
    shown = [rule for rule in rules if not (keep and _is_same(rule))]
    covered = frozenset(leaf.name for one in paired.found for leaf in one.target.members.values())
    missing = [family for family in wanted if family.first.name not in covered]
    if missing:
        names = [family.first.name for family in missing]
        notes.append(f"no source was found for {list_names(names)}")
    return Suggestion(
        LeafMapping(_make_rules(_join_moves(shown)), drop=drop, rest=rest),
        LeafMapping(_make_rules(shown), drop=drop, rest=rest),
        covered,
        tuple(notes),
        tuple(dict.fromkeys(square)),
        tuple(paired.orders),
    )


def _is_same(rule: _Rule) -> bool:
    return rule.target == rule.source and rule.axes is None and not rule.options


def _make_rules(rules: Sequence[_Rule]) -> dict[str, str | From | Concat]:
    made: dict[str, str | From | Concat] = {}
    for target, source, axes, options, parts in rules:
        if axes is None:
            made[target] = source
        else:
            made[target] = Concat(parts, axes) if parts else From(source, axes, **options)
    return made


def _join_moves(rules: Sequence[_Rule]) -> list[_Rule]:
    """The rules, with one for all those that only move a subtree."""
    groups: defaultdict[tuple[str, str], list[_Rule]] = defaultdict(list)
    for rule in rules:
        if rule[2] is None or rule[2] == f"{REPLICA} ... -> ...":
            groups[_find_prefixes(rule)].append(rule)
    short: dict[int, _Rule] = {}
    gone: set[int] = set()
    for (target, source), members in groups.items():
        one, other = (f"{prefix}." if prefix else "" for prefix in (target, source))
        here = sum(rule[0].startswith(one) or rule[1].startswith(other) for rule in rules)
        if len(members) > 1 and here == len(members):
            first = members[0]
            short[id(first)] = first._replace(target=f"{one}{{...}}", source=f"{other}{{...}}")
            gone.update(id(rule) for rule in members[1:])
    return [short.get(id(rule), rule) for rule in rules if id(rule) not in gone]


def _find_prefixes(rule: _Rule) -> tuple[str, str]:
    """What precedes the elements that both names end in."""
    one, other = rule[0].split("."), rule[1].split(".")
    n = 0
    while n < min(len(one), len(other)) and one[-1 - n] == other[-1 - n]:
        n += 1
    return ".".join(one[: len(one) - n]), ".".join(other[: len(other) - n])


def _list_dropped(left: Sequence[Family], there: Sequence[Family]) -> list[str]:
    """Patterns of the leaves that nothing is made of: subtrees, or families."""
    heads, lasts = (Counter(map(find, there)) for find in (_find_head, _find_last))
    unused, others = (Counter(map(find, left)) for find in (_find_head, _find_last))
    patterns: dict[str, None] = {}
    for family in left:
        head, last = _find_head(family), _find_last(family)
        if unused[head] == heads[head] > 1 and family.first.name != head:
            patterns[f"{_escape_pattern(head)}.*"] = None
        elif others[last] == lasts[last] > 1:
            patterns[f"*.{_escape_pattern(last)}"] = None
        elif family.rank:
            patterns[family.write_name([f"{{{p}}}" for p in PLACEHOLDERS[: family.rank]])] = None
        else:
            patterns[_escape_pattern(family.first.name)] = None
    return list(patterns)


def _find_last(family: Family) -> str:
    return family.first.name.rpartition(".")[2]


def _find_head(family: Family) -> str:
    return family.first.name.partition(".")[0]


def _escape_pattern(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
