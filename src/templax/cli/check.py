"""`templax check` and `templax plan`: a checkpoint compared with a template from a file."""

from __future__ import annotations

import functools
import math
import os
import sys
from collections.abc import Callable
from typing import Any, Literal

import click

import templax as tx

from .._display.json import render_json
from .._display.json_reports import job_fields, match_fields, plan_fields
from .._display.terminal import echo_report
from .._match.result import Match
from .._template.json_file import load_template
from .._template.template import Template
from ..storage.file import read_file
from ..storage.source import Source
from . import shell_hints
from .options import (
    CheckpointPath,
    color_option,
    follow_links_option,
    json_option,
    map_option,
    parse_renames,
)

_COMPARISON = (
    click.argument("path", type=CheckpointPath()),
    click.argument("template", type=CheckpointPath(), metavar="TEMPLATE.json"),
    click.option("--at", default="", metavar="NAME", help="Subtree of the checkpoint to compare."),
    click.option(
        "--rename",
        "renames",
        multiple=True,
        metavar="OLD=NEW",
        help="A prefix of the checkpoint's names and what it becomes (cut at the first =);"
        " repeatable.",
    ),
    click.option(
        "--missing",
        type=CheckpointPath("error", "keep"),
        multiple=True,
        metavar="[PATTERN=]error|keep|PATH",
        help="What fills template leaves that the checkpoint lacks, or those that PATTERN matches"
        " (cut at the first =); repeatable.  [default: error]  TEMPLATE.json holds no values, so"
        " that `keep` reports them all the same.",
    ),
    click.option(
        "--extra",
        multiple=True,
        metavar="[PATTERN=]error|ignore",
        help="Leaves that the template does not ask for, or those of them that PATTERN matches;"
        " repeatable.  [default: error]",
    ),
    click.option(
        "--cast",
        type=click.Choice(["float", "widen", "exact"]),
        default="float",
        show_default=True,
        help="Which dtypes may become which.",
    ),
    follow_links_option,
    map_option,
    json_option,
    color_option,
)
"""The arguments and options that `check` and `plan` share, as `restore` has them."""


