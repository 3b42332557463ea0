"""Finds the leaf of a checkpoint that a missing leaf of a template may be called in it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from .._catalog.entry import LeafEntry
from .._core.names import Path
from .._template.template import Target
from .failure import Failure
from .match import fit_leaf
from .meaning import have_one_role, is_norm, is_plural, scale_a_norm, spell_plainly

MAX_COMPARISONS = 10_000
"""How many pairs of names are compared for similarity."""


def pair_similar_names(
    failure: Failure,
    targets: Mapping[str, Target],
    leaves: Mapping[str, tuple[Path, LeafEntry]],
) -> dict[str, str]:
    """Finds, for missing leaves, an unused one whose name means the same and that fits.

    Returns:
        `{new: old}`. Names that are merely spelled alike are not paired: `w_up` is not `w_out`.
    """
    missing = [m for m in failure.select("missing") if m.name in targets]
    unused = [name for name in leaves if name not in targets]
    by_spelling: dict[tuple[str, ...], list[str]] = defaultdict(list)
    by_parent: dict[Path, list[str]] = defaultdict(list)
    for name in unused:
        by_spelling[spell_plainly(name)].append(name)
        by_parent[leaves[name][0][:-1]].append(name)
    old_names: dict[str, str] = {}
    same_role: dict[str, str] = {}
    norms: dict[str, str] = {}
    all_fit = True
    for m in missing:
        target = targets[m.name]

        def fits(name: str, target: Target = target) -> bool:
            return not fit_leaf(target, leaves[name][1], failure.options.cast)[0]

        same = by_spelling.get(spell_plainly(m.name), [])
        siblings = by_parent.get(target.path[:-1], [])
        near = same[0] if len(same) == 1 else None
        if near is None and not same and len(missing) * len(unused) <= MAX_COMPARISONS:
            plurals = [n for n in siblings if is_plural(n, m.name)]
            near = plurals[0] if len(plurals) == 1 else None
        if near is not None and fits(near):
            old_names[m.name] = near
        if near is None and not same:
            alike = [n for n in siblings if have_one_role(leaves[n][0], target.path)]
            fitting = [n for n in alike if fits(n)]
            if len(fitting) == 1:
                same_role[m.name] = fitting[0]
            elif alike and not fitting:
                all_fit = False
            scales = [n for n in siblings if scale_a_norm(leaves[n][0], target.path) and fits(n)]
            if len(scales) == 1 and _is_of_norm(target, targets, leaves):
                norms[m.name] = scales[0]
    # A square kernel beside one that is transposed is not renamed as if it were sure to fit.
    return {**norms, **(same_role if all_fit else {}), **old_names}


def _is_of_norm(
    target: Target,
    targets: Mapping[str, Target],
    leaves: Mapping[str, tuple[Path, LeafEntry]],
) -> bool:
    """Whether a vector is of a normalization: by the layer's name, or by a bias of its shape.

    The layers of other kinds have a bias of that shape with a matrix.
    """
    if len(target.shape) != 1:
        return False
    parent = target.path[:-1]
    biases = [
        name
        for name, (path, entry) in leaves.items()
        if path[:-1] == parent and have_one_role(path, ("bias",)) and entry.shape == target.shape
    ]
    return is_norm(parent) or any(
        name in targets and targets[name].shape == target.shape for name in biases
    )
