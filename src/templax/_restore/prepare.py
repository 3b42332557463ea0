"""Opens checkpoints and matches them with a template, for `check`, `plan` and `restore`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace

from msgspec import structs

from .._catalog.catalog import Catalog
from .._catalog.entry import Chunk
from .._core.dtypes import int_fits
from .._core.gc_pause import pause_gc
from .._core.names import find_nearest, prefixes, strip_prefix
from .._match.hints import add_hints, explain_lack_of_arrays, lacks_arrays
from .._match.match import CheckpointView, match_leaves
from .._match.options import MatchOptions
from .._match.result import Match
from .._plan.build import build_plan
from .._template.template import Template
from ..errors import Mismatch, NotFound, TemplaxError, UsageError
from ..formats.registry import Checkpoint, open_checkpoint
from .execute import execute_plan
from .options import CompareOptions


def match_checkpoint(
    checkpoint: Checkpoint,
    template: Template,
    options: CompareOptions,
    took: dict[str, float] | None = None,
) -> tuple[Sequence[Catalog], Match]:
    """Opens the checkpoint, and the one given as `missing=`, and matches them with a template.

    Args:
        checkpoint: See `restore`.
        template: The template.
        options: How to compare the two.
        took: Receives the seconds of the stages `open` and `match`.

    Returns:
        The catalogs (one, or two with a checkpoint given as `missing=`), and the match, whose
        mismatches have hints.
    """
    begin = time.perf_counter()
    at, rename, policy = options.at, options.rename, options.missing_policy
    catalogs = [open_checkpoint(checkpoint)]
    if isinstance(rename, Mapping):
        _check_rename_used(rename, catalogs[0], at)
    if options.extra == "ignore" and template.targets and lacks_arrays(template):
        raise UsageError(explain_lack_of_arrays(template))
    if policy is None:
        catalogs.append(open_missing(options.missing))
    opened_at = time.perf_counter()
    sides = [CheckpointView(c.entries, c.empties) for c in catalogs]
    fallback = sides[1] if len(sides) == 2 else None

    def match_with(options: MatchOptions, template: Template) -> Match:
        return match_leaves(catalogs[0].url, sides[0], template, options, fallback)

    def try_hint(options: MatchOptions, template: Template) -> Match:
        found = match_with(options, template)
        try:
            return _check_int_values(catalogs, found)
        except TemplaxError:  # a hint that is only tried must not raise
            return found

    match_options = MatchOptions(at, rename, policy or "error", options.extra, options.cast)
    # A rename function is the caller's code, which may make cycles: it runs with collections on.
    with nullcontext() if callable(rename) else pause_gc():
        first = match_with(match_options, template)
    result = _check_int_values(catalogs, first)
    if took is not None:
        took |= {"open": opened_at - begin, "match": time.perf_counter() - opened_at}
    if not result.ok:
        result = add_hints(result, sides[0], match_options, try_hint)
    return catalogs, result


def _check_rename_used(rename: Mapping[str, str], catalog: Catalog, at: str) -> None:
    """Refuses a prefix that no leaf has: it is a typo, which `missing=` would otherwise hide."""
    paths = [path for e in catalog.entries if (path := strip_prefix(e.path, at)) is not None]
    known = {"", *(prefix for path in paths for prefix in prefixes(path))}
    for old in rename:
        if paths and old not in known:
            near = find_nearest(old, known)
            where = f" under `{at}`" if at else ""
            raise UsageError(
                f"Expected rename= of what {catalog.url} has{where}, got `{old}`"
                + (f"; nearest: `{near}`" if near else "")
            )


def open_missing(missing: Checkpoint) -> Catalog:
    """The catalog of the checkpoint that is given as `missing=`.

    Raises:
        UsageError: It is neither a checkpoint nor one of the words that `missing=` takes.
        CheckpointError, SourceError: See `templax.open`.
    """
    try:
        return open_checkpoint(missing)
    except NotFound as error:
        if isinstance(missing, str) and missing.isidentifier():
            raise UsageError(
                f'Expected missing="error", "keep" or a checkpoint, got {missing!r},'
                " where there is nothing"
            ) from error
        raise


def _check_int_values(catalogs: Sequence[Catalog], found: Match) -> Match:
    """Adds a mismatch for each stored Python int that does not fit its integer target.

    Whether it fits depends on the value, so it is read now. The index of a checkpoint usually holds
    such numbers itself, so this reads next to nothing.
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
    """Locates the chunks of every leaf that a match pairs: for each catalog, name → chunks."""
    chunks: list[Mapping[str, tuple[Chunk, ...]]] = []
    for i, catalog in enumerate(catalogs):
        mine = [pair.entry for pair in found.pairs if pair.fallback == bool(i)]
        chunks.append(catalog.locate(entry for entry in mine if entry.kind != "string"))
    return chunks
