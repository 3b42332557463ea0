"""Catalog × Template → Match: every pair and every mismatch. Pure: no I/O, no JAX."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from .._catalog.entry import LeafEntry
from .._core.dtypes import Cast, class_of, may_cast
from .._core.names import Path, apply_rename, join_path, prefixes, strip_prefix
from .._template.template import Target, Template
from ..errors import Mismatch
from .options import MatchOptions
from .result import CastNote, Match, Pair


@dataclass(frozen=True, slots=True)
class CheckpointView:
    """What the match needs of a catalog: its leaves, and what it records instead of leaves."""

    entries: Sequence[LeafEntry]
    empties: Mapping[Path, str] = field(default_factory=dict)


RenamedLeaf = tuple[Path, str, LeafEntry]
"""A leaf of the checkpoint under its path and name after `at` and `rename`."""


def match_leaves(
    url: str,
    side: CheckpointView,
    template: Template,
    options: MatchOptions,
    fallback: CheckpointView | None = None,
) -> Match:
    """Compares a checkpoint with a template.

    Args:
        url: Of the checkpoint, for the report.
        side: The checkpoint.
        template: The template.
        options: `at` cuts both checkpoints; `rename` applies to the first.
        fallback: Another checkpoint, which supplies what the first lacks.

    Returns:
        All pairs and all mismatches, the latter without hints (see `hints`).
    """
    if not options.at and options.rename is None:
        by_name, clashes = _named(side.entries)
    else:
        by_name, clashes = _index(apply_at_and_rename(side, options))
    spare: dict[str, LeafEntry] = {}
    spare_clashes: dict[str, list[Path]] = {}
    if fallback is not None:
        spare, spare_clashes = _index(apply_at_and_rename(fallback, replace(options, rename=None)))
    _, own_clashes = _named(template.targets)

    with_data = {t.name for t in template.targets if t.has_data}
    unclear = own_clashes or clashes or spare_clashes
    pairs: list[Pair] = []
    kept: list[str] = []
    skipped: list[str] = []
    mismatches: list[Mismatch] = []
    casts: list[CastNote] = []
    said: set[str] = set()
    inner: dict[str, str] = {}
    for target in template.targets:
        name = target.name
        if not unclear and not target.problems and target.kind == "array":
            entry = by_name.get(name)
            if (
                entry is not None
                and entry.kind == "array"
                and entry.shape == target.shape
                and entry.dtype == target.dtype
            ):  # fast path: the common case
                pairs.append(Pair(target, entry))
                continue
        if name in own_clashes and name in with_data:
            if name not in said:
                said.add(name)
                mismatches.append(_ambiguous(name, own_clashes[name], "template"))
            continue
        if not target.has_data:
            skipped.append(name)
            continue
        mismatches += [p for p in target.problems if p.problem != "dtype"]
        if any(p.problem == "kind" for p in target.problems):
            continue  # no leaf of any checkpoint could fill it
        held = [p for p in target.problems if p.problem == "dtype"]
        entry, is_spare = by_name.get(name), False
        if entry is None and name in spare:
            entry, is_spare = spare[name], True
        if name in (spare_clashes if is_spare else clashes):
            said.add(name)
            group = (spare_clashes if is_spare else clashes)[name]
            mismatches.append(_ambiguous(name, group, "checkpoint"))
        elif entry is None:
            if target.optional or (options.missing == "keep" and target.concrete):
                kept.append(name)
                mismatches += [replace(p, found=target.dtype_name) for p in held]
            else:
                inner = inner or _inner(side, options)
                mismatches.append(_missing(target, options, inner))
        else:
            wrong, cast = fit_leaf(target, entry, options.cast)
            if held and all(m.problem != "kind" for m in wrong):
                wrong = [m for m in wrong if m.problem != "dtype"]
                wrong += [replace(p, found=entry.dtype_name) for p in held]
            if is_spare:
                wrong = [replace(m, note="in the checkpoint given as `missing=`") for m in wrong]
            mismatches += wrong
            if not wrong:
                pairs.append(Pair(target, entry, is_spare))
                if cast is not None:
                    casts.append(cast)
    if side.entries and not mismatches and all(pair.fallback for pair in pairs):
        # A restore that takes nothing from a checkpoint is a mistake in `at` or in names.
        optional = {t.name for t in template.targets if t.optional}
        inner = _inner(side, options)
        for target in template.targets:
            if target.has_data and target.name not in optional:
                absent = _missing(target, options, inner)
                mismatches.append(replace(absent, note="not one leaf is in the checkpoint itself"))

    wanted = {t.name for t in template.targets if t.kind != "static"}
    skips = {t.name for t in template.targets if t.kind == "skip"}
    ignored: list[str] = []
    for path, name, entry in (
        apply_at_and_rename(side, options) if skips or not by_name.keys() <= wanted else ()
    ):
        if name in wanted and name not in skips:
            continue
        if options.extra == "ignore" or (skips and _under(path, skips)):
            ignored.append(name)
        elif name not in clashes:
            mismatches.append(Mismatch("extra", name, "no leaf", describe_entry(entry)))
        elif name not in said:
            said.add(name)
            mismatches.append(_ambiguous(name, clashes[name], "checkpoint"))
    return Match(
        url,
        template,
        tuple(pairs),
        tuple(kept),
        tuple(skipped),
        tuple(ignored),
        tuple(mismatches),
        tuple(casts),
    )


def apply_at_and_rename(side: CheckpointView, options: MatchOptions) -> list[RenamedLeaf]:
    """The leaves of a checkpoint as the template sees them: after `at`, then `rename`."""
    if not options.at and options.rename is None:
        return [(e.path, e.name, e) for e in side.entries]
    found = []
    for entry in side.entries:
        path = strip_prefix(entry.path, options.at)
        if path is not None:
            path = apply_rename(path, options.rename)
            found.append((path, join_path(path), entry))
    return found


def fit_leaf(
    target: Target, entry: LeafEntry, cast: Cast
) -> tuple[list[Mismatch], CastNote | None]:
    """Why a leaf can't fill a target (nothing if it can), and the cast it takes."""
    name, wrong = target.name, list[Mismatch]()
    as_number = target.kind in ("array", "scalar") and entry.kind in ("array", "scalar")
    if not as_number and target.kind != entry.kind:
        return [
            Mismatch(
                "kind", name, _KINDS[target.kind], f"{_KINDS[entry.kind]} ({describe_entry(entry)})"
            )
        ], None
    if target.user_shape != entry.user_shape:
        wrong.append(Mismatch("shape", name, str(target.user_shape), str(entry.user_shape)))
    note = None
    if target.kind == "key":
        if target.key_impl != entry.key_impl:
            wrong.append(Mismatch("dtype", name, target.dtype_name, entry.dtype_name))
    elif as_number and entry.dtype != target.dtype:
        # A Python number has no width of its own: any integer fits `int`, any float `float`; and
        # a stored `int` fits integers that hold its value, which is looked at later.
        classes = class_of(entry.dtype), class_of(target.dtype)
        same = classes[0] == classes[1] and target.kind == "scalar"
        same = same or (classes == ("int", "int") and entry.kind == "scalar")
        if not same and may_cast(entry.dtype, target.dtype, cast):
            note = CastNote(name, entry.dtype_name, target.dtype_name, entry.nbytes)
        elif not same:
            wrong.append(Mismatch("dtype", name, target.dtype_name, entry.dtype_name))
    return wrong, note


