"""`templax check` and `templax plan`: a checkpoint compared with a template from a file."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from typing import IO, Any

import click

import templax as tx

from .._display.terminal import echo_report
from .._match.result import Match
from .._plan.plan import plan_figures
from .._template.json_file import load_template
from .._template.template import Template
from . import shell_hints

_COMPARED = (
    click.argument("path"),
    click.argument("template", type=click.File("rb"), metavar="TEMPLATE.json"),
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
        default="error",
        metavar="error|keep|PATH",
        show_default=True,
        help="What fills template leaves that the checkpoint lacks. TEMPLATE.json holds no values,"
        " so that with `keep` they are reported all the same.",
    ),
    click.option(
        "--extra",
        type=click.Choice(["error", "ignore"]),
        default="error",
        show_default=True,
        help="Leaves that the template does not ask for.",
    ),
    click.option(
        "--cast",
        type=click.Choice(["float", "widen", "exact"]),
        default="float",
        show_default=True,
        help="Which dtypes may become which.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print JSON (its fields: docs/guide.md)."),
)
"""What `check_blocks` and `plan` are told, as `restore` is."""


def _compared(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command these options: it is called with the rest by the names of `restore`."""

    @functools.wraps(command)
    def run(path: str, template: IO[bytes], renames: tuple[str, ...], **options: Any) -> None:
        rename: dict[str, str] = {}
        for pair in renames:
            old, equals, new = pair.partition("=")
            if not equals:
                raise click.BadParameter(f"expected OLD=NEW, got {pair!r}", param_hint="--rename")
            rename[old] = new
        wanted = load_template(template.read(), getattr(template, "name", "-"))
        command(path, wanted, rename=rename or None, **options)

    decorated: Callable[..., None] = run
    for option in reversed(_COMPARED):
        decorated = option(decorated)
    return decorated


@click.command("check")
@_compared
def check(path: str, template: Template, *, as_json: bool, **options: Any) -> None:
    """Compare the checkpoint at PATH with a template, as `restore` would, reading metadata only.

    `templax template` and `tx.save_template` write TEMPLATE.json; `-` is standard input. Exits with
    0 if a restore would succeed, 1 if it would not, 2 if one of the two can't be read.
    """
    match = tx.check(path, template, **options)
    if options["missing"] == "keep":
        match = shell_hints.without_values(match)
    _print_match(match, as_json)
    if not match.ok:
        sys.exit(1)


def _print_match(match: Match, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(_match_json(match), indent=1))
    else:
        echo_report(shell_hints.report(match))


@click.command("plan")
@_compared
@click.option(
    "--verify",
    type=click.Choice(["available", "required", "off"]),
    default="available",
    show_default=True,
    help="What is done about checksums.",
)
@click.option(
    "--memory", type=click.IntRange(min=1), metavar="BYTES", help="Host bytes in flight; 2 GiB."
)
@click.option("--threads", type=click.IntRange(min=1), help="Workers that read and decode.")
@click.option("--mapped", is_flag=True, help="Map raw, aligned leaves instead of reading them.")
def plan(path: str, template: Template, *, as_json: bool, **options: Any) -> None:
    """Show what a restore of TEMPLATE.json from PATH would read, decode and copy. Reads no array.

    A leaf of a template file is planned whole, for one CPU device. Exits as `check_blocks`.
    """
    try:
        made = tx.plan(path, template, **options)
    except tx.Unverified as error:
        raise type(error)(
            error.what, hint="--verify available checks those that have one"
        ) from None
    except tx.TemplateError as error:
        _print_match(error.match, as_json)
        sys.exit(1)
    if as_json:
        numbers = {name.replace(" ", "_"): figure for name, figure, _ in plan_figures(made)}
        listed = {"schema": 1, "ok": True, "url": made.match.url, **numbers}
        click.echo(json.dumps(listed | {"unverified": list(made.unverified)}, indent=1))
    else:
        echo_report(str(made))


def _match_json(match: Match) -> dict[str, Any]:
    return {
        "schema": 1,
        "ok": match.ok,
        "url": match.url,
        "summary": match.summary,
        "rename": None if match.rename is None else dict(match.rename),
        "mismatches": [
            {
                "problem": m.problem,
                "name": m.name,
                "expected": m.expected,
                "found": m.found,
                "note": m.note,
                "hint": m.hint,
            }
            for m in match.mismatches
        ],
        "casts": [
            {"name": c.name, "stored": c.stored, "wanted": c.wanted, "nbytes": c.nbytes}
            for c in match.casts
        ],
        "matched": len(match.pairs),
        "kept": list(match.kept),
        "skipped": list(match.skipped),
        "ignored": list(match.ignored),
    }
