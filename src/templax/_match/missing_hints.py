"""Hints on `missing=`: for leaves that only the template has, such as those of a new head."""

from __future__ import annotations

from dataclasses import replace

from .._catalog.entry import LeafEntry
from .._core.names import join_path, split_name
from .._core.text import list_names
from ..errors import Mismatch
from .checkpoint_view import CheckpointView
from .failure import Failure, solves_only
from .match import fit_leaf, match_leaves
from .meaning import is_average, is_embedding, list_moments
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
    tied = _suggest_tied(failure, names, solved)
    if tied is not None:
        hint = f"{tied}; if not, {hint}"
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


def _suggest_tied(failure: Failure, names: set[str], solved: set[tuple[str, str]]) -> str | None:
    """Tries to take missing leaves from the embeddings that the saved model may have shared.

    A leaf of a checkpoint fills one of a template. Given a second time, as what supplies missing
    leaves, the checkpoint fills both, as a supplier keeps the names that are renamed in the first.
    """
    sources = _find_embeddings(failure, names)
    if sources is None:
        return None
    rename = failure.extend_rename({old: new for new, old in sources.items()})
    if rename is None:
        return None
    options = replace(failure.options, rename=rename, missing=1)
    after = match_leaves(failure.checkpoint, failure.result.template, options, [failure.checkpoint])
    if not solves_only(failure, after, solved):
        return None
    shared = list_names(list(dict.fromkeys(sources.values())))
    call = f"{failure.format_rename(rename)}, missing=checkpoint"
    return f"if the saved model tied it to {shared}: {call} (the same checkpoint once more)"


def _find_embeddings(failure: Failure, names: set[str]) -> dict[str, str] | None:
    """For each missing leaf, the one leaf of its shape that the template takes as an embedding.

    None if one of them has no such leaf, or several.
    """
    pairs = [pair for pair in failure.result.pairs if not pair.source]
    found: dict[str, str] = {}
    for target in failure.targets_by_name().values():
        if target.name not in names:
            continue
        alike = [
            pair.target
            for pair in pairs
            if pair.target.shape == target.shape
            and list_moments(pair.target.path) == list_moments(target.path)
            and is_average(pair.target.path) == is_average(target.path)
            and not fit_leaf(target, pair.entry, failure.options.cast)[0]
        ]
        if len(target.shape) < 2 or len(alike) != 1 or not is_embedding(alike[0].path):
            return None
        found[target.name] = alike[0].name
    return found if len(set(found.values())) == len(found) else None


def _is_unexplained(m: Mismatch) -> bool:
    return m.hint is None and m.found == "none" and "nearest" not in (m.note or "")


def _match_with_all_supplied(failure: Failure) -> Match:
    """The match if `missing=` were a checkpoint with every leaf of the template."""
    result, options = failure.result, failure.options
    at = split_name(options.at)
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
