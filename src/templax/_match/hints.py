"""Hints that explain a whole tree. A hint is given only if matching again with it helps.

Hints about single leaves are in `leaf_hints`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from .._core.optional import is_jax_installed
from .._core.text import list_names
from .._escape import escape_text
from .._template.template import Template
from ..errors import NOT_READ
from .at_hints import suggest_at
from .checkpoint_view import CheckpointView, apply_at_and_rename, rename_unread
from .collection_hints import suggest_collections
from .failure import Failure, add_hint, count_found
from .leaf_hints import add_leaf_hints
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

_MAX_LEAVES, _MAX_STEPS = 30_000, 2_000_000
"""Hints are looked for among up to this many leaves of both trees together, and in up to this many
steps: the sum of the squared depths of the leaves, as hints look at each subtree around a leaf."""


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
    if lacks_arrays(result.template):
        return replace(result, summary=escape_text(explain_lack_of_arrays(result.template)))
    unsearched = _find_reason_against(checkpoint, result.template)
    if unsearched is not None:
        first, *others = result.mismatches
        note = "; ".join(filter(None, (first.note, unsearched)))
        return replace(result, mismatches=(replace(first, note=note), *others))
    failure = Failure(result, checkpoint, options, match_with)
    for suggest in (
        suggest_collections,
        suggest_at,
        suggest_wrapping,
        suggest_respelling,
        suggest_renames,
        suggest_other_word,
        suggest_setting_aside,
        _explain_empty_at,
        _suggest_ignoring_extras,
    ):
        explained = suggest(failure)
        if explained is not None and not _has_hint_for_unread(explained):
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


def _has_hint_for_unread(result: Match) -> bool:
    """Whether a hint takes other leaves in place of those that are there, but can't be read."""
    unread = [m for m in result.mismatches if m.problem == "missing" and m.found == NOT_READ]
    return any(m.hint is not None for m in unread)


def _find_reason_against(checkpoint: CheckpointView, template: Template) -> str | None:
    """Why there is too much to look for hints in; None if there is not."""
    n = len(checkpoint.entries) + len(template.targets)
    if n > _MAX_LEAVES:
        return f"no hints are looked for among more than {_MAX_LEAVES:,} leaves"
    leaves = (*checkpoint.entries, *template.targets)
    # A key may contain dots, which rename hints treat as levels.
    steps = sum((leaf.name.count(".") + 1) ** 2 for leaf in leaves)
    return "no hints are looked for in so deep a tree" if steps > _MAX_STEPS else None


def lacks_arrays(template: Template) -> bool:
    """Whether a template neither asks for a leaf nor leaves one out with `...`."""
    return all(target.kind == "static" for target in template.targets)


def explain_lack_of_arrays(template: Template) -> str:
    """What is wrong with a template without leaves, such as a module instead of its variables."""
    leaf = getattr(template.targets[0].placement, "leaf", None) if template.targets else None
    got = "no leaves" if leaf is None else type(leaf).__name__
    hint = "tx.open(checkpoint).template() makes one of what is stored"
    if is_jax_installed():
        hint = (
            "tx.template_of(model.init, ...) makes one of what a function returns,"
            " tx.open(checkpoint).template() of what is stored"
        )
    return f"Expected a template with arrays, got {got}; hint: {hint}"


def _explain_empty_at(failure: Failure) -> Match | None:
    """Says that nothing lies under `at`, and what does lie where it begins."""
    at = failure.options.at
    if not at or not failure.select("missing") or failure.leaves_by_name():
        return None
    if rename_unread(failure.checkpoint.unread, failure.options):
        return None  # there are leaves, which are not read
    names = list(dict.fromkeys(str(e.path[0]) for e in failure.checkpoint.entries if e.path))
    if not names:
        return None
    summary = f"{count_found(failure)}, where nothing is; the checkpoint holds {list_names(names)}"
    return replace(failure.result, summary=escape_text(summary))


def _suggest_ignoring_extras(failure: Failure) -> Match | None:
    """Tries `extra="ignore"` if there are extra leaves and no other mismatches.

    Silent where the caller has given patterns, which the hint would replace.
    """
    if len(failure.select("extra")) != len(failure.result.mismatches):
        return None
    if isinstance(failure.options.extra, Mapping):
        return None
    after = failure.retry(extra="ignore")
    return add_hint(failure, 'extra="ignore"', after, None) if after.ok else None
