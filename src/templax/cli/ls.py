"""`templax ls`: the contents of a checkpoint, or the steps of a run."""

from __future__ import annotations

import atexit
import gc
import sys
from typing import TYPE_CHECKING

import click

from .options import CheckpointPath, color_option, follow_links_option, json_option, map_option

if TYPE_CHECKING:
    from ..storage.source import Source


@click.command("ls")
@click.argument("path", type=CheckpointPath())
@follow_links_option
@map_option
@json_option
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
@click.option(
    "--bytes",
    "count",
    is_flag=True,
    help="What every byte of the files is for, in place of the tree.",
)
@color_option
def ls(
    path: str | Source,
    as_json: bool,
    depth: int | None,
    globs: tuple[str, ...],
    flat: bool,
    every: bool,
    count: bool,
) -> None:
    """Show the contents of the checkpoint at PATH, and the code that restores it.

    If PATH is the directory of a training run, shows its steps. Reads metadata only. Exits with 1
    if no leaf matches a --match.
    """
    # Imported here, so that --help does not wait for numpy.
    if count:
        if depth is not None or globs or every:
            raise click.UsageError("--bytes counts all bytes: leave --depth, --match and --all out")
        from .._views.view import View

        if isinstance(path, View):
            raise click.UsageError("--bytes counts the bytes of files: leave --map out")
        from .byte_account import print_account

        print_account(path, as_json=as_json, whole=flat)
        return
    from .contents import print_contents

    # The process ends afterwards: nothing that was made has cycles to look for.
    atexit.register(gc.freeze)
    any_shown = print_contents(
        path, as_json=as_json, depth=depth, globs=globs, flat=flat, collapse=not every
    )
    if globs and not any_shown:
        sys.exit(1)
