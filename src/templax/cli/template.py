"""`templax template`: the template that a checkpoint fits, as a file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import click

import templax as tx

from .._template.json_file import dump_template, template_from_catalog
from .options import CheckpointPath, color_option


@click.command("template")
@click.argument("path", type=CheckpointPath())
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, readable=False, allow_dash=True),
    default="-",
    metavar="FILE",
    help="File to write; standard output if not given.",
)
@click.option(
    "--at", default="", metavar="NAME", help="Only this subtree, as `check --at` cuts it."
)
@color_option
def template(path: str, output: str, at: str) -> None:
    """Write the template that the checkpoint at PATH fits exactly, as JSON for `templax check`."""
    catalog = tx.open(path)
    result = template_from_catalog(catalog, at)
    if at and not result.targets:
        raise tx.CheckpointError(f"Expected leaves under `{at}`, found none", file=catalog.url)
    data = dump_template(result)
    if output == "-":
        click.echo(data, nl=False)
    else:
        _write_file(Path(output), data)


def _write_file(file: Path, data: bytes) -> None:
    """Writes a file at once, so that one that exists is replaced as a whole or not at all.

    A device, a pipe or a link is written to and stays what it is.
    """
    if file.is_symlink() or (file.exists() and not file.is_file()):
        file.write_bytes(data)
        return
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        partial.write_bytes(data)
        if file.exists():
            shutil.copymode(file, partial)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
