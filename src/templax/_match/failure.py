"""A failed match, what is needed to match again, and the hint that a successful try gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from .._catalog.entry import LeafEntry
from .._core.names import Path, Rename
from .._core.text import leaf_noun, list_names
from .._escape import escape_text
from .._template.template import Target, Template
from ..errors import Mismatch
from .checkpoint_view import CheckpointView, apply_at_and_rename
from .meaning import find_leaf_word
from .options import MatchOptions
from .rename_text import combine_renames, format_rename
from .result import Match, format_mismatches

MAX_COMPARISONS = 100_000
"""How many pairs of a wanted and an untaken leaf are compared."""


@dataclass(frozen=True, slots=True)
class Failure:
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

    def targets_by_name(self) -> dict[str, Target]:
        """The leaves of the template that hold data."""
        return {t.name: t for t in self.result.template.targets if t.has_data}

    def leaves_by_name(self) -> dict[str, tuple[Path, LeafEntry]]:
        """The leaves of the checkpoint, by name after `at` and `rename`."""
        renamed = apply_at_and_rename(self.checkpoint, self.options)
        return {name: (path, entry) for path, name, entry in renamed}

    def extend_rename(self, more: Rename) -> Mapping[str, str] | None:
        """A mapping for `rename=` that does what the caller's does and then `more`.

        None if there is no such mapping.
        """
        given = self.options.rename
        if given is None and isinstance(more, Mapping):
            return more
        return combine_renames(given or {}, more, self._list_stored())

    def format_rename(self, rename: Mapping[str, str]) -> str:
        """A mapping as an argument of `restore`."""
        return format_rename(rename, self._list_stored())

    def _list_stored(self) -> list[Path]:
        """The paths of the leaves of the checkpoint, by `at`, but not renamed."""
        stored = apply_at_and_rename(self.checkpoint, replace(self.options, rename=None))
        return [path for path, _, _ in stored]

    def find_possible(self, wanted: set[str]) -> set[str]:
        """Those of some targets that an untaken leaf may be, under another name, perhaps turned.

        All of them, if there are too many to compare.
        """
        explained = {m.name for m in self.select("extra") if m.hint is not None}
        taken = {p.target.name for p in self.result.pairs if not p.source} | explained
        targets, leaves = self.targets_by_name(), self.leaves_by_name()
        untaken = [entry for name, (_, entry) in leaves.items() if name not in taken]
        if len(wanted) * len(untaken) > MAX_COMPARISONS:
            return wanted
        return {name for name in wanted if any(_may_be(targets[name], e) for e in untaken)}


def _may_be(target: Target, entry: LeafEntry) -> bool:
    same_kind = target.kind == entry.kind or "scalar" in (target.kind, entry.kind)
    return same_kind and sorted(target.user_shape) == sorted(entry.user_shape)


def is_much_better(failure: Failure, after: Match) -> bool:
    """Whether there are fewer mismatches, and more than half of the missing leaves are found."""
    still_missing = sum(m.problem == "missing" for m in after.mismatches)
    fewer = len(after.mismatches) < len(failure.result.mismatches)
    return fewer and 2 * still_missing < len(failure.select("missing"))


def add_rename_hint(
    failure: Failure, rename: Mapping[str, str], after: Match, summary: str | None
) -> Match:
    """`add_hint` for a `rename=` that is a mapping."""
    return replace(add_hint(failure, failure.format_rename(rename), after, summary), rename=rename)


def add_hint(failure: Failure, hint: str, after: Match, summary: str | None) -> Match:
    """The failed match with `hint` at each mismatch that following it removes.

    Args:
        failure: The failed match.
        hint: How to call `restore` instead.
        after: The match that following the hint gives.
        summary: What is wrong, if one sentence says it for the whole tree.
    """
    remaining = identify_mismatches(after.mismatches)
    mismatches = tuple(
        m if (m.problem, m.name) in remaining else replace(m, hint=hint)
        for m in failure.result.mismatches
    )
    undecidable = _list_undecidable(after)
    if summary is not None:
        if undecidable:
            summary += (
                f"; can't tell by its shape whether {list_names(undecidable)} is transposed, as"
                " PyTorch stores it"
            )
        summary = escape_text(f"{summary}; hint: {hint}")
        n = len(after.mismatches)
        if n:
            summary += f", which leaves {n} {'mismatch' if n == 1 else 'mismatches'}:\n"
            summary += "\n".join(format_mismatches(after.mismatches))
    return replace(failure.result, mismatches=mismatches, summary=summary, undecidable=undecidable)


def _list_undecidable(after: Match) -> tuple[str, ...]:
    """Square leaves that a hint renames from `weight` to `kernel`, if nothing tells their layout.

    PyTorch stores the transpose of what Flax calls a kernel; the inverse is as uncertain. A leaf
    that is not square and fits shows that the two trees agree.
    """
    renamed = [
        pair
        for pair in after.pairs
        if not pair.source
        and {*map(find_leaf_word, (pair.entry.name, pair.target.name))} == {"weight", "kernel"}
        and len(pair.entry.shape) > 1
    ]
    square = [p for p in renamed if p.entry.shape[::-1] == p.entry.shape != (1, 1)]
    return tuple(p.target.name for p in square) if len(square) == len(renamed) else ()


def solves_only(failure: Failure, after: Match, solved: set[tuple[str, str]]) -> bool:
    """Whether `after` has none of the mismatches in `solved`, and no new ones."""
    before = identify_mismatches(failure.result.mismatches)
    return bool(solved) and identify_mismatches(after.mismatches) <= before - solved


def identify_mismatches(mismatches: Iterable[Mismatch]) -> set[tuple[str, str]]:
    return {(m.problem, m.name) for m in mismatches}


def count_found(failure: Failure) -> str:
    """How many leaves were found: `none of 148 leaves found in ckpt/1000`."""
    total = sum(t.has_data for t in failure.result.template.targets)
    found = total - len(failure.select("missing"))
    under = f" under `{failure.options.at}`" if failure.options.at else ""
    return f"{found or 'none'} of {total} {leaf_noun(total)} found in {failure.result.url}{under}"
