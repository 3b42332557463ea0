"""Hints on `missing=`: for leaves that only the template has, such as those of a new head."""

from __future__ import annotations

from dataclasses import replace

from .._catalog.entry import LeafEntry
from .._core.names import join_path
from ..errors import Mismatch
from .failure import Failure, solves_only
from .match import CheckpointView, match_leaves
from .result import Match


def suggest_missing(failure: Failure) -> Match:
    """Tries `missing=` for the missing leaves that have no other hint.

    Silent where the checkpoint has nothing that the template wants, since `at` or all names are
    wrong then; for a leaf that an untaken leaf of the checkpoint fits, which may have another name;
    and where the caller has given checkpoints or patterns, which the hint would replace.

    Args:
        failure: The failed match, with all other hints.
    """
    result = failure.result
    if failure.options.missing not in ("error", "keep"):
        return result
    taken = result.rename is not None or not all(pair.source for pair in result.pairs)
    names = _list_new_leaves(failure) if taken else set()
    solved = {("missing", name) for name in names}
    targets = [t for t in result.template.targets if t.name in names]
    if not targets:
        return result
    if all(t.concrete for t in targets) and solves_only(
        failure, failure.retry(missing="keep"), solved
    ):
        hint = 'missing="keep"'
    elif solves_only(failure, _match_with_all_supplied(failure), solved):
        hint = "missing=tx.Recipe(init, ...), where init(...) makes such a tree"
    else:
        return result
    mismatches = tuple(
        replace(m, hint=hint) if (m.problem, m.name) in solved else m for m in result.mismatches
    )
    return replace(result, mismatches=mismatches)


def _list_new_leaves(failure: Failure) -> set[str]:
    """Names of the missing leaves that are nowhere in the checkpoint, under whatever name."""
    targets = failure.targets_by_name()
    missing = {
        m.name for m in failure.select("missing") if m.name in targets and _is_unexplained(m)
    }
    return missing - failure.find_possible(missing)


def _is_unexplained(m: Mismatch) -> bool:
    return m.hint is None and m.found == "none" and "nearest" not in (m.note or "")


def _match_with_all_supplied(failure: Failure) -> Match:
    """The match if `missing=` were a checkpoint with every leaf of the template."""
    result, options = failure.result, failure.options
    at = tuple(options.at.split(".")) if options.at else ()
    supplied: list[LeafEntry] = []
    for t in failure.targets_by_name().values():
        if t.kind != "skip" and t.kind != "static":
            path = (*at, *t.path)
            supplied.append(LeafEntry(join_path(path), path, t.shape, t.dtype, t.kind, t.key_impl))
    return match_leaves(
        failure.checkpoint,
        result.template,
        replace(options, missing=1),
        [CheckpointView(supplied)],
    )
