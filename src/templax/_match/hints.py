"""Hints on mismatches. Each is tried, by matching again as the hint says, before it is given."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from .._core.names import Path, find_nearest, join_path, normalize
from .._template.template import Template
from ..errors import Mismatch
from .leaf_hints import add_leaf_hints
from .match import CheckpointView, apply_at_and_rename, fit_leaf
from .options import MatchOptions
from .result import Match, format_mismatches

MAX_CANDIDATES = 8
"""Hints of one sort that are tried; each try costs one match."""

MAX_CHOICES = 3
"""Equally good places that a hint offers."""


@dataclass(frozen=True, slots=True)
class _Case:
    """A failed match and what it takes to try again."""

    result: Match
    side: CheckpointView
    options: MatchOptions
    match: Callable[[MatchOptions, Template], Match]

    def again(self, **changed: object) -> Match:
        return self.match(replace(self.options, **changed), self.result.template)

    def of(self, *problems: str) -> list[Mismatch]:
        return [m for m in self.result.mismatches if m.problem in problems]


def add_hints(
    result: Match,
    side: CheckpointView,
    options: MatchOptions,
    again: Callable[[MatchOptions, Template], Match],
) -> Match:
    """A failed match, its mismatches with hints where one helps; silent where none does.

    Args:
        result: The match, without hints.
        side: The checkpoint.
        options: Of the match.
        again: Matches the two with other options.
    """
    case = _Case(result, side, options, again)
    for whole_tree in (_at, _wrap, _value_level, _rename, _only_extra):
        better = whole_tree(case)
        if better is not None:
            result = better
            break
    if result.summary is not None:
        return result
    leaves = {t.name: t for t in result.template.targets}
    entries = {name: entry for _, name, entry in apply_at_and_rename(side, options)}
    return replace(result, mismatches=add_leaf_hints(result.mismatches, leaves, entries, options))


def _explained(case: _Case, hint: str, after: Match, summary: str | None, **more: object) -> Match:
    """The match with `hint` on each mismatch that it removes."""
    left = {(m.problem, m.name) for m in after.mismatches}
    mismatches = tuple(
        m if (m.problem, m.name) in left else replace(m, hint=hint) for m in case.result.mismatches
    )
    text = None
    if summary is not None:
        text = f"{summary}; hint: {hint}"
        n = len(after.mismatches)
        if n:
            text += f", which leaves {n} {'mismatch' if n == 1 else 'mismatches'}:\n"
            text += "\n".join(format_mismatches(after.mismatches))
    return replace(case.result, mismatches=mismatches, summary=text, **more)


def _better(case: _Case, after: Match) -> bool:
    """Whether most of what was missing is found now, and less is wrong than before."""
    absent = sum(m.problem == "missing" for m in after.mismatches)
    fewer = len(after.mismatches) < len(case.result.mismatches)
    return fewer and 2 * absent < len(case.of("missing"))


def _found(case: _Case) -> str:
    """`none of 148 leaves found in ckpt/1000`, or however many are."""
    total = sum(t.has_data for t in case.result.template.targets)
    found = total - len(case.of("missing"))
    text = f"{found or 'none'} of {total} {'leaf' if total == 1 else 'leaves'} found in"
    under = f" under `{case.options.at}`" if case.options.at else ""
    return f"{text} {case.result.url}{under}"


def _quoted(text: str) -> str:
    """A Python literal of a name, also of one that holds quotes."""
    return json.dumps(text, ensure_ascii=False)


def _at(case: _Case) -> Match | None:
    """The checkpoint holds the template's tree deeper (or less deep) than `at` says."""
    if not case.of("missing") or not case.side.entries:
        return None
    wanted = {t.name for t in case.result.template.targets if t.has_data}
    votes: Counter[str] = Counter()
    depth: dict[str, int] = {}
    for entry in case.side.entries:
        for i in range(len(entry.path) + 1):
            if join_path(entry.path[i:]) in wanted:
                at = join_path(entry.path[:i])
                votes[at] += 1
                depth[at] = i
    candidates = votes.most_common(MAX_CANDIDATES + 1)
    if len(candidates) > MAX_CANDIDATES and candidates[-1][1] == candidates[0][1]:
        return None  # more places look alike than are worth trying
    works: list[tuple[int, int, str, Match]] = []
    for at, _ in candidates[:MAX_CANDIDATES]:
        if at != case.options.at:
            after = case.again(at=at)
            if _better(case, after):
                works.append((len(after.mismatches), depth[at], at, after))
    if not works:
        return None
    # The same tree may be there several times: the moments of an optimizer look like parameters.
    least = min(work[0] for work in works)
    works = sorted((w for w in works if w[0] == least), key=lambda w: w[1:3])
    first = [w for w in works if w[1] == works[0][1]]
    after = first[0][3]
    if len(first) > MAX_CHOICES or (len(first) > 1 and after.mismatches):
        return None
    places = " and ".join(f"under `{at}`" if at else "at its root" for _, _, at, _ in first)
    deeper = [f"`{at}`" for _, _, at, _ in works[len(first) :]]
    also = f" (as well as under {' and '.join(deeper[:MAX_CHOICES])})" if deeper else ""
    held = "the same tree" if not any(m.problem == "missing" for m in after.mismatches) else "most"
    summary = f"{_found(case)}; the checkpoint holds {held} {places}{also}"
    hint = " or ".join(f"at={_quoted(at)}" for _, _, at, _ in first)
    return _explained(case, hint, after, summary)


