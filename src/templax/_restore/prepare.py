"""Opens checkpoints and matches them with a template, for `check`, `plan` and `restore`."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace

import numpy as np
from msgspec import structs

from .._catalog.catalog import Catalog
from .._catalog.entry import Chunk, LeafEntry
from .._core.boxes import Shape
from .._core.dtypes import int_fits
from .._core.gc_pause import pause_gc
from .._core.names import (
    Path,
    Rename,
    apply_rename,
    find_nearest,
    join_path,
    matches_pattern,
    prefixes,
    split_name,
    strip_prefix,
)
from .._core.text import quote_text
from .._match.checkpoint_view import CheckpointView
from .._match.hints import add_hints, explain_lack_of_arrays, lacks_arrays
from .._match.match import match_leaves
from .._match.options import MatchOptions, MissingChoice
from .._match.positions import align_leaves, note_positions
from .._match.result import Match
from .._plan.build import build_plan
from .._template.template import Target, Template
from .._views.resolve import Expected
from .._views.suggest import hint_at_mapping
from .._views.view import View
from ..errors import Mismatch, NotFound, TemplaxError, Unsupported, UsageError
from ..formats.registry import Checkpoint, open_checkpoint
from .execute import execute_plan
from .options import CompareOptions, Missing, Supply
from .undecodable import name_undecodable

_MAX_SUBTREES = 1 << 16
"""Maximum number of names that a mistyped one is compared with."""

_LEAVE_OUT = "to leave them out, write `...` for them in the template"


def match_checkpoint(
    checkpoint: Checkpoint,
    template: Template,
    options: CompareOptions,
    took: dict[str, float] | None = None,
) -> tuple[Sequence[Catalog], Match]:
    """Opens the checkpoint, and those given as `missing=`, and matches them with a template.

    Args:
        checkpoint: See `restore`.
        template: The template.
        options: How to compare the two.
        took: Receives the seconds of the stages `open` and `match`.

    Returns:
        The catalogs (of the checkpoint, then of those given as `missing=`), and the match, whose
        mismatches have hints.
    """
    begin = time.perf_counter()
    at, rename = options.at, options.rename
    expect = _Expectations(template, at, rename)
    catalogs = [open_fitting(checkpoint, expect)]
    if isinstance(rename, Mapping):
        check_rename_used(rename, catalogs[0], at)
    if options.extra == "ignore" and template.targets and lacks_arrays(template):
        raise UsageError(explain_lack_of_arrays(template))
    if isinstance(options.missing, Mapping):
        _check_patterns_used(options.missing, template)
    missing = _number_suppliers(open_missing(options.missing, expect), catalogs)
    opened_at = time.perf_counter()
    # Names that the caller writes are those of the file; without any, its leaves get those of the
    # template.
    aligned = [c.positional and not at and (i or rename is None) for i, c in enumerate(catalogs)]
    view, *suppliers = [
        CheckpointView(
            align_leaves(c.entries, template) if by_position else c.entries,
            c.empties,
            c.url,
            c.fingerprints,
            c.unread,
        )
        for c, by_position in zip(catalogs, aligned, strict=True)
    ]

    def match_with(options: MatchOptions, template: Template) -> Match:
        return match_leaves(view, template, options, suppliers)

    def try_hint(options: MatchOptions, template: Template) -> Match:
        found = match_with(options, template)
        try:
            return _check_int_values(catalogs, found)
        except TemplaxError:  # a hint that is only tried must not raise
            return found

    match_options = MatchOptions(at, rename, missing, options.extra, options.cast)
    # A rename function is the caller's code, which may make cycles: it runs with collections on.
    with nullcontext() if callable(rename) else pause_gc():
        first = match_with(match_options, template)
    result = _check_int_values(catalogs, first)
    if took is not None:
        took |= {"open": opened_at - begin, "match": time.perf_counter() - opened_at}
    if aligned[0]:
        result = replace(result, aligned=True)
    if not result.ok and aligned[0]:
        result = note_positions(result, view.entries)
    elif not result.ok:
        result = add_hints(result, view, match_options, try_hint)
        if not at and rename is None and catalogs[0].base is None:
            result = hint_at_mapping(result, view.entries, options.cast)
    return catalogs, result


class _Expectations:
    """The shapes and dtypes that a template expects, by the names of leaves of a checkpoint.

    Args:
        template: The template.
        at, rename: See `restore`.
    """

    def __init__(self, template: Template, at: str, rename: Rename | None):
        self._template, self._at, self._rename = template, at, rename

    @functools.cached_property
    def _targets(self) -> dict[str, Target]:
        targets = [target for target in self._template.targets if target.has_data]
        return {name: t for t in targets for name in (t.name, *t.aliases)}

    def __call__(self, name: str) -> tuple[Shape, np.dtype] | None:
        path: Path | None = split_name(name)
        if self._at:
            path = strip_prefix(path, self._at)
        if path is None:
            return None
        target = self._targets.get(join_path(apply_rename(path, self._rename)))
        return None if target is None else (target.shape, target.dtype)


def open_fitting(checkpoint: Checkpoint, expected: Expected | None) -> Catalog:
    """Opens a checkpoint; a view with the sizes that a template expects, if there is one."""
    if expected is None:
        return open_checkpoint(checkpoint)
    if isinstance(checkpoint, View):
        return checkpoint.catalog_for(expected)
    catalog = open_checkpoint(checkpoint)
    return catalog if catalog.fit is None else catalog.fit(expected)


def check_rename_used(rename: Mapping[str, str], catalog: Catalog, at: str) -> None:
    """Refuses a prefix that neither a leaf nor an empty node has: it is a typo, which `missing=`
    would otherwise hide.
    """
    unread = map(split_name, catalog.unread)
    known = [*(entry.path for entry in catalog.entries), *catalog.empties, *unread]
    paths = [path for each in known if (path := strip_prefix(each, at)) is not None]
    if not paths:
        return
    found = {"", *(prefix for path in paths for prefix in prefixes(path) if prefix in rename)}
    for old in rename:
        if old not in found:
            near = find_nearest(old, list_subtrees(paths))
            where = f" under `{at}`" if at else ""
            raise UsageError(
                f"Expected rename= of what {catalog.url} has{where}, got `{old}`"
                + (f"; nearest: `{near}`" if near else "")
            )


def list_subtrees(paths: Iterable[Path]) -> set[str]:
    """The names of all leaves and subtrees; only some of them if there are very many."""
    names = (prefix for path in paths for prefix in prefixes(path))
    return set(itertools.islice(names, _MAX_SUBTREES))


def _check_patterns_used(patterns: Iterable[str], template: Template) -> None:
    """Refuses a pattern that no leaf of the template matches: it is a typo."""
    paths = [target.path for target in template.targets if target.has_data]
    names = [join_path(path) for path in paths]
    for pattern in patterns:
        if not names or any(matches_pattern(name, pattern) for name in names):
            continue
        subtree, stem = f"{pattern}.*", pattern.removesuffix(".*")
        if any(matches_pattern(name, subtree) for name in names):
            hint = f"; hint: {quote_text(subtree)} matches the leaves below it"
        else:
            near = find_nearest(stem, list_subtrees(paths))
            hint = f"; nearest: `{near}`" if near else ""
        raise UsageError(
            "Expected missing= patterns of leaves of the template, got"
            f" {quote_text(pattern)}, which matches none{hint}"
        )


def open_missing(missing: Missing, expected: Expected | None = None) -> Missing:
    """The argument `missing=` with each checkpoint in it opened, once; see `open_fitting`.

    Raises:
        UsageError: It holds neither a checkpoint nor a choice.
        CheckpointError, SourceError: See `templax.open`.
    """
    if not isinstance(missing, Mapping):
        return _open_supplier(missing, expected)
    opened: dict[int | str, Supply] = {}
    for supply in missing.values():
        key = supply if isinstance(supply, str) else id(supply)
        if key not in opened:
            opened[key] = _open_supplier(supply, expected)
    return {p: opened[s if isinstance(s, str) else id(s)] for p, s in missing.items()}


def _open_supplier(supply: Supply, expected: Expected | None) -> Supply:
    if isinstance(supply, str) and supply in ("error", "keep"):
        return supply
    try:
        return open_fitting(supply, expected)
    except NotFound as error:
        if isinstance(supply, str) and supply.isidentifier():
            raise UsageError(
                f'Expected missing="error", "keep" or a checkpoint, got {supply!r},'
                " where there is nothing"
            ) from error
        raise


def _number_suppliers(
    missing: Missing, catalogs: list[Catalog]
) -> MissingChoice | Mapping[str, MissingChoice]:
    """`missing=` for the match. The opened checkpoints in it are appended to `catalogs`."""

    def number(supply: Supply) -> MissingChoice:
        if not isinstance(supply, Catalog):
            return "keep" if supply == "keep" else "error"
        for i, catalog in enumerate(catalogs[1:], 1):
            if catalog is supply:
                return i
        catalogs.append(supply)
        return len(catalogs) - 1

    if isinstance(missing, Mapping):
        return {pattern: number(supply) for pattern, supply in missing.items()}
    return number(missing)


def _check_int_values(catalogs: Sequence[Catalog], found: Match) -> Match:
    """Adds a mismatch for each stored Python int that does not fit its integer target.

    Whether it fits depends on the value, so it is read now. The index of a checkpoint usually holds
    such numbers itself, so this reads next to nothing.
    """
    pairs = [p for p in found.pairs if p.entry.kind == "scalar" and p.by_value]
    if not pairs:
        return found
    as_stored = [
        structs.replace(p, target=structs.replace(p.target, dtype=p.entry.dtype, boxes=((),)))
        for p in pairs
    ]
    wrong: list[Mismatch] = []
    values: dict[str, int] = {}
    asked = replace(found, pairs=tuple(as_stored))
    sources = [catalog.source for catalog in catalogs]
    try:
        chunks = locate_chunks(catalogs, asked)
    except Unsupported:  # a codec that templax does not read: said when values are asked for
        return found
    with closing(execute_plan(build_plan(asked, chunks), sources)) as finished:
        for done in finished:
            for buffer, array in zip(done.batch.buffers, done.arrays, strict=True):
                values[buffer.pair.target.name] = int(array[()])
    for pair in pairs:
        target, value = pair.target, values[pair.target.name]
        if not int_fits(target.dtype, value):
            note = f"the number is {value}"
            wrong.append(
                Mismatch("dtype", target.name, target.dtype_name, pair.entry.dtype_name, note=note)
            )
    if not wrong:
        return found
    order = {target.name: i for i, target in enumerate(found.template.targets)}
    merged = sorted([*found.mismatches, *wrong], key=lambda m: order.get(m.name, len(order)))
    return replace(found, mismatches=tuple(merged))


def locate_chunks(
    catalogs: Sequence[Catalog],
    found: Match,
    locate: Callable[
        [Catalog, Iterable[LeafEntry]], Mapping[str, Sequence[Chunk]]
    ] = Catalog.locate,
) -> list[Mapping[str, Sequence[Chunk]]]:
    """Locates the chunks of every leaf that a match pairs: for each catalog, name → chunks.

    Args:
        catalogs: See `match_checkpoint`.
        found: The match.
        locate: What locates leaves of a catalog: `locate_columns`, to make as few chunks as
            possible.

    Raises:
        Corrupted: See `Catalog.locate`.
        Unsupported: Leaves can't be decoded. Names them all, of all catalogs.
    """
    wanted: list[tuple[Catalog, list[LeafEntry]]] = []
    for i, catalog in enumerate(catalogs):
        mine = [pair.entry for pair in found.pairs if pair.source == i]
        paths = {entry.name: entry.path for entry in mine}
        if len(paths) < len(mine):
            for entry in mine:
                if paths[entry.name] != entry.path:
                    raise Unsupported(
                        "templax restores one leaf of a name at a time, got two that only their"
                        " key paths tell apart",
                        leaf=entry.name,
                    )
        wanted.append((catalog, [entry for entry in mine if entry.kind != "string"]))
    try:
        return [locate(catalog, arrays) for catalog, arrays in wanted]
    except Unsupported as error:
        unique = [
            (catalog, [*{entry.name: entry for entry in arrays}.values()])
            for catalog, arrays in wanted
        ]
        raise name_undecodable(unique, error, _LEAVE_OUT) from error
