"""Hints about single leaves: another shape or dtype, a key, stacked layers.

A cast is proposed only if the leaf fits with it. The other hints follow from shapes and names.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from msgspec import structs

from .._catalog.entry import LeafEntry
from .._core.dtypes import WIDE, Cast, class_of
from .._core.names import Path, find_nearest, join_path, normalize, split_name
from .._core.text import quote_text
from .._template.template import Target
from ..errors import Mismatch
from .match import fit_leaf
from .meaning import list_moments
from .options import MatchOptions
from .shape_hints import make_shape_hints

MAX_NEAREST = 20
"""Only this many mismatches, the first ones, are searched for a nearest name: as many as a report
shows."""

MAX_NAMES = 1000
"""The nearest name is not searched among more names than these, which would take seconds."""

_ENABLE_X64 = 'jax.config.update("jax_enable_x64", True)'


def add_leaf_hints(
    mismatches: Sequence[Mismatch],
    targets: Mapping[str, Target],
    entries: Mapping[str, LeafEntry],
    options: MatchOptions,
) -> tuple[Mismatch, ...]:
    """Adds hints to the mismatches that have none yet, where a hint helps.

    Args:
        mismatches: The mismatches of a match.
        targets: The leaves of the template, by name.
        entries: The leaves of the checkpoint, by name after `at` and `rename`.
        options: The options of the match.
    """
    unused_names = [name for name in entries if name not in targets]
    stack_hints = _make_stack_hints(mismatches, targets, entries)
    shape_hints = make_shape_hints(mismatches, targets, entries, options)
    hinted: list[Mismatch] = []
    for m in mismatches:
        target, entry = targets.get(m.name), entries.get(m.name)
        if m.hint is None and m.problem != "extra" and target is not None:
            if entry is not None:
                hint = shape_hints.get(m.name) if m.problem == "shape" else None
                m = replace(m, hint=hint or _suggest_for_leaf(m, target, entry, options))
            elif m.note is None and len(hinted) < MAX_NEAREST and len(unused_names) <= MAX_NAMES:
                moments = list_moments(target.path)
                alike = [n for n in unused_names if list_moments(split_name(n)) == moments]
                near = find_nearest(m.name, alike)
                m = replace(m, note=f"nearest: `{near}`" if near else None)
        if m.hint is None:
            m = replace(m, hint=stack_hints.get(m.name))
        hinted.append(m)
    return tuple(hinted)


def _suggest_for_leaf(
    m: Mismatch, target: Target, entry: LeafEntry, options: MatchOptions
) -> str | None:
    """What would resolve the mismatch of a leaf that both sides hold; None if nothing is known."""
    if m.problem == "kind":
        return _suggest_for_key(target, entry, options.cast)
    if m.problem == "dtype" and target.problems:
        # No `jax.Array` holds the dtype. Enabling 64 bits helps only if nothing else is wrong.
        if target.dtype.name not in WIDE or not _dtype_fits(target, entry, options.cast):
            return None
        return (
            _ENABLE_X64 if target.concrete else f"{_ENABLE_X64}, or a numpy array as template leaf"
        )
    if m.problem == "dtype" and options.cast != "float":
        if _dtype_fits(target, entry, "widen"):
            return 'cast="widen"'
        if _dtype_fits(target, entry, "float"):
            return 'cast="float"'
    if m.problem == "dtype" and m.note is None:
        return _suggest_for_integer(target, entry)
    return None


def _suggest_for_key(target: Target, entry: LeafEntry, cast: Cast) -> str | None:
    """How to restore the data of a key where the template has a typed key, or the reverse."""
    if target.shape != entry.shape:  # both of the key's data
        return None
    other = structs.replace(
        target, kind=entry.kind, dtype=np.dtype("uint32"), key_impl=entry.key_impl
    )
    if {target.kind, entry.kind} != {"key", "array"} or fit_leaf(other, entry, cast)[0]:
        return None
    if target.kind == "key":
        return (
            f"ask for `jax.ShapeDtypeStruct({entry.shape}, jnp.uint32)` and take"
            f" `jax.random.wrap_key_data(data, impl={quote_text(str(target.key_impl))})`"
        )
    if target.dtype != np.dtype("uint32"):
        return None
    key = f"jax.random.key(0, impl={quote_text(str(entry.key_impl))})"
    return (
        f"ask for `jax.ShapeDtypeStruct({entry.user_shape}, {key}.dtype)` and take"
        " `jax.random.key_data(key)`"
    )


def _suggest_for_integer(target: Target, entry: LeafEntry) -> str | None:
    """How to restore integers of another width, whose values the match does not know.

    Narrower ones are most often numpy's 64-bit integers that `jax.eval_shape` has made 32-bit. Of
    others, only single numbers are explained: an array of them may be quantized.
    """
    if {class_of(target.dtype), class_of(entry.dtype)} != {"int"} or target.kind != "array":
        return None
    if target.shape != entry.shape:
        return None
    if entry.dtype.name in WIDE and target.dtype.itemsize == 4 and not target.host:
        return (
            f'a numpy array of dtype "{entry.dtype.name}" as template leaf, as tx.template_of makes'
            f" it of numpy arrays (jax.eval_shape makes them 32-bit), or {_ENABLE_X64} before it"
        )
    if entry.shape == ():
        return "`int` as template leaf takes an integer of any width"
    return None


def _dtype_fits(target: Target, entry: LeafEntry, cast: Cast) -> bool:
    mismatches, _ = fit_leaf(target, entry, cast)
    return all(m.problem != "dtype" for m in mismatches)


_Leaf = Target | LeafEntry


@dataclass(frozen=True, slots=True)
class _Stack:
    """Leaves `name_0`, `name_1`, ... of one side that the other side holds as one leaf.

    Attributes:
        layers: Names of the separate leaves, in order.
        stack: Name of the leaf that holds them all.
        axis: The axis along which it does. None if the shapes fit several axes.
    """

    layers: list[str]
    stack: str
    axis: int | None

    def describe_axis(self) -> str:
        return "along one axis" if self.axis is None else f"along axis {self.axis}"


def _make_stack_hints(
    mismatches: Sequence[Mismatch], targets: Mapping[str, Target], entries: Mapping[str, LeafEntry]
) -> dict[str, str]:
    """Makes hints, by leaf name, where one side stacks the layers that the other keeps separate.

    `jax.lax.scan` over layers needs them stacked, so models often exist in both forms.
    """
    missing = [targets[m.name] for m in mismatches if m.problem == "missing" and not m.hint]
    extra = [
        entries[m.name]
        for m in mismatches
        if m.problem == "extra" and not m.hint and m.name in entries
    ]
    hints: dict[str, str] = {}
    for found in _find_stacks(layers=missing, stacks=extra):
        hint = (
            f"the checkpoint stacks these {len(found.layers)} layers {found.describe_axis()}"
            f" of `{found.stack}`, as scan does: ask for the stacked leaf and split the result"
        )
        hints |= dict.fromkeys([*found.layers, found.stack], hint)
    for found in _find_stacks(layers=extra, stacks=missing):
        hint = (
            f"the checkpoint holds `{found.stack}` as {len(found.layers)} layers,"
            f" `{found.layers[0]}` to `{found.layers[-1]}`: ask for the layers and stack the"
            f" results {found.describe_axis()}"
        )
        hints |= dict.fromkeys([*found.layers, found.stack], hint)
    return hints


def _find_stacks(layers: Sequence[_Leaf], stacks: Sequence[_Leaf]) -> Iterator[_Stack]:
    """Finds groups of equal leaves, numbered from 0, that one leaf of `stacks` holds together."""
    if not stacks:
        return
    # A stack of `layers_0.kernel`, ... is called `layers.kernel` or, by NNX and others, `kernel`.
    # Both are filed under the path before and after the numbered element. In the first form, one
    # element takes its place, and its name must suit the layers; in the second, none does (None).
    candidates: dict[tuple[Path, Path], list[tuple[str | None, _Leaf]]] = defaultdict(list)
    for stack in stacks:
        for i, element in enumerate(stack.path):
            head = stack.path[:i]
            candidates[head, stack.path[i + 1 :]].append((normalize(str(element)), stack))
            candidates[head, stack.path[i:]].append((None, stack))
    for (head, stem, tail), group in _group_numbered(layers).items():
        n = len(group)
        signatures = {(leaf.shape, class_of(leaf.dtype)) for leaf in group.values()}
        if n < 2 or set(group) != set(range(n)) or len(signatures) != 1:
            continue
        ((shape, dtype_class),) = signatures
        for name, stack in candidates.get((head, tail), ()):
            if name is not None and not _is_stack_name(name, stem):
                continue
            if class_of(stack.dtype) != dtype_class:
                continue
            axes = [a for a in range(len(shape) + 1) if stack.shape == (*shape[:a], n, *shape[a:])]
            if axes:
                names = [join_path(group[i].path) for i in range(n)]
                yield _Stack(names, join_path(stack.path), axes[0] if len(axes) == 1 else None)
                break


_NUMBERED = re.compile(r"(.*?)(\d{1,9})")


def _group_numbered(leaves: Sequence[_Leaf]) -> dict[tuple[Path, str, Path], dict[int, _Leaf]]:
    """Groups leaves whose paths differ only in the number at the end of one element.

    Returns:
        The leaves by number. The keys are the path before that element, the element without its
        number, and the path after it. A leaf with several numbers is in several groups.
    """
    groups: dict[tuple[Path, str, Path], dict[int, _Leaf]] = defaultdict(dict)
    for leaf in leaves:
        for i, element in enumerate(leaf.path):
            numbered = _NUMBERED.fullmatch(str(element))
            if numbered:
                key = leaf.path[:i], normalize(numbered[1]), leaf.path[i + 1 :]
                groups[key][int(numbered[2])] = leaf
    return groups


def _is_stack_name(name: str, stem: str) -> bool:
    """Whether a stack called `name` can hold layers called `stem` plus a number.

    It can if it is called like the stem or its plural, or begins with the stem: `layers_stacked`.
    A stem as short as `l` begins too many names.
    """
    return name in (stem, f"{stem}s") or (len(stem) > 3 and name.startswith(stem))
