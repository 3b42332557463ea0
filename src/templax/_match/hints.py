"""Hints that explain a whole tree. A hint is given only if matching again with it helps.

Hints about single leaves are in `leaf_hints`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from .._catalog.entry import LeafEntry
from .._core.names import Path, find_nearest, join_path, normalize
from .._core.text import leaf_noun, quote_text
from .._template.template import Target, Template
from ..errors import Mismatch
from .leaf_hints import add_leaf_hints
from .match import CheckpointView, apply_at_and_rename, fit_leaf
from .options import MatchOptions
from .result import Match, format_mismatches

MAX_CANDIDATES = 8
"""How many values of `at` are tried; each try costs one match."""

MAX_CHOICES = 3
"""How many equally good values of `at` a hint offers."""

MAX_RENAMES = 6
"""How many entries of a mapping a hint spells out."""

MAX_COMPARISONS = 10_000
"""How many pairs of names are compared for similarity."""


def add_hints(
    result: Match,
    checkpoint: CheckpointView,
    options: MatchOptions,
    match_with: Callable[[MatchOptions, Template], Match],
) -> Match:
    """Adds hints to the mismatches of a failed match, where a hint helps.

    Args:
        result: The match, without hints.
        checkpoint: The checkpoint.
        options: The options of the match.
        match_with: Matches the checkpoint with a template again, with other options.
    """
    failure = _Failure(result, checkpoint, options, match_with)
    for suggest in (
        _suggest_at,
        _suggest_wrapping,
        _suggest_value_level,
        _suggest_renames,
        _suggest_ignoring_extras,
    ):
        explained = suggest(failure)
        if explained is not None:
            result = explained
            break
    if result.summary is not None:
        return result  # one sentence explains all mismatches
    targets = {t.name: t for t in result.template.targets}
    entries = {name: entry for _, name, entry in apply_at_and_rename(checkpoint, options)}
    return replace(result, mismatches=add_leaf_hints(result.mismatches, targets, entries, options))


@dataclass(frozen=True, slots=True)
class _Failure:
    """A failed match, and what is needed to match again."""

    result: Match
    checkpoint: CheckpointView
    options: MatchOptions
    match_with: Callable[[MatchOptions, Template], Match]

    def retry(self, **changes: object) -> Match:
        """Matches again with some options changed."""
        return self.match_with(replace(self.options, **changes), self.result.template)

    def select(self, problem: str) -> list[Mismatch]:
        """The mismatches of one kind."""
        return [m for m in self.result.mismatches if m.problem == problem]


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A value of `at`, and the match with it."""

    at: str
    depth: int
    after: Match


def _suggest_at(failure: _Failure) -> Match | None:
    """Tries other values of `at`: the checkpoint may hold the template's tree elsewhere."""
    if not failure.select("missing") or not failure.checkpoint.entries:
        return None
    working = _try_other_subtrees(failure)
    if not working:
        return None
    # Several subtrees may fit equally well, since the moments of an optimizer have the structure of
    # the parameters. The parameters are usually less deep, so the hint offers the shallowest.
    fewest = min(len(candidate.after.mismatches) for candidate in working)
    best = [candidate for candidate in working if len(candidate.after.mismatches) == fewest]
    best.sort(key=lambda candidate: (candidate.depth, candidate.at))
    shallowest = [candidate for candidate in best if candidate.depth == best[0].depth]
    after = shallowest[0].after
    if len(shallowest) > MAX_CHOICES or (len(shallowest) > 1 and after.mismatches):
        return None
    content = "most" if any(m.problem == "missing" for m in after.mismatches) else "the same tree"
    places = " and ".join(f"under `{c.at}`" if c.at else "at its root" for c in shallowest)
    deeper = [f"`{candidate.at}`" for candidate in best[len(shallowest) :]]
    also = f" (as well as under {' and '.join(deeper[:MAX_CHOICES])})" if deeper else ""
    summary = f"{_count_found(failure)}; the checkpoint holds {content} {places}{also}"
    hint = " or ".join(f"at={quote_text(candidate.at)}" for candidate in shallowest)
    return _add_hint(failure, hint, after, summary)


