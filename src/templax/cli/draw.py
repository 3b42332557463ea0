"""`templax draw`: which file stores which part of a leaf, and which device is to hold it."""

from __future__ import annotations

import click

import templax as tx

from .._display.terminal import echo_lines
from .._template.json_file import load_template, template_from_catalog
from ..storage.file import read_file, write_file
from ..storage.source import Source
from .check import parse_topology
from .options import CheckpointPath, color_option, follow_links_option, map_option


@click.command("draw")
@click.argument("path", type=CheckpointPath())
@click.argument("leaf")
@follow_links_option
@map_option
@click.option(
    "--template",
    "template_file",
    type=CheckpointPath(),
    metavar="FILE.json",
    help="Draw which device holds what, as the shardings in this template say.",
)
@click.option("--at", default="", metavar="NAME", help="Subtree that the template describes.")
@click.option(
    "--mesh", metavar="AXIS=SIZE,...", help="The mesh of a job, which need not exist; see --spec."
)
@click.option(
    "--spec",
    metavar="AXIS,...",
    help="How the leaf is sharded over --mesh: an axis for each dimension, or none, or several"
    " joined by +, such as `,data+model`.",
)
@click.option(
    "--hosts", type=click.IntRange(min=1), help="The processes of that job.  [default: 1]"
)
@click.option(
    "--svg",
    type=click.Path(dir_okay=False, readable=False, allow_dash=True),
    metavar="FILE.svg",
    help="Write the picture to this file in place of the text.",
)
@color_option
def draw(
    path: str | Source,
    leaf: str,
    template_file: str | None,
    at: str,
    mesh: str | None,
    spec: str | None,
    hosts: int | None,
    svg: str | None,
) -> None:
    """Draw which file, or which device, has which part of a leaf.

    Without options, draws which file of the checkpoint at PATH stores which part of LEAF; with
    --template or --spec, which device holds which part, and how many stored chunks that overlaps.
    Reads metadata only.
    """
    if spec is not None and mesh is None:
        raise click.UsageError("--spec shards a leaf over a mesh, which needs --mesh.")
    if template_file is None and spec is None:
        if mesh is not None or hosts is not None or at:
            raise click.UsageError("--mesh, --hosts and --at need --spec or --template.")
        picture = tx.draw_chunks(path, leaf)
    else:
        catalog = tx.open(path)
        picture = tx.draw_sharding(
            template_from_catalog(catalog, at)
            if template_file is None
            else load_template(read_file(template_file, "a template file"), template_file),
            leaf,
            topology=parse_topology(mesh, hosts, None),
            spec=None if spec is None else _parse_spec(spec),
            checkpoint=catalog,
            at=at,
        )
    if svg == "-":
        click.echo(picture.to_svg(), nl=False)
    elif svg is not None:
        write_file(svg, picture.to_svg().encode())
    else:
        echo_lines([line] for line in str(picture).split("\n"))


def _parse_spec(text: str) -> tuple[str | tuple[str, ...] | None, ...]:
    """The spec that `--spec` means.

    >>> _parse_spec(",data+model"), _parse_spec("")
    ((None, ('data', 'model')), ())
    """
    if not text:
        return ()
    dimensions = text.split(",")
    return tuple(tuple(d.split("+")) if "+" in d else d or None for d in dimensions)
