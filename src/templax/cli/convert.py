"""`templax convert`: a checkpoint in another format."""

from __future__ import annotations

from typing import Any

import click

import templax as tx

from .._convert.options import FORMATS
from .._convert.result import format_conversion
from .._display.json import render_json
from .._display.json_reports import conversion_fields
from .._display.progress import show_progress
from .._display.terminal import echo_report
from .options import (
    CheckpointPath,
    color_option,
    follow_path,
    json_option,
    map_path,
    parse_renames,
    parse_size,
    rename_option,
)


@click.command("convert")
@click.argument("src", type=CheckpointPath())
@click.argument("dst", type=click.Path())
@click.option(
    "--to",
    type=click.Choice(FORMATS),
    help="The format to write. Default: that of the file that DST names, such as m.safetensors.",
)
@click.option("--at", default="", metavar="NAME", help="Subtree of SRC to convert.")
@rename_option("SRC's names", "becomes")
@click.option(
    "--skip", multiple=True, metavar="NAME", help="Leaves to leave out, by name; repeatable."
)
@click.option(
    "--cast",
    "casts",
    multiple=True,
    metavar="[NAME=]DTYPE",
    help="Cast the floating-point arrays of that name or below it, or all; repeatable.",
)
@click.option("--flat", is_flag=True, help="orbax: keep names such as `a.b` as single keys.")
@click.option("--compression", metavar="zstd[:LEVEL]", help="orbax: compress the chunks.")
@click.option("--chunk-size", metavar="SIZE", help="orbax: most bytes of a chunk, such as 16MiB.")
@click.option("--shard-size", metavar="SIZE", help="safetensors: bytes of a file, such as 2GB.")
@click.option("--overwrite", is_flag=True, help="Replace the checkpoint at DST.")
@click.option("--no-verify", is_flag=True, help="Don't read back what was written.")
@click.option("--threads", type=click.IntRange(min=1), help="Workers that read and write.")
@click.option("--follow-links", is_flag=True, help="Follow symbolic links that lead out of SRC.")
@click.option(
    "--map",
    "map_file",
    type=CheckpointPath(),
    metavar="FILE.json",
    help="Write SRC as the mapping in this file shows it.",
)
@json_option
@color_option
def convert(
    src: str,
    dst: str,
    *,
    renames: tuple[str, ...],
    casts: tuple[str, ...],
    chunk_size: str | None,
    shard_size: str | None,
    no_verify: bool,
    follow_links: bool,
    map_file: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Write the checkpoint at SRC in another format to DST.

    The values are streamed, so that the size of a checkpoint does not matter. What was written is
    read back before it appears at DST. If the command is killed, run it again to resume.
    Exits with 0 once DST is there, 2 if anything kept it from being written.
    """
    done = tx.convert(
        map_path(follow_path(src) if follow_links else src, map_file),
        dst,
        rename=parse_renames(renames),
        cast=_parse_casts(casts),
        chunk_size=None if chunk_size is None else parse_size(chunk_size),
        shard_size=None if shard_size is None else parse_size(shard_size),
        verify=not no_verify,
        on_progress=show_progress,
        **options,
    )
    if as_json:
        click.echo(render_json(conversion_fields(done)))
    else:
        echo_report(format_conversion(done))


def _parse_casts(casts: tuple[str, ...]) -> dict[str, str] | None:
    """The values of `--cast` as the argument `cast=`. Names come before the dtype of all others."""
    found: dict[str, str] = {}
    for_all_others = False
    for each in casts:
        name, equals, dtype = each.rpartition("=")
        name = name if equals else "*"
        if name in found:
            what = f"expected one dtype for {name!r}, got {found[name]!r} and {dtype!r}"
            raise click.BadParameter(what, param_hint="--cast")
        found[name] = dtype
        for_all_others = for_all_others or not equals
    if for_all_others:
        found["*"] = found.pop("*")
    return found or None
