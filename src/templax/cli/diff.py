"""`templax diff`: how two checkpoints differ."""

from __future__ import annotations

import sys
from typing import Any

import click

import templax as tx

from .._audit.diff_result import format_diff
from .._display.json import render_json
from .._display.json_reports import diff_fields
from .._display.progress import show_progress
from .._display.terminal import echo_report
from .._match.result import MAX_SHOWN
from .options import (
    CheckpointPath,
    color_option,
    follow_path,
    json_option,
    map_path,
    parse_renames,
    rename_option,
)


@click.command("diff")
@click.argument("a", type=CheckpointPath())
@click.argument("b", type=CheckpointPath())
@click.option("--at", default="", metavar="NAME", help="Subtree of A to compare.")
@click.option("--at-b", default="", metavar="NAME", help="Subtree of B to compare.")
@rename_option("A's names", "is in B")
@click.option("--no-values", is_flag=True, help="Read metadata only.")
@click.option(
    "--no-fingerprints", is_flag=True, help="Read values even if recorded fingerprints are equal."
)
@click.option("--all", "every", is_flag=True, help="Show every leaf that differs.")
@click.option("--threads", type=click.IntRange(min=1), help="Workers that read and decode.")
@click.option("--follow-links", is_flag=True, help="Follow symbolic links that lead out of A or B.")
@click.option(
    "--map",
    "map_file",
    type=CheckpointPath(),
    metavar="FILE.json",
    help="Compare A as the mapping in this file shows it.",
)
@json_option
@color_option
def diff(
    a: str,
    b: str,
    *,
    renames: tuple[str, ...],
    no_values: bool,
    no_fingerprints: bool,
    every: bool,
    follow_links: bool,
    map_file: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Show how the checkpoints at A and B differ: leaves, shapes, dtypes and values.

    The two may have different formats. The most different leaves come first. Exits with 0 if no
    difference was found, 1 if one was, 2 if something can't be read.
    """
    found = tx.diff(
        map_path(follow_path(a) if follow_links else a, map_file),
        follow_path(b) if follow_links else b,
        rename=parse_renames(renames),
        values=not no_values,
        fingerprints=not no_fingerprints,
        on_progress=show_progress,
        **options,
    )
    if as_json:
        click.echo(render_json(diff_fields(found)))
    else:
        echo_report(format_diff(found, None if every else MAX_SHOWN, "`--all` shows them"))
    if found.differs:
        sys.exit(1)
    if not no_values and not found.identical:  # some leaves can't be decoded; the report names them
        sys.exit(2)
