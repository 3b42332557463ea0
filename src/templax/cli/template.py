"""`templax template`: the template that a checkpoint fits, as a file."""

from __future__ import annotations

import click

import templax as tx

from .._template.json_file import dump_template, template_from_catalog
from ..storage.file import write_file
from ..storage.source import Source
from .options import CheckpointPath, color_option, follow_links_option, map_option


@click.command("template")
@click.argument("path", type=CheckpointPath())
@follow_links_option
@map_option
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
def template(path: str | Source, output: str, at: str) -> None:
    """Write the template that the checkpoint at PATH fits exactly, as JSON for `templax check`."""
    catalog = tx.open(path)
    result = template_from_catalog(catalog, at)
    if at and not result.targets:
        raise tx.CheckpointError(f"Expected leaves under `{at}`, found none", file=catalog.url)
    data = dump_template(result)
    if output == "-":
        click.echo(data, nl=False)
    else:
        write_file(output, data)
