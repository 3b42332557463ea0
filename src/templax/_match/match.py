"""Compares a catalog with a template: finds every pair and every mismatch. Pure: no I/O, no JAX."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from msgspec import structs

from .._catalog.entry import LeafEntry
from .._core.dtypes import UNNAMED_BYTE, Cast, class_of, may_cast, names_byte
from .._core.names import (
    Path,
    apply_rename,
    join_path,
    matches_pattern,
    prefixes,
    split_name,
    strip_prefix,
)
from .._template.template import Target, Template
from ..errors import NOT_READ, Mismatch
from .checkpoint_view import CheckpointView, apply_at_and_rename, rename_unread
from .options import MatchOptions
from .result import CastNote, Match, Pair

NOTHING_TO_KEEP = "the template has no value to keep here, only a shape and dtype"
"""The note of a missing leaf that `missing="keep"` can't keep."""


KEPT_ELSEWHERE = (
    "the template's value is on other processes, and a restore moves nothing between them: keep it"
    " in its own sharding"
)
"""The note of a missing leaf whose value `missing="keep"` can't move to the sharding asked for."""


def match_leaves(
    checkpoint: CheckpointView,
    template: Template,
    options: MatchOptions,
    suppliers: Sequence[CheckpointView] = (),
) -> Match:
    """Compares a checkpoint with a template.

    Args:
        checkpoint: The checkpoint.
        template: The template.
        options: `at` applies to all checkpoints, `rename` only to the first.
        suppliers: Other checkpoints, from which `options.missing` takes what the first lacks.

    Returns:
        All pairs and all mismatches. The mismatches have no hints yet; `hints.add_hints` adds them.
    """
    matching = _Matching(checkpoint, template, options, suppliers)
    names_are_unique = not (matching.stored.clashes or matching.ambiguous_targets)
    stored, pairs = matching.stored.by_name, matching.pairs
    for target in template.targets:
        # Fast path for the common case, an array stored as the template asks for it. It is inlined
        # because a template may have hundreds of thousands of leaves.
        if names_are_unique and target.kind == "array" and not target.problems:
            entry = stored.get(target.name)
            if (
                entry is not None
                and entry.kind == "array"
                and entry.shape == target.shape
                and entry.dtype == target.dtype
            ):
                pairs.append(Pair(target, entry))
                continue
        matching.match_target(target)
    matching.report_if_nothing_is_taken()
    matching.report_extras()
    return matching.build_result()


def fit_leaf(
    target: Target, entry: LeafEntry, cast: Cast
) -> tuple[list[Mismatch], CastNote | None]:
    """Compares one leaf with the target of the same name.

    Returns:
        Why the leaf can't fill the target (empty if it can), and the cast that it needs, if any.
    """
    name, mismatches = target.name, list[Mismatch]()
    both_numeric = target.kind in ("array", "scalar") and entry.kind in ("array", "scalar")
    if not both_numeric and target.kind != entry.kind:
        found = f"{_KINDS[entry.kind]} ({describe_entry(entry)})"
        return [Mismatch("kind", name, _KINDS[target.kind], found)], None
    if target.user_shape != entry.user_shape:
        made = entry.made_from and f"made from {entry.made_from}"
        mismatches.append(
            Mismatch("shape", name, str(target.user_shape), str(entry.user_shape), note=made)
        )
    note = None
    if target.kind == "key":
        if target.key_impl != entry.key_impl:
            mismatches.append(Mismatch("dtype", name, target.dtype_name, entry.dtype_name))
        elif (target.shape[-1:], target.dtype) != (entry.shape[-1:], entry.dtype):
            data = [f"{x.dtype_name} of {x.dtype.name}{x.shape}" for x in (target, entry)]
            mismatches.append(Mismatch("dtype", name, *data))
    elif both_numeric and entry.dtype != target.dtype and not _is_same_number(target, entry):
        if entry.dtype == UNNAMED_BYTE and names_byte(target.dtype):
            pass  # the template says what the bytes are
        elif may_cast(entry.dtype, target.dtype, cast):
            note = CastNote(name, entry.dtype_name, target.dtype_name, entry.nbytes)
        else:
            mismatches.append(Mismatch("dtype", name, target.dtype_name, entry.dtype_name))
    return mismatches, note


def _is_same_number(target: Target, entry: LeafEntry) -> bool:
    """Whether two dtypes match without a cast, because one side is a Python number.

    A Python number has no width of its own: any stored integer fits a target that is an `int`, and
    any float one that is a `float`. In the other direction, a stored `int` fits every integer dtype
    that can hold its value, which is checked once the value has been read (see `Pair.by_value`).
    """
    if target.kind == "scalar":
        return class_of(entry.dtype) == class_of(target.dtype)
    return entry.kind == "scalar" and class_of(entry.dtype) == class_of(target.dtype) == "int"


