"""Hints about shapes: transposed kernels, those that may be, and a leading axis on many leaves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from msgspec import structs

from .._catalog.entry import LeafEntry
from .._core.boxes import Shape
from .._template.template import Target
from ..errors import Mismatch
from .match import fit_leaf
from .meaning import find_leaf_word, find_role
from .options import MatchOptions
from .result import Pair

_Leaf = tuple[Mismatch, Target, LeafEntry]
"""A leaf whose shape differs, on both sides."""


def make_shape_hints(
    mismatches: Sequence[Mismatch],
    targets: Mapping[str, Target],
    entries: Mapping[str, LeafEntry],
    options: MatchOptions,
) -> dict[str, str]:
    """Makes hints, by leaf name, for leaves that both sides hold in other shapes.

    Args:
        mismatches: Of a match.
        targets: The leaves of the template, by name.
        entries: The leaves of the checkpoint, by name after `at` and `rename`.
        options: Of the match.
    """
    leaves = list(_list_reshaped(mismatches, targets, entries))
    turns = _find_turns(leaves, mismatches, targets, entries)
    hints = {m.name: _describe_turn(turns[m.name], e) for m, _, e in leaves if m.name in turns}
    left = [leaf for leaf in leaves if leaf[0].name not in hints]
    return hints | _suggest_leading_axis(left, targets, options)


def find_undecidable(
    mismatches: Sequence[Mismatch],
    pairs: Sequence[Pair],
    targets: Mapping[str, Target],
    entries: Mapping[str, LeafEntry],
) -> tuple[str, ...]:
    """Names of leaves that fit by shape, but may be turned as a leaf that is called alike is.

    If `fc.kernel` is stored transposed, so may be a square `proj.kernel`, whose shape is the same
    either way.
    """
    turns: defaultdict[str, set[tuple[int, ...]]] = defaultdict(set)
    leaves = list(_list_reshaped(mismatches, targets, entries))
    for name, axes in _find_turns(leaves, mismatches, targets, entries).items():
        turns[_find_kind(name)].add(axes)
    if not turns:
        return ()
    return tuple(
        pair.target.name
        for pair in pairs
        if any(
            len(axes) == len(pair.entry.shape) and _may_be_turned(pair.entry.shape, axes)
            for axes in turns.get(_find_kind(pair.target.name), ())
        )
    )


def _find_kind(name: str) -> str:
    """What a leaf is called, if libraries call theirs so; "" for all others, such as `wq`, `w_up`.

    A tree that calls one `w_up` has no common name for those that are stored alike.
    """
    word = find_leaf_word(name)
    return word if word == "embedding" or find_role((word,)) is not None else ""


def _may_be_turned(shape: Shape, axes: tuple[int, ...]) -> bool:
    """Whether turning changes the values of an array, but not its shape."""
    moved = [i for i, axis in enumerate(axes) if axis != i and shape[i] > 1]
    return bool(moved) and tuple(shape[axis] for axis in axes) == shape


def _list_reshaped(
    mismatches: Sequence[Mismatch], targets: Mapping[str, Target], entries: Mapping[str, LeafEntry]
) -> Iterator[_Leaf]:
    for m in mismatches:
        if m.problem == "shape" and m.name in targets and m.name in entries:
            yield m, targets[m.name], entries[m.name]


def _find_turns(
    leaves: Sequence[_Leaf],
    mismatches: Sequence[Mismatch],
    targets: Mapping[str, Target],
    entries: Mapping[str, LeafEntry],
) -> dict[str, tuple[int, ...]]:
    """The order of the stored axes that the template asks for, of the leaves that have one.

    Leaves are left out where they may have changed places with another: where an untaken sibling
    has the wanted shape as it is, or where the bias of the layer has another size as well.
    """
    unmatched = {m.name for m in mismatches}
    untaken: defaultdict[str, set[Shape]] = defaultdict(set)
    for name, entry in entries.items():
        if name in unmatched or name not in targets:
            untaken[_find_parent(name)].add(entry.shape)
    resized = {
        _find_parent(t.name)
        for _, t, entry in leaves
        if find_role((find_leaf_word(t.name),)) == "bias" and len(t.shape) == len(entry.shape) == 1
    }
    turns: dict[str, tuple[int, ...]] = {}
    for m, target, entry in leaves:
        axes, parent = _find_turn(target, entry.shape), _find_parent(m.name)
        if axes is not None and target.shape not in untaken[parent] and parent not in resized:
            turns[m.name] = axes
    return turns


def _find_parent(name: str) -> str:
    return name.rpartition(".")[0]


def _find_turn(target: Target, stored: Shape) -> tuple[int, ...] | None:
    """The order of the stored axes that gives the shape of the template; None if none is usual.

    Usual are a swap of the last two axes, and the kernel of a convolution as PyTorch stores it
    (outputs, inputs, window) for one as Flax has it (window, inputs, outputs).
    """
    n = len(stored)
    if target.kind == "key" or n < 2 or len(target.shape) != n:
        return None
    orders = [(*range(n - 2), n - 1, n - 2)]
    if n > 3 or (n == 3 and find_leaf_word(target.name) in ("kernel", "weight")):
        orders += [(*range(2, n), 1, 0), (n - 1, n - 2, *range(n - 2))]
    fitting = [axes for axes in orders if tuple(stored[axis] for axis in axes) == target.shape]
    return fitting[0] if fitting else None


def _describe_turn(axes: tuple[int, ...], entry: LeafEntry) -> str:
    shape = entry.shape
    if axes[:-2] == tuple(range(len(shape) - 2)):
        return (
            f"the checkpoint holds the transpose: ask for shape `{shape}` "
            "and swap the last two axes of the result"
        )
    return (
        f"the checkpoint holds the axes in another order: ask for shape `{shape}` "
        f"and take `jnp.transpose(x, {axes})` of the result"
    )


def _suggest_leading_axis(
    leaves: Sequence[_Leaf], targets: Mapping[str, Target], options: MatchOptions
) -> dict[str, str]:
    """Explains leaves that have an axis more on one side, of one size, as replicas have it."""
    hints: dict[str, str] = {}
    stored: defaultdict[int, list[Target]] = defaultdict(list)
    wanted: defaultdict[int, list[Target]] = defaultdict(list)
    for _, target, entry in leaves:
        shape = entry.user_shape
        if shape[1:] == target.user_shape and _fits_as_stored(target, entry, options):
            stored[shape[0]].append(target)
        elif target.user_shape[1:] == shape and _fits_as_stored(target, entry, options):
            wanted[target.user_shape[0]].append(target)
    arrays = sum(t.has_data for t in targets.values())
    for n, group in stored.items():
        if len(group) > 1:
            which = "every leaf" if len(group) == arrays else f"{len(group)} leaves"
            verb = "has" if len(group) == arrays else "have"
            hint = (
                f"{which} of the checkpoint {verb} a leading axis of {n}, as replicas or members"
                f" of an ensemble do: ask for shape `({n}, *shape)` and take `x[0]` of the result"
            )
            if len(group) == arrays and all(t.kind == "array" for t in group):
                hint = (
                    f"{which} of the checkpoint {verb} a leading axis of {n}, as replicas or"
                    " members of an ensemble do: restore"
                    f" `jax.tree.map(lambda s: jax.ShapeDtypeStruct(({n}, *s.shape), s.dtype),"
                    " template)` and take `jax.tree.map(lambda x: x[0], result)`"
                )
            hints |= {t.name: hint for t in group}
    for n, group in wanted.items():
        if len(group) > 1:
            hint = (
                f"{len(group)} leaves of the template have a leading axis of {n} that the"
                " checkpoint lacks: ask for shape `shape[1:]` and take"
                f" `jnp.broadcast_to(x, ({n}, *x.shape))` of the result"
            )
            hints |= {t.name: hint for t in group}
    return hints


def _fits_as_stored(target: Target, entry: LeafEntry, options: MatchOptions) -> bool:
    """Whether the leaf would fit if the template asked for its shape."""
    return not fit_leaf(structs.replace(target, shape=entry.shape), entry, options.cast)[0]
