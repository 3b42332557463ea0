"""The command `templax`: look into a checkpoint, and hold it to a template, from a shell.

Exit status: 0 if all is well, 1 if a check found a difference or damage, 2 if something could not
be read. Only `demo` imports JAX.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterable
from typing import IO, TYPE_CHECKING, Any

import click

import templax as tx

# numpy and what needs it are imported by the commands: --help and a mistyped option wait for none.
from . import _runs
from ._terminal import echo, echo_facts, echo_progress, echo_report

if TYPE_CHECKING:
    from ._catalog import Catalog
    from ._match import Match
    from ._template import Template

__all__ = ["main"]


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):
            # A leaf may have a name that the terminal's encoding lacks.
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure is not None:
                reconfigure(errors="backslashreplace")
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # a closed pipe is noticed here, where click handles it
            return result
        except tx.TemplaxError as error:
            echo_report(str(error), prefix="error: ", err=True)
            ctx.exit(2)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(tx.__version__, prog_name="templax")
def main() -> None:
    """Restore JAX checkpoints through a template; look into them and check them from here.

    Exit status: 0 if all is well, 1 if a check found a difference or damage, 2 if something can't
    be read.
    """


@main.command("ls")
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (its fields: docs/guide.md).")
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
    "--all", "every", is_flag=True, help="Show each of several numbered subtrees that are alike."
)
def ls(
    path: str,
    as_json: bool,
    depth: int | None,
    globs: tuple[str, ...],
    flat: bool,
    every: bool,
) -> None:
    """Show what the checkpoint at PATH holds, and the code that restores it.

    Of a directory of steps, as a training run writes it: the steps. Reads metadata only. Exits with
    1 if no leaf matches a --match.
    """
    # What `tx.open` does, without the half of templax that compares trees.
    from . import _listing, _steps
    from .formats import open_catalog
    from .sources import open_source

    source = open_source(path)
    try:
        catalog = open_catalog(source, uncommitted="allow")
    except tx.UnknownFormat:
        run = None if globs else _steps.run(source, sizes=False)
        if run is None:
            raise
        _runs.show(run, as_json=as_json, items=True)
        return
    shown = _listing.select(catalog, globs)
    if as_json:
        click.echo(json.dumps(_listing.as_json(catalog, shown), indent=1, default=str))
    else:
        _print_head(catalog, _listing.header(catalog, shown))
        common = _listing.common_sharding(shown)
        if flat:
            listing = [_listing.flat_row(entry, common is None) for entry in shown]
        else:
            listing = _listing.rows(
                shown,
                None if globs else catalog.empties,
                depth=depth,
                collapse=not every,
                shardings=common is None,
            )
        for row, (name, dtype, shape, size, note) in _listing.cells(listing):
            style = {"subtree": "bold", "leaf": "", "empty": "dim"}[row.kind]
            text = f"{dtype}  {shape}  {size}"
            if note:
                echo((name, style), "  ", (text, "cyan"), "  ", (note, "dim"))
            else:
                echo((name, style), "  ", (text.rstrip(), "cyan"))
        echo()
        echo(("To restore it:", "bold"))
        echo()
        for line in _listing.restore_code(catalog).splitlines():
            echo(f"    {line}" if line else "")
    if globs and not shown:
        sys.exit(1)


def _print_head(catalog: Catalog, facts: Iterable[tuple[str, str]]) -> None:
    echo((catalog.url, "bold"))
    if catalog.uncommitted is not None:
        echo((f"  UNCOMMITTED: {catalog.uncommitted}", "bold red"))
    echo_facts(facts)


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
"""What `check` and `plan` are told, as `restore` is."""


def _compared(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command these options: it is called with the rest by the names of `restore`."""

    @functools.wraps(command)
    def run(path: str, template: IO[bytes], renames: tuple[str, ...], **options: Any) -> None:
        from ._template import load

        rename: dict[str, str] = {}
        for pair in renames:
            old, equals, new = pair.partition("=")
            if not equals:
                raise click.BadParameter(f"expected OLD=NEW, got {pair!r}", param_hint="--rename")
            rename[old] = new
        wanted = load(template.read(), getattr(template, "name", "-"))
        command(path, wanted, rename=rename or None, **options)

    decorated: Callable[..., None] = run
    for option in reversed(_COMPARED):
        decorated = option(decorated)
    return decorated


@main.command("check")
@_compared
def check(path: str, template: Template, *, as_json: bool, **options: Any) -> None:
    """Compare the checkpoint at PATH with a template, as `restore` would, reading metadata only.

    `templax template` and `tx.save_template` write TEMPLATE.json; `-` is standard input. Exits with
    0 if a restore would succeed, 1 if it would not, 2 if one of the two can't be read.
    """
    from . import _spelling

    match = tx.check(path, template, **options)
    if options["missing"] == "keep":
        match = _spelling.without_values(match)
    _print_match(match, as_json)
    if not match.ok:
        sys.exit(1)


def _print_match(match: Match, as_json: bool) -> None:
    from . import _spelling

    if as_json:
        click.echo(json.dumps(_match_json(match), indent=1))
    else:
        echo_report(_spelling.report(match))


@main.command("plan")
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

    A leaf of a template file is planned whole, for one CPU device. Exits as `check`.
    """
    from ._report import figures

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
        numbers = {name.replace(" ", "_"): figure for name, figure, _ in figures(made)}
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


@main.command("verify")
@click.argument("path")
@click.option("--threads", type=click.IntRange(min=1), help="Workers that read and decode.")
@click.option(
    "--required", is_flag=True, help="Exit with 1 also if there are bytes without a checksum."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON (its fields: docs/guide.md).")
def verify(path: str, threads: int | None, required: bool, as_json: bool) -> None:
    """Read every byte of the checkpoint at PATH once, and list all that is damaged.

    Exits with 0 if nothing is, 1 if something is, 2 if PATH can't be opened. Bytes that no checksum
    covers are counted.
    """
    from ._report import verification
    from ._verify import as_json as listed

    progress = echo_progress if sys.stderr.isatty() else None
    verified = tx.verify(path, threads=threads, on_progress=progress)
    if as_json:
        click.echo(json.dumps(listed(verified), indent=1))
    else:
        echo_report(verification(verified, "--json has them all"))
    if not verified.ok or (required and verified.unchecked_bytes):
        sys.exit(1)


@main.command("template")
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
    from . import _template

    catalog = tx.open(path)
    result = _template.from_catalog(catalog, at)
    if at and not result.targets:
        raise tx.CheckpointError(f"Expected leaves under `{at}`, found none", file=catalog.url)
    output.write(_template.dump(result))


main.add_command(_runs.steps)
main.add_command(_runs.prune)


@main.command("demo")
def demo() -> None:
    """Restore a real Orbax checkpoint, then show four pitfalls and what templax says to them.

    Needs the extra: pip install "templax[demo]". Takes a few seconds, writes to a temporary
    directory only, and exits with 1 if a check failed.
    """
    from . import demo as module

    try:
        status = module.main()
    except ModuleNotFoundError as error:
        echo_report(str(error), prefix="error: ", err=True)
        sys.exit(2)
    sys.exit(status)


if __name__ == "__main__":
    main()
