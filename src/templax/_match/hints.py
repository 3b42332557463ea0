"""Hints that explain a whole tree. A hint is given only if matching again with it helps.

Hints about single leaves are in `leaf_hints`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from .._core.names import join_path
from .._core.text import list_names, quote_text
from .._template.template import Template
from .failure import Failure, add_hint, count_found, is_much_better
from .leaf_hints import add_leaf_hints
from .match import CheckpointView, apply_at_and_rename
from .missing_hints import suggest_missing
from .options import MatchOptions
from .rename_hints import (
    suggest_other_word,
    suggest_renames,
    suggest_respelling,
    suggest_setting_aside,
    suggest_wrapping,
)
from .result import Match
from .shape_hints import find_undecidable

MAX_CANDIDATES = 8
"""How many values of `at` are tried; each try costs one match."""

MAX_CHOICES = 3
"""How many equally good values of `at` a hint offers."""


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
    failure = Failure(result, checkpoint, options, match_with)
    if lacks_arrays(result.template):
        return replace(result, summary=explain_lack_of_arrays(result.template))
    for suggest in (
        _suggest_at,
        suggest_wrapping,
        suggest_respelling,
        suggest_renames,
        suggest_other_word,
        suggest_setting_aside,
        _explain_empty_at,
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
    mismatches = add_leaf_hints(result.mismatches, targets, entries, options)
    undecidable = find_undecidable(mismatches, result.pairs, targets, entries)
    result = replace(result, mismatches=mismatches, undecidable=undecidable or result.undecidable)
    return suggest_missing(replace(failure, result=result))


def lacks_arrays(template: Template) -> bool:
    """Whether a template neither asks for a leaf nor leaves one out with `...`."""
    return all(target.kind == "static" for target in template.targets)


def explain_lack_of_arrays(template: Template) -> str:
    """What is wrong with a template without leaves, such as a module instead of its variables."""
    leaf = getattr(template.targets[0].placement, "leaf", None) if template.targets else None
    got = "no leaves" if leaf is None else type(leaf).__name__
    return (
        f"Expected a template with arrays, got {got}; hint: tx.template_of(model.init, ...) makes"
        " one of what a function returns, tx.open(checkpoint).template() of what is stored"
    )


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A value of `at`, and the match with it."""

    at: str
    depth: int
    after: Match


def _suggest_at(failure: Failure) -> Match | None:
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
    summary = f"{count_found(failure)}; the checkpoint holds {content} {places}{also}"
    hint = " or ".join(f"at={quote_text(candidate.at)}" for candidate in shallowest)
    return add_hint(failure, hint, after, summary)


def _try_other_subtrees(failure: Failure) -> list[_Candidate]:
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
            if is_much_better(failure, after):
                working.append(_Candidate(at, depths[at], after))
    return working


def _explain_empty_at(failure: Failure) -> Match | None:
    """Says that nothing lies under `at`, and what does lie where it begins."""
    at = failure.options.at
    if not at or not failure.select("missing") or failure.leaves_by_name():
        return None
    names = list(dict.fromkeys(str(e.path[0]) for e in failure.checkpoint.entries if e.path))
    if not names:
        return None
    summary = f"{count_found(failure)}, where nothing is; the checkpoint holds {list_names(names)}"
    return replace(failure.result, summary=summary)


def _suggest_ignoring_extras(failure: Failure) -> Match | None:
    """Tries `extra="ignore"` if there are extra leaves and no other mismatches."""
    if len(failure.select("extra")) != len(failure.result.mismatches):
        return None
    after = failure.retry(extra="ignore")
    return add_hint(failure, 'extra="ignore"', after, None) if after.ok else None