_KINDS = {
    "array": "an array",
    "scalar": "a number",
    "string": "a string",
    "key": "a typed PRNG key",
}


def describe_entry(entry: LeafEntry) -> str:
    """The dtype and shape of a leaf: `float32(8, 6)`; of one of a view, what it is made from."""
    made = f", made from {entry.made_from}" if entry.made_from else ""
    shape = "" if entry.kind == "string" else str(entry.user_shape)
    return f"{entry.dtype_name}{shape}{made}"


@dataclass(frozen=True, slots=True)
class _Index:
    """The leaves of a checkpoint by name.

    Attributes:
        by_name: One leaf for each name.
        clashes: The stored paths of the leaves that share a name. A dict key may contain a `.`, and
            a rename may map two leaves to one name.
    """

    by_name: Mapping[str, LeafEntry] = field(default_factory=dict)
    clashes: Mapping[str, Sequence[Path]] = field(default_factory=dict)


class _Matching:
    """A match in progress: the indexed sides, and what has been found so far.

    Attributes:
        stored: The leaves of the checkpoint.
        indexes: `stored`, then the leaves of each supplier.
        ambiguous_targets: Names that several targets share, at least one of them with data.
    """

    def __init__(
        self,
        checkpoint: CheckpointView,
        template: Template,
        options: MatchOptions,
        suppliers: Sequence[CheckpointView],
    ):
        self.checkpoint = checkpoint
        self.template = template
        self.options = options
        self.suppliers = suppliers
        self.stored = _index_checkpoint(checkpoint, options)
        unrenamed = replace(options, rename=None)
        self.indexes = [self.stored, *(_index_checkpoint(s, unrenamed) for s in suppliers)]
        self.ambiguous_targets = _find_ambiguous_targets(template)
        self.pairs: list[Pair] = []
        self.kept: list[str] = []
        self.skipped: list[str] = []
        self.ignored: list[str] = []
        self.unused_patterns: tuple[str, ...] = ()
        self.mismatches: list[Mismatch] = []
        self.casts: list[CastNote] = []
        self.viewed: dict[str, str] = {}
        self._reported_as_ambiguous: set[str] = set()

    def match_target(self, target: Target) -> None:
        """Matches any target, whatever its kind and problems."""
        name = target.name
        if name in self.ambiguous_targets:
            self._report_ambiguous(name, self.ambiguous_targets[name], "template")
            return
        if not target.has_data:
            self.skipped.append(name)
            return
        if target.problems:
            self.mismatches += [p for p in target.problems if p.problem != "dtype"]
            if any(p.problem == "kind" for p in target.problems):
                return  # no leaf of any checkpoint could fill it
        source, (name, entry) = 0, _find_entry(self.stored, target)
        if entry is None:
            choice = self.options.choose_for_missing(name)
            if isinstance(choice, int):
                source, (name, entry) = choice, _find_entry(self.indexes[choice], target)
        clashes = self.indexes[source].clashes
        if name in clashes:
            self._report_ambiguous(name, clashes[name], "checkpoint")
        elif entry is None:
            self._keep_or_report_missing(target)
        else:
            self._match_entry(target, entry, source)

    def _keep_or_report_missing(self, target: Target) -> None:
        """Handles a target that no checkpoint has."""
        keep = self.options.choose_for_missing(target.name) == "keep"
        if target.optional or (keep and target.concrete and not target.remote):
            self.kept.append(target.name)
            self.mismatches += _complete_dtype_problems(target, target.dtype_name)
        else:
            self.mismatches.append(self._describe_missing(target))

    def _match_entry(self, target: Target, entry: LeafEntry, source: int) -> None:
        """Pairs a target with the leaf of its name, or reports why the leaf does not fit."""
        mismatches, cast = fit_leaf(target, entry, self.options.cast)
        if target.problems and all(m.problem != "kind" for m in mismatches):
            # If no `jax.Array` holds the target's dtype, say so instead of comparing the dtypes.
            unsupported = _complete_dtype_problems(target, entry.dtype_name)
            if unsupported:
                mismatches = [m for m in mismatches if m.problem != "dtype"] + unsupported
        if source:
            note = f"in {self.suppliers[source - 1].url}, given as `missing=`"
            mismatches = [replace(m, note=note) for m in mismatches]
        self.mismatches += mismatches
        if not mismatches:
            if entry.dtype == UNNAMED_BYTE:
                entry = structs.replace(entry, dtype=target.dtype)
                self.viewed[target.name] = target.dtype_name
            self.pairs.append(Pair(target, entry, source))
            if cast is not None:
                self.casts.append(cast)

    def report_if_nothing_is_taken(self) -> None:
        """Reports every target as missing if the checkpoint itself would fill none of them.

        A restore that takes nothing from a checkpoint is due to a mistake in `at` or in names,
        even if every leaf could be kept or supplied.
        """
        taken = not all(pair.source for pair in self.pairs)
        if taken or self.mismatches or not self.checkpoint.entries:
            return
        note = "not one leaf is in the checkpoint itself"
        self.mismatches += [
            replace(self._describe_missing(target), note=note)
            for target in self.template.targets
            if target.has_data and not target.optional
        ]

    def report_extras(self) -> None:
        """Reports the leaves of the checkpoint that no target asks for, or ignores them.

        Where a target has several names, the checkpoint may hold a leaf under each. Only one of
        them is read. The others are ignored if the recorded checksums show that they are equal.
        Leaves that templax does not read are extra like any others.
        """
        by_name = self.stored.by_name
        if isinstance(self.options.extra, Mapping):
            names = (*by_name, *self._unread)
            self.unused_patterns = tuple(
                pattern
                for pattern in self.options.extra
                if not any(matches_pattern(name, pattern) for name in names)
            )
        targets = self.template.targets
        wanted = {t.name for t in targets if t.kind != "static"}
        skipped_subtrees = {t.name for t in targets if t.kind == "skip"}
        if not skipped_subtrees and not self._unread and by_name.keys() <= wanted:
            return  # fast path: the template asks for every leaf

        def is_ignored(path: Path, name: str) -> bool:
            below_skipped = _is_below_any(path, skipped_subtrees)
            return below_skipped or self.options.choose_for_extra(name) == "ignore"

        names_of = {alias: t.name for t in targets for alias in t.aliases}
        read = {p.target.name: p.entry for p in self.pairs if p.target.aliases and not p.source}
        for path, name, entry in apply_at_and_rename(self.checkpoint, self.options):
            if name in wanted and name not in skipped_subtrees:
                continue
            original = names_of.get(name)
            if original in read and self._is_same_leaf(read[original], entry):
                continue
            if is_ignored(path, name):
                self.ignored.append(name)
            elif name in self.stored.clashes:
                self._report_ambiguous(name, self.stored.clashes[name], "checkpoint")
            else:
                note = f"in the template it is the object at `{original}`" if original else None
                found = describe_entry(entry)
                self.mismatches.append(Mismatch("extra", name, "no leaf", found, note=note))
        with_data = {t.name: t for t in targets if t.has_data} if self._unread else {}
        unfilled = [t for name, t in with_data.items() if name not in by_name]
        asked_for = {self._find_unread(target) for target in unfilled}
        for name, why in self._unread.items():
            if name in asked_for:
                pass  # reported as missing, unless it is kept or supplied
            elif name in with_data:
                self._report_ambiguous(name, [split_name(name)] * 2, "checkpoint")
            elif is_ignored(split_name(name), name):
                self.ignored.append(name)
            else:
                self.mismatches.append(Mismatch("extra", name, "no leaf", NOT_READ, note=why))

    def _is_same_leaf(self, a: LeafEntry, b: LeafEntry) -> bool:
        """Whether two leaves of the checkpoint are one, or are recorded to have equal values."""
        if a is b or a.kind == b.kind == "string":
            return a.value == b.value
        if (a.kind, a.key_impl, a.dtype, a.shape) != (b.kind, b.key_impl, b.dtype, b.shape):
            return False
        crcs = {} if self.checkpoint.fingerprints is None else self.checkpoint.fingerprints()
        return a.name in crcs and crcs[a.name] == crcs.get(b.name)

    def build_result(self) -> Match:
        """Returns what was found so far."""
        suppliers = self.suppliers
        supplied = {p.target.name: suppliers[p.source - 1].url for p in self.pairs if p.source}
        return Match(
            self.checkpoint.url,
            self.template,
            pairs=tuple(self.pairs),
            supplied=supplied,
            kept=tuple(self.kept),
            skipped=tuple(self.skipped),
            ignored=tuple(self.ignored),
            unused_patterns=self.unused_patterns,
            mismatches=tuple(self.mismatches),
            casts=tuple(self.casts),
            viewed=self.viewed,
        )

    def _report_ambiguous(self, name: str, paths: Sequence[Path], where: str) -> None:
        """Reports a name that several leaves share, once for all of them."""
        if name in self._reported_as_ambiguous:
            return
        self._reported_as_ambiguous.add(name)
        listed = " and ".join(repr(path) for path in paths[:3])
        found = f"{len(paths)} in the {where}: {listed}"
        self.mismatches.append(Mismatch("ambiguous", name, "one leaf of this name", found))

    def _describe_missing(self, target: Target) -> Mismatch:
        choice = self.options.choose_for_missing(target.name)
        note = None
        if choice == "keep":
            note = KEPT_ELSEWHERE if target.concrete and target.remote else NOTHING_TO_KEEP
        expected = f"{target.dtype_name}{target.user_shape}"
        found = self._inner_nodes.get(target.name, "none")
        unread = self._find_unread(target)
        if unread is not None and found == "none" and note is None:
            found, note = NOT_READ, self._unread[unread]
        if isinstance(choice, int) and target.name not in self.indexes[choice].by_name:
            supplier = self.suppliers[choice - 1]
            why = supplier.unread.get(target.name)
            found += f", and {NOT_READ if why else 'none'} in {supplier.url}"
            note = note or why
        return Mismatch("missing", target.name, expected, found, note=note)

    def _find_unread(self, target: Target) -> str | None:
        """The leaf that can't be read which a target asks for, or which would hold it."""
        if not self._unread:
            return None
        above = (join_path(target.path[:n]) for n in range(len(target.path), -1, -1))
        return next((name for name in above if name in self._unread), None)

    @functools.cached_property
    def _unread(self) -> Mapping[str, str]:
        return rename_unread(self.checkpoint.unread, self.options)

    @functools.cached_property
    def _inner_nodes(self) -> dict[str, str]:
        """What the checkpoint holds at names that are not leaves: a subtree or an empty value."""
        wanted = {target.name for target in self.template.targets}
        leaves = apply_at_and_rename(self.checkpoint, self.options)
        sizes: Counter[str] = Counter()
        for parent, n in Counter(path[:-1] for path, _, _ in leaves).items():
            sizes.update({prefix: n for prefix in prefixes(parent) if prefix in wanted})
        nodes = {name: f"a subtree of {n} leaves" for name, n in sizes.items()}
        for path, empty in self.checkpoint.empties.items():
            rest = strip_prefix(path, self.options.at)
            if rest is not None:
                nodes[join_path(apply_rename(rest, self.options.rename))] = f"`{empty}`"
        return nodes


