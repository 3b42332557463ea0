"""Compares a catalog with a template: finds every pair and every mismatch. Pure: no I/O, no JAX."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from .._catalog.entry import LeafEntry
from .._core.dtypes import Cast, class_of, may_cast
from .._core.names import Path, apply_rename, join_path, prefixes, strip_prefix
from .._template.template import Target, Template
from ..errors import Mismatch
from .options import MatchOptions
from .result import CastNote, Match, Pair


@dataclass(frozen=True, slots=True)
class CheckpointView:
    """What a match needs of a catalog.

    Attributes:
        entries: The leaves.
        empties: Values that are recorded without a leaf, such as an empty dict, by path.
    """

    entries: Sequence[LeafEntry]
    empties: Mapping[Path, str] = field(default_factory=dict)


RenamedLeaf = tuple[Path, str, LeafEntry]
"""A leaf of the checkpoint, with its path and name after `at` and `rename`."""


def match_leaves(
    url: str,
    checkpoint: CheckpointView,
    template: Template,
    options: MatchOptions,
    fallback: CheckpointView | None = None,
) -> Match:
    """Compares a checkpoint with a template.

    Args:
        url: The URL of the checkpoint, for the report.
        checkpoint: The checkpoint.
        template: The template.
        options: `at` applies to both checkpoints, `rename` only to the first.
        fallback: Another checkpoint, which supplies the leaves that the first does not hold.

    Returns:
        All pairs and all mismatches. The mismatches have no hints yet; `hints.add_hints` adds them.
    """
    matching = _Matching(checkpoint, template, options, fallback)
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
    return matching.build_result(url)


def apply_at_and_rename(checkpoint: CheckpointView, options: MatchOptions) -> list[RenamedLeaf]:
    """The leaves of a checkpoint that `at` selects, under their names after `rename`."""
    if not options.at and options.rename is None:
        return [(e.path, e.name, e) for e in checkpoint.entries]
    leaves = []
    for entry in checkpoint.entries:
        path = strip_prefix(entry.path, options.at)
        if path is not None:
            path = apply_rename(path, options.rename)
            leaves.append((path, join_path(path), entry))
    return leaves


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
        mismatches.append(Mismatch("shape", name, str(target.user_shape), str(entry.user_shape)))
    note = None
    if target.kind == "key":
        if target.key_impl != entry.key_impl:
            mismatches.append(Mismatch("dtype", name, target.dtype_name, entry.dtype_name))
    elif both_numeric and entry.dtype != target.dtype and not _is_same_number(target, entry):
        if may_cast(entry.dtype, target.dtype, cast):
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
    """The dtype and shape of a leaf: `float32(8, 6)`."""
    return entry.dtype_name if entry.kind == "string" else f"{entry.dtype_name}{entry.user_shape}"


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
        supplied: The leaves of the fallback.
        ambiguous_targets: Names that several targets share, at least one of them with data.
    """

    def __init__(
        self,
        checkpoint: CheckpointView,
        template: Template,
        options: MatchOptions,
        fallback: CheckpointView | None,
    ):
        self.checkpoint = checkpoint
        self.template = template
        self.options = options
        self.stored = _index_checkpoint(checkpoint, options)
        self.supplied = _Index()
        if fallback is not None:
            self.supplied = _index_checkpoint(fallback, replace(options, rename=None))
        self.ambiguous_targets = _find_ambiguous_targets(template)
        self.pairs: list[Pair] = []
        self.kept: list[str] = []
        self.skipped: list[str] = []
        self.ignored: list[str] = []
        self.mismatches: list[Mismatch] = []
        self.casts: list[CastNote] = []
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
        index, entry = self.stored, self.stored.by_name.get(name)
        if entry is None and name in self.supplied.by_name:
            index, entry = self.supplied, self.supplied.by_name[name]
        if name in index.clashes:
            self._report_ambiguous(name, index.clashes[name], "checkpoint")
        elif entry is None:
            self._keep_or_report_missing(target)
        else:
            self._match_entry(target, entry, from_fallback=index is self.supplied)

    def _keep_or_report_missing(self, target: Target) -> None:
        """Handles a target that neither checkpoint has."""
        if target.optional or (self.options.missing == "keep" and target.concrete):
            self.kept.append(target.name)
            self.mismatches += _complete_dtype_problems(target, target.dtype_name)
        else:
            self.mismatches.append(self._describe_missing(target))

    def _match_entry(self, target: Target, entry: LeafEntry, from_fallback: bool) -> None:
        """Pairs a target with the leaf of its name, or reports why the leaf does not fit."""
        mismatches, cast = fit_leaf(target, entry, self.options.cast)
        if target.problems and all(m.problem != "kind" for m in mismatches):
            # If no `jax.Array` holds the target's dtype, say so instead of comparing the dtypes.
            unsupported = _complete_dtype_problems(target, entry.dtype_name)
            if unsupported:
                mismatches = [m for m in mismatches if m.problem != "dtype"] + unsupported
        if from_fallback:
            note = "in the checkpoint given as `missing=`"
            mismatches = [replace(m, note=note) for m in mismatches]
        self.mismatches += mismatches
        if not mismatches:
            self.pairs.append(Pair(target, entry, from_fallback))
            if cast is not None:
                self.casts.append(cast)

    def report_if_nothing_is_taken(self) -> None:
        """Reports every target as missing if the checkpoint itself would fill none of them.

        A restore that takes nothing from a checkpoint is due to a mistake in `at` or in names,
        even if every leaf could be kept or comes from the fallback.
        """
        taken = not all(pair.fallback for pair in self.pairs)
        if taken or self.mismatches or not self.checkpoint.entries:
            return
        note = "not one leaf is in the checkpoint itself"
        self.mismatches += [
            replace(self._describe_missing(target), note=note)
            for target in self.template.targets
            if target.has_data and not target.optional
        ]

    def report_extras(self) -> None:
        """Reports the leaves of the checkpoint that no target asks for, or ignores them."""
        targets = self.template.targets
        wanted = {t.name for t in targets if t.kind != "static"}
        skipped_subtrees = {t.name for t in targets if t.kind == "skip"}
        if not skipped_subtrees and self.stored.by_name.keys() <= wanted:
            return  # fast path: the template asks for every leaf
        for path, name, entry in apply_at_and_rename(self.checkpoint, self.options):
            if name in wanted and name not in skipped_subtrees:
                continue
            below_skipped = skipped_subtrees and _is_below_any(path, skipped_subtrees)
            if self.options.extra == "ignore" or below_skipped:
                self.ignored.append(name)
            elif name in self.stored.clashes:
                self._report_ambiguous(name, self.stored.clashes[name], "checkpoint")
            else:
                self.mismatches.append(Mismatch("extra", name, "no leaf", describe_entry(entry)))

    def build_result(self, url: str) -> Match:
        """Returns what was found so far."""
        return Match(
            url,
            self.template,
            tuple(self.pairs),
            tuple(self.kept),
            tuple(self.skipped),
            tuple(self.ignored),
            tuple(self.mismatches),
            tuple(self.casts),
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
        note = None
        if self.options.missing == "keep":
            note = "the template has no value to keep here, only a shape and dtype"
        expected = f"{target.dtype_name}{target.user_shape}"
        found = self._inner_nodes.get(target.name, "none")
        return Mismatch("missing", target.name, expected, found, note=note)

    @functools.cached_property
    def _inner_nodes(self) -> dict[str, str]:
        """What the checkpoint holds at names that are not leaves: a subtree or an empty value."""
        sizes = Counter(
            prefix
            for path, _, _ in apply_at_and_rename(self.checkpoint, self.options)
            for prefix in prefixes(path)[:-1]
        )
        nodes = {name: f"a subtree of {n} leaves" for name, n in sizes.items()}
        for path, empty in self.checkpoint.empties.items():
            rest = strip_prefix(path, self.options.at)
            if rest is not None:
                nodes[join_path(apply_rename(rest, self.options.rename))] = f"`{empty}`"
        return nodes


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