_KINDS = {
    "array": "an array",
    "scalar": "a number",
    "string": "a string",
    "key": "a typed PRNG key",
}


def describe_entry(entry: LeafEntry) -> str:
    """A leaf in a few characters: `float32(8, 6)`."""
    return entry.dtype_name if entry.kind == "string" else f"{entry.dtype_name}{entry.user_shape}"


_T = TypeVar("_T")

_Leaf = TypeVar("_Leaf", LeafEntry, Target)


def _index(found: Sequence[tuple[Path, str, _T]]) -> tuple[dict[str, _T], dict[str, list[Path]]]:
    """Leaves by name, and the paths of those that share one."""
    by_name: dict[str, _T] = {}
    groups: dict[str, list[Path]] = {}
    for path, name, leaf in found:
        if name in by_name:
            groups.setdefault(name, []).append(path)
        else:
            by_name[name] = leaf
    if groups:
        first = {name: path for path, name, _ in reversed(found) if name in groups}
        groups = {name: [first[name], *paths] for name, paths in groups.items()}
    return by_name, groups


def _named(leaves: Sequence[_Leaf]) -> tuple[dict[str, _Leaf], dict[str, list[Path]]]:
    """As `_index`, of leaves under their own names."""
    by_name = {leaf.name: leaf for leaf in leaves}
    if len(by_name) == len(leaves):
        return by_name, {}
    return _index([(leaf.path, leaf.name, leaf) for leaf in leaves])


def _ambiguous(name: str, paths: Sequence[Path], where: str) -> Mismatch:
    spelled = " and ".join(repr(path) for path in paths[:3])
    return Mismatch(
        "ambiguous", name, "one leaf of this name", f"{len(paths)} in the {where}: {spelled}"
    )


def _inner(side: CheckpointView, options: MatchOptions) -> dict[str, str]:
    """What the checkpoint holds at names that are not leaves: a subtree or an empty value."""
    sizes = Counter(
        prefix
        for path, _, _ in apply_at_and_rename(side, options)
        for prefix in prefixes(path)[:-1]
    )
    inner = {name: f"a subtree of {n} leaves" for name, n in sizes.items()}
    for path, empty in side.empties.items():
        cut = strip_prefix(path, options.at)
        if cut is not None:
            inner[join_path(apply_rename(cut, options.rename))] = f"`{empty}`"
    return inner or {"": "none"}


def _missing(target: Target, options: MatchOptions, inner: Mapping[str, str]) -> Mismatch:
    note = None
    if options.missing == "keep":
        note = "the template has no value to keep here, only a shape and dtype"
    what = inner.get(target.name, "none")
    return Mismatch(
        "missing", target.name, f"{target.dtype_name}{target.user_shape}", what, note=note
    )


def _under(path: Path, names: set[str]) -> bool:
    return "" in names or any(prefix in names for prefix in prefixes(path))