def _wrap(case: _Case) -> Match | None:
    """The template holds the checkpoint's tree under a prefix."""
    if not case.of("missing") or case.options.rename is not None:
        return None
    names = {name for _, name, _ in apply_at_and_rename(case.side, case.options)}
    votes: Counter[str] = Counter()
    for target in case.result.template.targets:
        for i in range(1, len(target.path) + 1):
            if join_path(target.path[i:]) in names:
                votes[join_path(target.path[:i])] += 1
    for prefix, _ in votes.most_common(1):
        rename = {"": prefix}
        after = case.again(rename=rename)
        if _better(case, after):
            summary = f"{_found(case)}; the template wraps the checkpoint's tree in `{prefix}`"
            return _explained(case, f"rename={_literal(rename)}", after, summary, rename=rename)
    return None


_VALUE: tuple[tuple[str, Callable[[str], str]], ...] = (
    ('rename=lambda name: name.removesuffix(".value")', lambda name: name.removesuffix(".value")),
    ('rename=lambda name: name + ".value"', lambda name: name + ".value"),
)


def _value_level(case: _Case) -> Match | None:
    """One side has the extra `value` level of NNX variables and of Flax's boxes."""
    if not case.of("missing") or case.options.rename is not None:
        return None
    for hint, rename in _VALUE:
        after = case.again(rename=rename)
        if _better(case, after):
            side = "checkpoint" if "removesuffix" in hint else "template"
            summary = (
                f"{_found(case)}; the {side} has an extra level `value`"
                " (an NNX variable or a Flax box)"
            )
            return _explained(case, hint, after, summary)
    return None


def _rename(case: _Case) -> Match | None:
    """Leaves of the checkpoint whose names are near the missing ones: another case or spelling."""
    missing, extra = case.of("missing"), case.of("extra")
    if not missing or not extra or case.options.rename is not None:
        return None
    leaves = {t.name: t for t in case.result.template.targets}
    entries = {
        name: (path, entry) for path, name, entry in apply_at_and_rename(case.side, case.options)
    }
    spare = {m.name for m in extra}
    folded: dict[str, list[str]] = defaultdict(list)
    for name in spare:
        folded[normalize(name)].append(name)
    pairs: dict[str, str] = {}
    for m in missing:
        same = folded.get(normalize(m.name), [])
        near = same[0] if len(same) == 1 else None
        if near is None and not same and len(missing) * len(spare) <= 10_000:
            siblings = [n for n in spare if entries[n][0][:-1] == leaves[m.name].path[:-1]]
            near = find_nearest(m.name, siblings)
        if (
            near is not None
            and not fit_leaf(leaves[m.name], entries[near][1], case.options.cast)[0]
        ):
            pairs[m.name] = near
    if len(set(pairs.values())) != len(pairs) or not pairs:
        return None  # two leaves want the same one
    rename = dict(_prefix_pair(entries[old][0], leaves[new].path) for new, old in pairs.items())
    after = case.again(rename=rename)
    gone = {(m.problem, m.name) for m in case.result.mismatches} - {
        (m.problem, m.name) for m in after.mismatches
    }
    solved = {("missing", new) for new in pairs} | {("extra", old) for old in pairs.values()}
    if not solved <= gone or len(after.mismatches) != len(case.result.mismatches) - len(solved):
        return None
    noted = [
        replace(m, note=f"nearest: `{pairs[m.name]}`")
        if m.problem == "missing" and m.name in pairs
        else m
        for m in case.result.mismatches
    ]
    case = replace(case, result=replace(case.result, mismatches=tuple(noted)))
    return _explained(case, f"rename={_literal(rename)}", after, None, rename=rename)


def _prefix_pair(old: Path, new: Path) -> tuple[str, str]:
    """Two paths without the end they share: `a.Dense_0.w`, `a.dense_0.w` → `a.Dense_0`, ..."""
    o, n = list(map(str, old)), list(map(str, new))
    while len(o) > 1 and len(n) > 1 and o[-1] == n[-1]:
        o.pop()
        n.pop()
    return ".".join(o), ".".join(n)


def _only_extra(case: _Case) -> Match | None:
    if len(case.of("extra")) != len(case.result.mismatches):
        return None
    after = case.again(extra="ignore")
    return _explained(case, 'extra="ignore"', after, None) if after.ok else None


def _literal(rename: Mapping[str, str]) -> str:
    items = [f"{_quoted(old)}: {_quoted(new)}" for old, new in rename.items()]
    if len(items) <= 6:
        return "{" + ", ".join(items) + "}"
    return (
        "{"
        + ", ".join(items[:3])
        + f", ...}} ({len(items)} entries, whole in `error.match.rename`)"
    )