def _try_other_subtrees(failure: _Failure) -> list[_Candidate]:
    """Matches with those values of `at` under which most wanted names occur; keeps what helps."""
    wanted = {t.name for t in failure.result.template.targets if t.has_data}
    votes: Counter[str] = Counter()
    depths: dict[str, int] = {}
    for entry in failure.checkpoint.entries:
        for depth in range(len(entry.path) + 1):
            if join_path(entry.path[depth:]) in wanted:
                at = join_path(entry.path[:depth])
                votes[at] += 1
                depths[at] = depth
    ranked = votes.most_common(MAX_CANDIDATES + 1)
    if len(ranked) > MAX_CANDIDATES and ranked[-1][1] == ranked[0][1]:
        return []  # too many subtrees look alike
    working = []
    for at, _ in ranked[:MAX_CANDIDATES]:
        if at != failure.options.at:
            after = failure.retry(at=at)
            if _is_much_better(failure, after):
                working.append(_Candidate(at, depths[at], after))
    return working


def _suggest_wrapping(failure: _Failure) -> Match | None:
    """Tries a prefix for all names of the checkpoint: the template may wrap its tree in one."""
    if not failure.select("missing") or failure.options.rename is not None:
        return None
    names = {name for _, name, _ in apply_at_and_rename(failure.checkpoint, failure.options)}
    votes: Counter[str] = Counter()
    for target in failure.result.template.targets:
        for i in range(1, len(target.path) + 1):
            if join_path(target.path[i:]) in names:
                votes[join_path(target.path[:i])] += 1
    for prefix, _ in votes.most_common(1):
        rename = {"": prefix}
        after = failure.retry(rename=rename)
        if _is_much_better(failure, after):
            found = _count_found(failure)
            summary = f"{found}; the template wraps the checkpoint's tree in `{prefix}`"
            hint = f"rename={_format_mapping(rename)}"
            return _add_hint(failure, hint, after, summary, rename=rename)
    return None


_VALUE_RENAMES: tuple[tuple[str, str, Callable[[str], str]], ...] = (
    (
        "checkpoint",
        'rename=lambda name: name.removesuffix(".value")',
        lambda name: name.removesuffix(".value"),
    ),
    ("template", 'rename=lambda name: name + ".value"', lambda name: name + ".value"),
)
"""The side that has the level `value`, the hint, and the rename that the hint spells out."""


def _suggest_value_level(failure: _Failure) -> Match | None:
    """Tries to add or remove the level `value`, which NNX variables and Flax boxes have."""
    if not failure.select("missing") or failure.options.rename is not None:
        return None
    for side, hint, rename in _VALUE_RENAMES:
        after = failure.retry(rename=rename)
        if _is_much_better(failure, after):
            summary = (
                f"{_count_found(failure)}; the {side} has an extra level `value`"
                " (an NNX variable or a Flax box)"
            )
            return _add_hint(failure, hint, after, summary)
    return None


def _suggest_renames(failure: _Failure) -> Match | None:
    """Tries to rename extra leaves to missing ones that are spelled almost alike."""
    if not failure.select("missing") or not failure.select("extra"):
        return None
    if failure.options.rename is not None:
        return None
    targets = {t.name: t for t in failure.result.template.targets}
    leaves = {
        name: (path, entry)
        for path, name, entry in apply_at_and_rename(failure.checkpoint, failure.options)
    }
    old_names = _pair_similar_names(failure, targets, leaves)
    if not old_names or len(set(old_names.values())) != len(old_names):
        return None  # nothing to rename, or two targets want the same leaf
    rename = dict(
        _strip_common_end(leaves[old][0], targets[new].path) for new, old in old_names.items()
    )
    after = failure.retry(rename=rename)
    # The hint must solve exactly these mismatches: a prefix may rename other leaves as well.
    solved = {("missing", new) for new in old_names} | {("extra", o) for o in old_names.values()}
    before = failure.result.mismatches
    removed = _identify(before) - _identify(after.mismatches)
    if not solved <= removed or len(after.mismatches) != len(before) - len(solved):
        return None
    noted = tuple(
        replace(m, note=f"nearest: `{old_names[m.name]}`")
        if m.problem == "missing" and m.name in old_names
        else m
        for m in before
    )
    failure = replace(failure, result=replace(failure.result, mismatches=noted))
    hint = f"rename={_format_mapping(rename)}"
    return _add_hint(failure, hint, after, None, rename=rename)


