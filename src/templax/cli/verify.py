"""`templax verify`: every byte compared with its checksum."""

from __future__ import annotations

import sys

import click

import templax as tx

from .._audit.result import format_verification
from .._display.json import render_json
from .._display.json_reports import verification_fields
from .._display.progress import show_progress
from .._display.terminal import echo_report
from ..storage.source import Source
from .options import CheckpointPath, color_option, follow_links_option, json_option, map_option


@click.command("verify")
@click.argument("path", type=CheckpointPath())
@follow_links_option
@map_option
@click.option("--threads", type=click.IntRange(min=1), help="Workers that read and decode.")
@click.option("--required", is_flag=True, help="Exit with 1 if any byte has no checksum, too.")
@json_option
@color_option
def verify(path: str | Source, threads: int | None, required: bool, as_json: bool) -> None:
    """Read every byte of the checkpoint at PATH once, and list all damage.

    Exits with 0 if nothing is, 1 if something is, 2 if PATH can't be opened. Bytes without a
    checksum are counted.
    """
    verified = tx.verify(path, threads=threads, on_progress=show_progress)
    if as_json:
        click.echo(render_json(verification_fields(verified)))
    else:
        echo_report(format_verification(verified, "--json has them all"))
    if not verified.ok or (required and verified.unchecked_bytes):
        sys.exit(1)
