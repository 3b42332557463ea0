"""Hints on single leaves: a transposed or stacked one, a dtype. Each is tried by fitting again."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from .._catalog.entry import LeafEntry
from .._core.dtypes import WIDE, class_of
from .._core.names import Path, find_nearest, join_path, normalize
from .._template.template import Target
from ..errors import Mismatch
from .match import fit_leaf
from .options import MatchOptions

MAX_NEAREST = 20
"""Mismatches that are told a nearest name: as many as a report shows."""

MAX_NAMES = 1000
"""Names among which a nearest one is looked for; more would take seconds."""

_X64 = 'jax.config.update("jax_enable_x64", True)'


def add_leaf_hints(
    mismatches: Sequence[Mismatch],
    leaves: Mapping[str, Target],
    entries: Mapping[str, LeafEntry],
    options: MatchOptions,
) -> tuple[Mismatch, ...]:
    """The mismatches, those without a hint with one where one helps.

    Args:
        mismatches: Of a match.
        leaves: The template's, by name.
        entries: The checkpoint's, by name after `at` and `rename`.
        options: Of the match.
    """
    spare = [name for name in entries if name not in leaves]
    stacked = _stacked(mismatches, leaves, entries)
    hinted: list[Mismatch] = []
    for m in mismatches:
        target, entry = leaves.get(m.name), entries.get(m.name)
        if m.hint is not None or m.problem == "extra" or target is None:
            hint = None
        elif entry is None:
            hint = None
            if m.note is None and len(hinted) < MAX_NEAREST and len(spare) <= MAX_NAMES:
                near = find_nearest(m.name, spare)
                m = replace(m, note=f"nearest: `{near}`" if near else None)
        else:
            hint = _of_leaf(m, target, entry, options)
        hint = hint or stacked.get(m.name)
        hinted.append(m if m.hint is not None else replace(m, hint=hint))
    return tuple(hinted)


def _of_leaf(m: Mismatch, target: Target, entry: LeafEntry, options: MatchOptions) -> str | None:
    if m.problem == "shape" and entry.kind != "key":
        shape = entry.shape
        turned = (*shape[:-2], *reversed(shape[-2:]))
        if len(shape) >= 2 and turned == target.shape:
            return (
                f"the checkpoint holds the transpose: ask for shape `{shape}` "
                "and swap the last two axes of the result"
            )
    if m.problem == "dtype" and target.problems:
        if target.dtype.name not in WIDE or _misfits(target, entry, options.cast):
            return None
        return _X64 if target.concrete else f"{_X64}, or a numpy array as template leaf"
    if m.problem == "dtype" and options.cast != "float":
        if not _misfits(target, entry, "widen"):
            return 'cast="widen"'
        if not _misfits(target, entry, "float"):
            return 'cast="float"'
    return None


def _misfits(target: Target, entry: LeafEntry, cast: str) -> bool:
    return any(w.problem == "dtype" for w in fit_leaf(target, entry, cast)[0])  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, slots=True)
class _Stack:
    """Leaves `name_0`, `name_1`, ... of one side that one leaf of the other side holds.

    Attributes:
        layers: Names of the single ones, in order.
        stack: Name of the one that holds them.
        axis: Along which; None if several axes are as long.
    """

    layers: list[str]
    stack: str
    axis: int | None

    @property
    def along(self) -> str:
        return "along one axis" if self.axis is None else f"along axis {self.axis}"


def _stacked(
    mismatches: Sequence[Mismatch], leaves: Mapping[str, Target], entries: Mapping[str, LeafEntry]
) -> dict[str, str]:
    """Hints, by name, where one side stacks (as scan does) layers that the other names singly."""
    missing = [leaves[m.name] for m in mismatches if m.problem == "missing" and not m.hint]
    extra = [
        entries[m.name]
        for m in mismatches
        if m.problem == "extra" and not m.hint and m.name in entries
    ]
    hints: dict[str, str] = {}
    for s in _stacks(missing, extra):
        hint = (
            f"the checkpoint stacks these {len(s.layers)} layers {s.along} of `{s.stack}`, as scan"
            " does: ask for the stacked leaf and split the result"
        )
        hints |= dict.fromkeys([*s.layers, s.stack], hint)
    for s in _stacks(extra, missing):
        hint = (
            f"the checkpoint holds `{s.stack}` as {len(s.layers)} layers, `{s.layers[0]}` to"
            f" `{s.layers[-1]}`: ask for the layers and stack the results {s.along}"
        )
        hints |= dict.fromkeys([*s.layers, s.stack], hint)
    return hints


def _begins(name: str, stem: str) -> bool:
    """`layers` of `layersstacked`; but `l` is the beginning of too much."""
    return len(stem) > 3 and name.startswith(stem)


_NUMBERED = re.compile(r"(.*?)(\d{1,9})")


def _stacks(
    layers: Sequence[Target | LeafEntry], stacks: Sequence[Target | LeafEntry]
) -> Iterator[_Stack]:
    """Groups of equal leaves numbered from 0 that one leaf of `stacks` holds along an axis."""
    if not stacks:
        return
    # `layers_0.kernel` is stacked as `layers.kernel` or, by NNX and others, as `kernel`.
    at: dict[tuple[Path, Path], list[tuple[str | None, Target | LeafEntry]]] = defaultdict(list)
    for stack in stacks:
        for i, element in enumerate(stack.path):
            at[stack.path[:i], stack.path[i + 1 :]].append((normalize(str(element)), stack))
            at[stack.path[:i], stack.path[i:]].append((None, stack))
    groups: dict[tuple[Path, str, Path], dict[int, Target | LeafEntry]] = defaultdict(dict)
    for leaf in layers:
        for i, element in enumerate(leaf.path):
            numbered = _NUMBERED.fullmatch(str(element))
            if numbered:
                key = leaf.path[:i], normalize(numbered[1]), leaf.path[i + 1 :]
                groups[key][int(numbered[2])] = leaf
    for (head, stem, tail), group in groups.items():
        n = len(group)
        if n < 2 or set(group) != set(range(n)):
            continue
        looks = {(leaf.shape, class_of(leaf.dtype)) for leaf in group.values()}
        if len(looks) != 1:
            continue
        ((shape, numbers),) = looks
        for name, stack in at.get((head, tail), ()):
            named = name is None or name in (stem, f"{stem}s") or _begins(name, stem)
            if not named or class_of(stack.dtype) != numbers:
                continue
            axes = [a for a in range(len(shape) + 1) if stack.shape == (*shape[:a], n, *shape[a:])]
            if axes:
                names = [join_path(group[i].path) for i in range(n)]
                yield _Stack(names, join_path(stack.path), axes[0] if len(axes) == 1 else None)
                break