def _pair_similar_names(
    failure: _Failure,
    targets: Mapping[str, Target],
    leaves: Mapping[str, tuple[Path, LeafEntry]],
) -> dict[str, str]:
    """Finds, for missing leaves, an extra one with a similar name that fits: `{new: old}`."""
    missing = failure.select("missing")
    extras = {m.name for m in failure.select("extra")}
    by_normalized: dict[str, list[str]] = defaultdict(list)
    for name in extras:
        by_normalized[normalize(name)].append(name)
    old_names: dict[str, str] = {}
    for m in missing:
        target = targets[m.name]
        same = by_normalized.get(normalize(m.name), [])
        near = same[0] if len(same) == 1 else None
        if near is None and not same and len(missing) * len(extras) <= MAX_COMPARISONS:
            siblings = [name for name in extras if leaves[name][0][:-1] == target.path[:-1]]
            near = find_nearest(m.name, siblings)
        if near is not None:
            mismatches, _ = fit_leaf(target, leaves[near][1], failure.options.cast)
            if not mismatches:
                old_names[m.name] = near
    return old_names


def _strip_common_end(old: Path, new: Path) -> tuple[str, str]:
    """Two paths without the end that they share: `a.Dense_0.w`, `a.dense_0.w` → `a.Dense_0`, ..."""
    old_elements, new_elements = list(map(str, old)), list(map(str, new))
    while len(old_elements) > 1 and len(new_elements) > 1 and old_elements[-1] == new_elements[-1]:
        old_elements.pop()
        new_elements.pop()
    return ".".join(old_elements), ".".join(new_elements)


def _suggest_ignoring_extras(failure: _Failure) -> Match | None:
    """Tries `extra="ignore"` if there are extra leaves and no other mismatches."""
    if len(failure.select("extra")) != len(failure.result.mismatches):
        return None
    after = failure.retry(extra="ignore")
    return _add_hint(failure, 'extra="ignore"', after, None) if after.ok else None


def _is_much_better(failure: _Failure, after: Match) -> bool:
    """Whether there are fewer mismatches, and more than half of the missing leaves are found."""
    still_missing = sum(m.problem == "missing" for m in after.mismatches)
    fewer = len(after.mismatches) < len(failure.result.mismatches)
    return fewer and 2 * still_missing < len(failure.select("missing"))


def _add_hint(
    failure: _Failure, hint: str, after: Match, summary: str | None, **changes: object
) -> Match:
    """The failed match with `hint` at each mismatch that following it removes.

    Args:
        failure: The failed match.
        hint: How to call `restore` instead.
        after: The match that following the hint gives.
        summary: What is wrong, if one sentence says it for the whole tree.
        **changes: Other attributes of the result.
    """
    remaining = _identify(after.mismatches)
    mismatches = tuple(
        m if (m.problem, m.name) in remaining else replace(m, hint=hint)
        for m in failure.result.mismatches
    )
    if summary is not None:
        summary = f"{summary}; hint: {hint}"
        n = len(after.mismatches)
        if n:
            summary += f", which leaves {n} {'mismatch' if n == 1 else 'mismatches'}:\n"
            summary += "\n".join(format_mismatches(after.mismatches))
    return replace(failure.result, mismatches=mismatches, summary=summary, **changes)


def _identify(mismatches: Iterable[Mismatch]) -> set[tuple[str, str]]:
    return {(m.problem, m.name) for m in mismatches}


def _count_found(failure: _Failure) -> str:
    """How many leaves were found: `none of 148 leaves found in ckpt/1000`."""
    total = sum(t.has_data for t in failure.result.template.targets)
    found = total - len(failure.select("missing"))
    under = f" under `{failure.options.at}`" if failure.options.at else ""
    return f"{found or 'none'} of {total} {leaf_noun(total)} found in {failure.result.url}{under}"


def _format_mapping(rename: Mapping[str, str]) -> str:
    """A mapping as Python source. A long one is shortened, and complete in `Match.rename` only."""
    items = [f"{quote_text(old)}: {quote_text(new)}" for old, new in rename.items()]
    if len(items) <= MAX_RENAMES:
        return "{" + ", ".join(items) + "}"
    shown = ", ".join(items[:3])
    return f"{{{shown}, ...}} ({len(items)} entries, whole in `error.match.rename`)"
