"""`templax ls`: the contents of a checkpoint, or the steps of a run."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import click

from .._catalog.catalog import Catalog
from .._display import listing
from .._display.json import render_json
from .._display.terminal import echo, echo_facts
from .._runs.steps import read_run
from ..errors import UnknownFormat
from ..formats.registry import open_catalog
from ..storage.open import open_source
from . import runs


@click.command("ls")
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (fields: docs/reference/cli.md).")
@click.option("--depth", type=click.IntRange(min=1), help="Levels of the tree to show.")
@click.option(
    "--match",
    "globs",
    multiple=True,
    metavar="GLOB",
    help="Only leaves whose name matches; repeatable.",
)
@click.option("--flat", is_flag=True, help="A line per leaf, with its whole name.")
@click.option(
    "--all", "every", is_flag=True, help="Show every one of several identical numbered subtrees."
)
def ls(
    path: str,
    as_json: bool,
    depth: int | None,
    globs: tuple[str, ...],
    flat: bool,
    every: bool,
) -> None:
    """Show the contents of the checkpoint at PATH, and the code that restores it.

    If PATH is the directory of a training run, shows its steps. Reads metadata only. Exits with 1
    if no leaf matches a --match.
    """
    source = open_source(path)
    try:
        catalog = open_catalog(source, uncommitted="allow")
    except UnknownFormat:
        run = None if globs else read_run(source, sizes=False)
        if run is None:
            raise
        runs.show(run, as_json=as_json, items=True)
        return
    shown = listing.select(catalog, globs)
    if as_json:
        click.echo(render_json(listing.catalog_fields(catalog, shown)))
    else:
        _print_head(catalog, listing.header(catalog, shown))
        common = listing.common_sharding(shown)
        if flat:
            lines = [listing.flat_row(entry, common is None) for entry in shown]
        else:
            lines = listing.rows(
                shown,
                None if globs else catalog.empties,
                depth=depth,
                collapse=not every,
                shardings=common is None,
            )
        for row, (name, dtype, shape, size, note) in listing.cells(lines):
            style = {"subtree": "bold", "leaf": "", "empty": "dim"}[row.kind]
            text = f"{dtype}  {shape}  {size}"
            if note:
                echo((name, style), "  ", (text, "cyan"), "  ", (note, "dim"))
            else:
                echo((name, style), "  ", (text.rstrip(), "cyan"))
        echo()
        echo(("To restore it:", "bold"))
        echo()
        for line in listing.restore_code(catalog).splitlines():
            echo(f"    {line}" if line else "")
    if globs and not shown:
        sys.exit(1)


def _print_head(catalog: Catalog, facts: Iterable[tuple[str, str]]) -> None:
    echo((catalog.url, "bold"))
    if catalog.uncommitted is not None:
        echo((f"  UNCOMMITTED: {catalog.uncommitted}", "bold red"))
    echo_facts(facts)
