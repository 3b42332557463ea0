"""Catalog × Template → Match: every pair and every mismatch. Pure: no I/O, no JAX."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import msgspec

from ._catalog import LeafEntry
from ._dtypes import Cast, class_of, lossless, may_cast
from ._errors import Mismatch
from ._names import Path, Rename, below, join, prefixes, renamed
from ._template import Target, Template


@dataclass(frozen=True, slots=True)
class Options:
    """How two trees are compared; as `restore` takes them."""

    at: str = ""
    rename: Rename | None = None
    missing: Literal["error", "keep"] = "error"
    extra: Literal["error", "ignore"] = "error"
    cast: Cast = "float"


@dataclass(frozen=True, slots=True)
class Side:
    """What the match needs of a catalog: its leaves, and what it records instead of leaves."""

    entries: Sequence[LeafEntry]
    empties: Mapping[Path, str] = field(default_factory=dict)


class Pair(msgspec.Struct, frozen=True, gc=False):
    """A target and the leaf that fills it; `fallback` if that is the second checkpoint's."""

    target: Target
    entry: LeafEntry
    fallback: bool = False

    @property
    def by_value(self) -> bool:
        """Whether they fit only if the number stored is one that the target's dtype holds."""
        target, entry = self.target, self.entry
        return (
            entry.kind == "scalar"
            and target.kind == "array"
            and class_of(entry.dtype) == "int"
            and not lossless(entry.dtype, target.dtype)
        )


class CastNote(msgspec.Struct, frozen=True, gc=False):
    """A leaf that is cast.

    Attributes:
        name: The leaf.
        stored, wanted: Names of the dtypes.
        nbytes: Bytes of the leaf as stored.
    """

    name: str
    stored: str
    wanted: str
    nbytes: int


@dataclass(frozen=True, slots=True, repr=False)
class Match:
    """A checkpoint compared with a template. `str(match)` is the report.

    Attributes:
        url: The checkpoint.
        template: What was wanted.
        pairs: Each target that a leaf fills, in template order.
        kept: Names of template leaves that keep the template's own value (`missing="keep"`).
        skipped: Names of template leaves that carry no data: `...`, functions, static values.
        ignored: Names of leaves of the checkpoint that nothing asks for (`extra="ignore"`, or
            under a `...`).
        mismatches: Every difference, in template order, extras last. Empty if all fits.
        casts: Every leaf that is cast.
        summary: A sentence on the whole tree, if one explains all mismatches.
        rename: The mapping that a `rename=` hint proposes, whole; the text may shorten it.
    """

    url: str
    template: Template
    pairs: tuple[Pair, ...] = ()
    kept: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    mismatches: tuple[Mismatch, ...] = ()
    casts: tuple[CastNote, ...] = ()
    summary: str | None = None
    rename: Mapping[str, str] | None = None

    @property
    def ok(self) -> bool:
        """Whether `restore` would succeed."""
        return not self.mismatches

    def __bool__(self) -> bool:
        """`ok`: `assert tx.check(...)` means what it says."""
        return self.ok

    def __repr__(self) -> str:
        n = len(self.mismatches)
        said = "ok" if self.ok else f"{n:,} mismatch{'' if n == 1 else 'es'}"
        return f"Match({self.url!r}, {len(self.pairs):,} leaves matched, {said})"

    def portable(self) -> Match:
        """The same report without what only this process can hold: devices, open files."""
        targets = tuple(msgspec.structs.replace(t, placement=None) for t in self.template.targets)
        return replace(self, template=Template(targets), pairs=())

    def __str__(self) -> str:
        from ._report import report

        return report(self)


Found = tuple[Path, str, LeafEntry]
"""A leaf of the checkpoint under its path and name after `at` and `rename`."""


def match(
    url: str,
    side: Side,
    template: Template,
    options: Options,
    fallback: Side | None = None,
) -> Match:
    """Compares a checkpoint with a template.

    Args:
        url: Of the checkpoint, for the report.
        side: The checkpoint.
        template: What is wanted.
        options: `at` cuts both checkpoints; `rename` applies to the first.
        fallback: Another checkpoint, which supplies what the first lacks.

    Returns:
        All pairs and all mismatches, the latter without hints (see `_hints`).
    """
    if not options.at and options.rename is None:
        by_name, clashes = _named(side.entries)
    else:
        by_name, clashes = _index(seen(side, options))
    spare: dict[str, LeafEntry] = {}
    spare_clashes: dict[str, list[Path]] = {}
    if fallback is not None:
        spare, spare_clashes = _index(seen(fallback, replace(options, rename=None)))
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
            ):  # as nearly all are
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
            wrong, cast = fit(target, entry, options.cast)
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
    for path, name, entry in seen(side, options) if skips or not by_name.keys() <= wanted else ():
        if name in wanted and name not in skips:
            continue
        if options.extra == "ignore" or (skips and _under(path, skips)):
            ignored.append(name)
        elif name not in clashes:
            mismatches.append(Mismatch("extra", name, "no leaf", describe(entry)))
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


def seen(side: Side, options: Options) -> list[Found]:
    """The leaves of a checkpoint as the template sees them: after `at`, then `rename`."""
    if not options.at and options.rename is None:
        return [(e.path, e.name, e) for e in side.entries]
    found = []
    for entry in side.entries:
        path = below(entry.path, options.at)
        if path is not None:
            path = renamed(path, options.rename)
            found.append((path, join(path), entry))
    return found


def fit(target: Target, entry: LeafEntry, cast: Cast) -> tuple[list[Mismatch], CastNote | None]:
    """Why a leaf can't fill a target (nothing if it can), and the cast it takes."""
    name, wrong = target.name, list[Mismatch]()
    as_number = target.kind in ("array", "scalar") and entry.kind in ("array", "scalar")
    if not as_number and target.kind != entry.kind:
        return [
            Mismatch("kind", name, _KINDS[target.kind], f"{_KINDS[entry.kind]} ({describe(entry)})")
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


def describe(entry: LeafEntry) -> str:
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


def _inner(side: Side, options: Options) -> dict[str, str]:
    """What the checkpoint has at names that are no leaves: a subtree, or an empty value."""
    sizes = Counter(prefix for path, _, _ in seen(side, options) for prefix in prefixes(path)[:-1])
    inner = {name: f"a subtree of {n} leaves" for name, n in sizes.items()}
    for path, empty in side.empties.items():
        cut = below(path, options.at)
        if cut is not None:
            inner[join(renamed(cut, options.rename))] = f"`{empty}`"
    return inner or {"": "none"}


def _missing(target: Target, options: Options, inner: Mapping[str, str]) -> Mismatch:
    note = None
    if options.missing == "keep":
        note = "the template has no value to keep here, only a shape and dtype"
    what = inner.get(target.name, "none")
    return Mismatch(
        "missing", target.name, f"{target.dtype_name}{target.user_shape}", what, note=note
    )


def _under(path: Path, names: set[str]) -> bool:
    return "" in names or any(prefix in names for prefix in prefixes(path))
