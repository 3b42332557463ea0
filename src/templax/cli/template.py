"""`templax template`: the template that a checkpoint fits, as a file."""

from __future__ import annotations

from typing import IO

import click

import templax as tx

from .._template.json_file import dump_template, template_from_catalog


@click.command("template")
@click.argument("path")
@click.option(
    "-o",
    "--output",
    type=click.File("wb", atomic=True),
    default="-",
    help="File to write; standard output if not given.",
)
@click.option(
    "--at", default="", metavar="NAME", help="Only this subtree, as `check --at` cuts it."
)
def template(path: str, output: IO[bytes], at: str) -> None:
    """Write the template that the checkpoint at PATH fits exactly, as JSON for `templax check`."""
    catalog = tx.open(path)
    result = template_from_catalog(catalog, at)
    if at and not result.targets:
        raise tx.CheckpointError(f"Expected leaves under `{at}`, found none", file=catalog.url)
    output.write(dump_template(result))
