"""`templax suggest`: a mapping with which a checkpoint fits a template, as a file."""

from __future__ import annotations

import sys

import click

import templax as tx

from .._display.terminal import echo_report
from .._template.json_file import load_template
from .._views.mapping_json import format_document
from ..storage.file import read_file
from ..storage.source import Source
from .options import CheckpointPath, color_option, follow_links_option


@click.command("suggest")
@click.argument("path", type=CheckpointPath())
@click.argument("template", type=CheckpointPath(), metavar="TEMPLATE.json")
@follow_links_option
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, readable=False, allow_dash=True),
    default="-",
    metavar="FILE",
    help="File to write; standard output if not given.",
)
@color_option
def suggest(path: str | Source, template: str, output: str) -> None:
    """Write a mapping with which the checkpoint at PATH fits a template, for `--map`.

    Look at it before you use it: what names and shapes don't tell is printed to standard error.
    Exits with 0 if a mapping was found, 1 if none was, 2 if something can't be read or written.
    """
    wanted = load_template(read_file(template, "a template file"), template)
    notes: list[str] = []
    mapping = tx.suggest(path, wanted, on_note=notes.append)
    if mapping is None:
        echo_report("no mapping was found that fits at least half of the template", err=True)
        sys.exit(1)
    if output == "-":
        click.echo(format_document(mapping.to_json()), nl=False)
    else:
        mapping.save(output)
    for note in notes:
        echo_report(note, prefix="note: ", err=True)
