"""Prints the contents of a checkpoint, or the steps of a run: the output of `templax ls`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import click

from .._catalog.catalog import Catalog
from .._catalog.tree_rows import Row, build_rows, find_depth, format_cells, make_flat_row
from .._core.gc_pause import pause_gc
from .._display import listing
from .._display.terminal import Part, echo, echo_facts, echo_lines
from ..errors import UnknownFormat
from ..formats.registry import SupportsCatalog, open_catalog
from ..storage.open import open_source
from ..storage.source import Source

MANY_ROWS = 200
"""More rows than that are followed by a word on how to have fewer."""

FEW_ROWS = 50
"""Rows that are seen at a glance."""


@pause_gc()  # a checkpoint may have a million leaves, and none of what is made of them has cycles
def print_contents(
    path: str | Source | SupportsCatalog,
    *,
    as_json: bool,
    depth: int | None,
    globs: Sequence[str],
    flat: bool,
    collapse: bool,
) -> bool:
    """Prints what is at a path.

    Args:
        path: A checkpoint or, without `globs`, the directory of a run.
        as_json: Whether to print JSON, for which the remaining arguments except `globs` do not
            matter.
        depth: Levels of the tree to show, or None for all.
        globs: Show only leaves whose name matches one of these; all if there are none.
        flat: Whether to print a line per leaf instead of a tree.
        collapse: Whether identical numbered subtrees share one line.

    Returns:
        Whether anything was shown: a leaf, or a run.
    """
    if isinstance(path, SupportsCatalog):
        catalog = path.catalog()
    else:
        source = open_source(path)
        try:
            catalog = open_catalog(source, uncommitted="allow")
        except UnknownFormat:
            if globs or not _print_run(source, as_json):
                raise
            return True
    shown = listing.select_leaves(catalog, globs)
    given = click.get_current_context().params
    code = listing.make_restore_code(
        catalog, follow_links=given.get("follow_links", False), map_file=given.get("map_file")
    )
    if as_json:
        from .._display.json import render_json
        from .._display.json_listing import catalog_fields

        click.echo(render_json(catalog_fields(catalog, shown, code)))
        return bool(shown)
    _print_head(catalog, listing.describe_checkpoint(catalog, shown))
    shardings = listing.find_common_sharding(shown) is None
    if flat:
        rows = [make_flat_row(entry, shardings) for entry in shown]
    else:
        empties = None if globs else catalog.empties
        rows = build_rows(shown, empties, depth=depth, collapse=collapse, shardings=shardings)
    _print_rows(rows)
    if len(rows) > MANY_ROWS and not flat and depth is None:
        _print_shorter(rows)
    _print_code(code)
    return bool(shown)


def _print_run(source: Source, as_json: bool) -> bool:
    """Prints the run in a directory, if something in it tells that it is one."""
    from .._runs.steps import read_empty_run, read_run  # takes time, and is rarely needed
    from . import runs

    run = read_run(source, sizes=False) or read_empty_run(source, sizes=False)
    if run is None or run.evidence is None:
        return False
    runs.show(run, as_json=as_json, items=True)
    return True


def _print_head(catalog: Catalog, facts: Iterable[tuple[str, str]]) -> None:
    echo((catalog.url, "bold"))
    if catalog.uncommitted is not None:
        echo((f"  UNCOMMITTED: {catalog.uncommitted}", "bold red"))
    echo_facts(facts)


def _print_rows(rows: Sequence[Row]) -> None:
    styles = {"subtree": "bold", "leaf": "", "empty": "dim"}
    lines: list[tuple[Part, ...]] = []
    for row, (name, dtype, shape, size, note) in format_cells(rows):
        text = f"{dtype}  {shape}  {size}"
        if note:
            lines.append(((name, styles[row.kind]), "  ", (text, "cyan"), "  ", (note, "dim")))
        else:
            lines.append(((name, styles[row.kind]), "  ", (text.rstrip(), "cyan")))
    echo_lines(lines)
    echo()


def _print_shorter(rows: Sequence[Row]) -> None:
    """Says how fewer rows can be had. The rows of fewer levels are some of these rows."""
    depth = find_depth(rows, FEW_ROWS)
    fewer = sum(row.depth < depth for row in rows)
    way = f"--depth {depth} shows {fewer:,}"
    if fewer > MANY_ROWS:
        way = "--match GLOB shows some"
    echo((f"{len(rows):,} rows; {way}", "bold"))
    echo()


def _print_code(code: str) -> None:
    echo(("To restore it:", "bold"))
    echo()
    for line in code.split("\n"):
        echo(f"    {line}" if line else "")