def _add_comparison_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command these options, and calls it with a loaded template and a `rename` dict."""

    @functools.wraps(command)
    def run(
        path: str | Source,
        template: str,
        renames: tuple[str, ...],
        missing: tuple[str, ...],
        extra: tuple[str, ...],
        **options: Any,
    ) -> None:
        rename = parse_renames(renames)
        wanted = load_template(read_file(template, "a template file"), template)
        options["missing"] = _parse_choices(missing, "--missing")
        options["extra"] = _parse_choices(extra, "--extra")
        command(path, wanted, rename=rename, **options)

    decorated: Callable[..., None] = run
    for option in reversed(_COMPARISON):
        decorated = option(decorated)
    return decorated


def _parse_choices(values: tuple[str, ...], option: str) -> str | dict[str, str]:
    """`--missing` or `--extra` as `restore` takes it: one choice, or choices by pattern.

    A choice without a pattern is that of the leaves that no pattern matches.
    """
    choices: dict[str, str] = {}
    others: list[str] = []
    for value in values:
        pattern, equals, choice = value.partition("=")
        if equals and not os.path.lexists(value):  # a path may contain `=`
            if pattern in choices:
                text = f"expected one choice for `{pattern}`, got {choices[pattern]} and {choice}"
                raise click.BadParameter(text, param_hint=option)
            choices[pattern] = choice
        else:
            others.append(value)
    if len(others) > 1:
        text = f"expected one choice without a pattern, got {' and '.join(others)}"
        raise click.BadParameter(text, param_hint=option)
    if not choices:
        return others[0] if others else "error"
    if others:
        choices["*"] = others[0]
    return choices


@click.command("check")
@_add_comparison_options
def check(path: str | Source, template: Template, *, as_json: bool, **options: Any) -> None:
    """Compare the checkpoint at PATH with a template, as `restore` would.

    Reads metadata only. `templax template` and `tx.save_template` write TEMPLATE.json; `-` is
    standard input. Exits with 0 if a restore would succeed, 1 if it would not, 2 if one of the two
    can't be read.
    """
    match = shell_hints.without_values(tx.check(path, template, **options))
    _print_match(match, as_json)
    if not match.ok:
        sys.exit(1)


def _print_match(match: Match, as_json: bool) -> None:
    if as_json:
        click.echo(render_json(match_fields(match)))
    else:
        echo_report(shell_hints.format_report(match))


@click.command("plan")
@_add_comparison_options
@click.option(
    "--verify",
    type=click.Choice(["available", "required", "off"]),
    default="available",
    show_default=True,
    help="Whether checksums are compared, must exist, or are skipped.",
)
@click.option(
    "--memory",
    type=click.IntRange(min=1),
    metavar="BYTES",
    help="Host bytes in flight, 2 GiB if not given.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Workers that read and decode.")
@click.option("--mapped", is_flag=True, help="Map raw, aligned leaves instead of reading them.")
@click.option(
    "--mesh",
    metavar="AXIS=SIZE,...",
    help="The mesh of a job, which need not exist: shows what each of its hosts would read of the"
    " shardings in TEMPLATE.json.",
)
@click.option(
    "--hosts",
    type=click.IntRange(min=1),
    help="The processes of that job, which have equal numbers of the devices.  [default: 1]",
)
@click.option(
    "--platform",
    type=click.Choice(["cpu", "gpu", "tpu"]),
    help="The devices of that job.  [default: tpu]",
)
def plan(
    path: str | Source,
    template: Template,
    *,
    as_json: bool,
    mesh: str | None,
    hosts: int | None,
    platform: Literal["cpu", "gpu", "tpu"] | None,
    **options: Any,
) -> None:
    """Show what a restore would read, decode and copy, without reading an array.

    Without --mesh, every leaf of TEMPLATE.json is planned whole, for one CPU device. Exits with 0
    if a restore from PATH would succeed, 1 if it would not, 2 if one of the two can't be read.
    """
    topology = parse_topology(mesh, hosts, platform)
    try:
        made = (
            tx.plan(path, template, **options)
            if topology is None
            else tx.plan(path, template, topology=topology, **options)
        )
    except tx.Unverified as error:
        raise type(error)(
            error.what, hint="--verify available checks those that have one"
        ) from None
    except tx.TemplateError as error:
        _print_match(error.match, as_json)
        sys.exit(1)
    if as_json:
        fields = plan_fields(made) if isinstance(made, tx.Plan) else job_fields(made)
        click.echo(render_json(fields))
    else:
        echo_report(str(made))


def parse_topology(
    mesh: str | None, hosts: int | None, platform: Literal["cpu", "gpu", "tpu"] | None
) -> tx.Topology | None:
    """The topology that `--mesh`, `--hosts` and `--platform` mean; None without them."""
    if mesh is None:
        if hosts is not None or platform is not None:
            raise click.UsageError("--hosts and --platform describe a job, which needs --mesh.")
        return None
    sizes: dict[str, int] = {}
    for axis in mesh.split(","):
        name, _, size = axis.partition("=")
        is_number = size.isascii() and size.isdecimal() and len(size) < 10
        if not name or not is_number or int(size) < 1 or name in sizes:
            text = f"expected AXIS=SIZE,... such as data=64,model=32, got {mesh}"
            raise click.BadParameter(text, param_hint="--mesh")
        sizes[name] = int(size)
    devices, hosts = math.prod(sizes.values()), hosts or 1
    if devices % hosts:
        text = f"expected a number of which {devices} devices are a multiple, got {hosts}"
        raise click.BadParameter(text, param_hint="--hosts")
    return tx.Topology(
        hosts=hosts, devices_per_host=devices // hosts, mesh=sizes, platform=platform or "tpu"
    )