def _find_entry(index: _Index, target: Target) -> tuple[str, LeafEntry | None]:
    """The leaf for a target, under the first of its names that the checkpoint has."""
    for name in (target.name, *target.aliases):
        if name in index.by_name:
            return name, index.by_name[name]
    return target.name, None


def _index_checkpoint(checkpoint: CheckpointView, options: MatchOptions) -> _Index:
    if not options.at and options.rename is None:  # fast path: names are as stored
        by_name = {entry.name: entry for entry in checkpoint.entries}
        if len(by_name) == len(checkpoint.entries):
            return _Index(by_name)
    leaves = apply_at_and_rename(checkpoint, options)
    by_name = {name: entry for _, name, entry in leaves}
    if len(by_name) == len(leaves):
        return _Index(by_name)
    # The paths as stored, since those after `rename` are the same.
    return _Index(by_name, _find_clashes((name, entry.path) for _, name, entry in leaves))


def _find_ambiguous_targets(template: Template) -> Mapping[str, Sequence[Path]]:
    """Names that several targets share. Targets without data may share a name among themselves."""
    targets = template.targets
    if len({target.name for target in targets}) == len(targets):
        return {}
    with_data = {target.name for target in targets if target.has_data}
    clashes = _find_clashes((target.name, target.path) for target in targets)
    return {name: paths for name, paths in clashes.items() if name in with_data}


def _find_clashes(leaves: Iterable[tuple[str, Path]]) -> dict[str, list[Path]]:
    """The paths, in order, of each name that occurs more than once."""
    paths_by_name: defaultdict[str, list[Path]] = defaultdict(list)
    for name, path in leaves:
        paths_by_name[name].append(path)
    return {name: paths for name, paths in paths_by_name.items() if len(paths) > 1}


def _complete_dtype_problems(target: Target, found: str) -> list[Mismatch]:
    """The dtype problems of a target, with the dtype that was found, which only the match knows."""
    return [replace(p, found=found) for p in target.problems if p.problem == "dtype"]


def _is_below_any(path: Path, subtrees: set[str]) -> bool:
    """Whether `path` is one of `subtrees` or lies below one. The subtree `""` is the root."""
    return "" in subtrees or any(prefix in subtrees for prefix in prefixes(path))
