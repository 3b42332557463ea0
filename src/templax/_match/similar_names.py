"""Finds the leaf of a checkpoint that a missing leaf of a template may be called in it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from .._catalog.entry import LeafEntry
from .._core.names import Path
from .._template.template import Target
from .failure import Failure
from .match import fit_leaf
from .meaning import find_role, is_norm, list_plurals, spell_plainly

_ByRole = Mapping[tuple[Path, str | None], Sequence[str]]
"""Names of the checkpoint's leaves, by the path of their layer and their role in it."""


def pair_similar_names(
    failure: Failure,
    targets: Mapping[str, Target],
    leaves: Mapping[str, tuple[Path, LeafEntry]],
) -> dict[str, str]:
    """Finds, for missing leaves, an unused one whose name means the same and that fits.

    Returns:
        `{new: old}`. Names that are merely spelled alike are not paired: `w_up` is not `w_out`.
    """
    by_spelling: dict[tuple[str, ...], list[str]] = defaultdict(list)
    by_role: dict[tuple[Path, str | None], list[str]] = defaultdict(list)
    for name, (path, _) in leaves.items():
        by_role[path[:-1], find_role(path)].append(name)
        if name not in targets:
            by_spelling[spell_plainly(name)].append(name)
    old_names: dict[str, str] = {}
    same_role: dict[str, str] = {}
    norms: dict[str, str] = {}
    all_fit = True
    for m in failure.select("missing"):
        target = targets.get(m.name)
        if target is None:
            continue
        parent, role = target.path[:-1], find_role(target.path)

        def fits(name: str, target: Target = target) -> bool:
            return not fit_leaf(target, leaves[name][1], failure.options.cast)[0]

        words = spell_plainly(m.name)
        same = by_spelling.get(words, [])
        if not same:
            spelled = [n for other in list_plurals(words) for n in by_spelling.get(other, ())]
            plurals = [n for n in spelled if leaves[n][0][:-1] == parent]
            same = plurals if len(plurals) == 1 else []
        if len(same) == 1 and fits(same[0]):
            old_names[m.name] = same[0]
        if not same and role is not None:
            alike = [n for n in by_role.get((parent, role), ()) if n not in targets]
            fitting = [n for n in alike if fits(n)]
            if len(fitting) == 1:
                same_role[m.name] = fitting[0]
            elif alike and not fitting:
                all_fit = False
            # PyTorch calls the `weight` of a normalization what Flax calls its `scale`.
            other = {"weight": "scale", "scale": "weight"}.get(role, "")
            scales = by_role.get((parent, other), ())
            scales = [n for n in scales if n not in targets and fits(n)]
            if len(scales) == 1 and _is_of_norm(target, targets, leaves, by_role):
                norms[m.name] = scales[0]
    # A square kernel beside one that is transposed is not renamed as if it were sure to fit.
    return {**norms, **(same_role if all_fit else {}), **old_names}


def _is_of_norm(
    target: Target,
    targets: Mapping[str, Target],
    leaves: Mapping[str, tuple[Path, LeafEntry]],
    by_role: _ByRole,
) -> bool:
    """Whether a vector is of a normalization: by the layer's name, or by a bias of its shape.

    The layers of other kinds have a bias of that shape with a matrix.
    """
    if len(target.shape) != 1:
        return False
    parent = target.path[:-1]
    return is_norm(parent) or any(
        name in targets and targets[name].shape == leaves[name][1].shape == target.shape
        for name in by_role.get((parent, "bias"), ())
    )
