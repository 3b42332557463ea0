"""What `check`, `plan` and `restore` share: checkpoints opened, and matched with a template."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import Literal

from msgspec import structs

from .._catalog.catalog import Catalog
from .._catalog.entry import Chunk
from .._core.dtypes import CASTS, Cast, int_fits
from .._core.gc_pause import pause_gc
from .._core.names import Rename, find_nearest, prefixes, strip_prefix
from .._match.hints import add_hints
from .._match.match import CheckpointView, match_leaves
from .._match.options import MatchOptions
from .._match.result import Match
from .._plan.build import build_plan
from .._template.template import Template
from ..errors import Mismatch, NotFound, TemplaxError, UsageError
from ..formats.registry import Checkpoint, open_checkpoint
from .execute import execute_plan


def match_checkpoint(
    checkpoint: Checkpoint,
    template: Template,
    at: str,
    rename: Rename | None,
    missing: Literal["error", "keep"] | Checkpoint,
    extra: Literal["error", "ignore"],
    cast: Cast,
    took: dict[str, float] | None = None,
) -> tuple[Sequence[Catalog], Match]:
    """The catalogs involved, and the match with hints.

    Args:
        took: Gets the seconds of the stages `open` and `match`.
        others: As of `restore`.
    """
    begin = time.perf_counter()
    if not isinstance(at, str):
        raise UsageError(f"Expected at= the name of a subtree (str), got {at!r}")
    if extra not in ("error", "ignore"):
        raise UsageError(f'Expected extra="error" or "ignore", got {extra!r}')
    if cast not in CASTS:
        raise UsageError(f"Expected cast= one of {', '.join(CASTS)}, got {cast!r}")
    if not (rename is None or callable(rename) or _is_mapping_of_names(rename)):
        raise UsageError(f"Expected rename= a dict of names (str) or a function, got {rename!r}")
    catalogs = [open_checkpoint(checkpoint)]
    if isinstance(rename, Mapping):
        _refuse_unused(rename, catalogs[0], at)
    targets = template.targets
    if extra == "ignore" and targets and all(t.kind == "static" for t in targets):
        found = getattr(targets[0].placement, "leaf", None)
        raise UsageError(f"Expected a template with arrays, got {type(found).__name__}")
    keep = isinstance(missing, str) and missing == "keep"
    if not keep and not (isinstance(missing, str) and missing == "error"):
        catalogs.append(_open_missing(missing))
    opened_at = time.perf_counter()
    sides = [CheckpointView(c.entries, c.empties) for c in catalogs]
    fallback = sides[1] if len(sides) == 2 else None

    def compared(options: MatchOptions, template: Template) -> Match:
        return match_leaves(catalogs[0].url, sides[0], template, options, fallback)

    def tried(options: MatchOptions, template: Template) -> Match:
        found = compared(options, template)
        try:
            return _numbers_fit(catalogs, found)
        except TemplaxError:  # a hint that is tried must not fail for what it would find
            return found

    options = MatchOptions(at, rename, "keep" if keep else "error", extra, cast)
    with nullcontext() if callable(rename) else pause_gc():
        first = compared(options, template)
    result = _numbers_fit(catalogs, first)
    if took is not None:
        took |= {"open": opened_at - begin, "match": time.perf_counter() - opened_at}
    return catalogs, result if result.ok else add_hints(result, sides[0], options, tried)


def _refuse_unused(rename: Mapping[str, str], catalog: Catalog, at: str) -> None:
    """A prefix that nothing begins with is a slip: with `missing=` nobody would notice it."""
    paths = [path for e in catalog.entries if (path := strip_prefix(e.path, at)) is not None]
    there = {"", *(prefix for path in paths for prefix in prefixes(path))}
    for old in rename:
        if paths and old not in there:
            near = find_nearest(old, there)
            where = f" under `{at}`" if at else ""
            raise UsageError(
                f"Expected rename= of what {catalog.url} has{where}, got `{old}`"
                + (f"; nearest: `{near}`" if near else "")
            )


def _is_mapping_of_names(rename: object) -> bool:
    return isinstance(rename, Mapping) and all(
        isinstance(old, str) and isinstance(new, str) for old, new in rename.items()
    )


def _open_missing(missing: Checkpoint) -> Catalog:
    try:
        return open_checkpoint(missing)
    except NotFound as error:
        if isinstance(missing, str) and missing.isidentifier():
            raise UsageError(
                f'Expected missing="error", "keep" or a checkpoint, got {missing!r},'
                " where there is nothing"
            ) from error
        raise


def _numbers_fit(catalogs: Sequence[Catalog], found: Match) -> Match:
    """The match with a mismatch for each Python int that its integer target can't hold.

    The index of a checkpoint holds such numbers itself, as a rule, so this reads next to nothing.
    """
    pairs = [p for p in found.pairs if p.by_value]
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
    with closing(
        execute_plan(build_plan(asked, locate_chunks(catalogs, asked)), sources)
    ) as finished:
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
    catalogs: Sequence[Catalog], found: Match
) -> list[Mapping[str, tuple[Chunk, ...]]]:
    """Of each catalog: name → chunks, of every leaf that a match pairs."""
    chunks: list[Mapping[str, tuple[Chunk, ...]]] = []
    for i, catalog in enumerate(catalogs):
        mine = [pair.entry for pair in found.pairs if pair.fallback == bool(i)]
        chunks.append(catalog.locate(entry for entry in mine if entry.kind != "string"))
    return chunks
