"""`templax steps` and `templax prune`: the steps of a run, and which of them to delete."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import click

import templax as tx

from .._core.text import format_age, format_size, list_names
from .._display.json import render_json
from .._display.json_listing import prune_fields, run_fields
from .._display.terminal import echo, echo_facts, echo_report
from .._runs.prune import delete_directory, find_staying
from .._runs.retention import Keep
from .._runs.run_storage import RunStorage, open_run
from .._runs.steps import Run, StepDirectory, read_empty_run, read_leftovers, read_run
from ..formats.orbax.format import list_openable
from ..formats.registry import open_catalog
from ..storage.open import open_source
from .options import CheckpointPath, color_option, json_option


@dataclass(frozen=True, slots=True)
class _Line:
    """A step as a line of a table."""

    key: str
    state: str
    style: str
    figures: tuple[str, ...]
    note: str


@click.command("steps")
@click.argument("directory", metavar="DIR", type=CheckpointPath(directory=True))
@json_option
@color_option
def steps(directory: str, as_json: bool) -> None:
    """Show the steps in DIR: sizes, ages and metrics, committed or not.

    Lists the remains of saves that never finished, too. Reads metadata only. Exits with 2 if DIR is
    not a directory of steps.
    """
    show(_open_run(directory), as_json=as_json)


@click.command("prune")
@click.argument("directory", metavar="DIR", type=CheckpointPath(directory=True))
@click.option("--keep", type=click.IntRange(min=1), metavar="N", help="Keep the latest N steps.")
@click.option(
    "--keep-every",
    type=click.IntRange(min=1),
    multiple=True,
    metavar="K",
    help="Keep multiples of K, with 0; repeatable.",
)
@click.option(
    "--keep-best",
    type=click.IntRange(min=1),
    metavar="N",
    help="Keep the N best by --metric.",
)
@click.option("--metric", metavar="NAME", help="Name of a metric that steps were saved with.")
@click.option(
    "--mode",
    type=click.Choice(["min", "max"]),
    default="min",
    show_default=True,
    help="Whether the lowest or the highest value is the best.",
)
@click.option(
    "--leftovers", is_flag=True, help="Delete the remains of saves whose process has died."
)
@click.option("--yes", is_flag=True, help="Delete. Without this option, nothing is deleted.")
@json_option
@color_option
def prune(
    directory: str,
    keep: int | None,
    keep_every: tuple[int, ...],
    keep_best: int | None,
    metric: str | None,
    mode: Literal["min", "max"],
    leftovers: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Delete the steps in DIR that no rule keeps; without --yes, only show them.

    A step stays if one of the --keep options keeps it. The latest committed step always stays, as
    do the one saved last and a step that is being restored. Files of a save that may still be in
    progress are never touched. Exits with 1 if a step stays because it is being read, with 2 if the
    file system refused.
    """
    if (keep_best is None) != (metric is None):
        raise click.UsageError("--keep-best and --metric need each other")
    if keep is None and not keep_every and keep_best is None:
        if not leftovers:
            raise click.UsageError("say what stays, by --keep, --keep-every or --keep-best")
        rule = None
    else:
        rule = Keep(keep, keep_every or None, keep_best, metric, mode)
    run = _open_run(directory, any_directory=rule is None)
    storage = open_run(directory)
    stays = find_staying(run, storage, rule, leftovers)
    going = [found for found in run.directories if found.key not in stays]
    if not as_json:
        echo((run.url, "bold"))
        echo_facts(_header(run))
        _print_table([_make_line(found, stays) for found in run.steps])
        _print_remains(run, [_make_line(found, stays) for found in run.remains])
        if run.directories:
            echo()
    if not yes:
        if as_json:
            click.echo(render_json(prune_fields(run, stays, dry_run=True, ok=True)))
        else:
            echo(_total(going), " would be deleted", "; --yes does it" if going else "")
        return
    sys.stdout.flush()  # nothing is deleted that could not be listed
    left, refused = _delete(storage, going)
    if as_json:
        click.echo(render_json(prune_fields(run, {**stays, **left}, dry_run=False, ok=not left)))
    else:
        for key, why in left.items():
            echo((f"{key} {why}, and stays", "bold red"))
        echo(_total([found for found in going if found.key not in left]), " deleted")
    if left:
        sys.exit(2 if refused else 1)


def _delete(storage: RunStorage, going: Sequence[StepDirectory]) -> tuple[dict[str, str], bool]:
    """Deletes directories, every one that can be.

    Returns:
        The names of those that could not be, each with the reason; and whether one reason is an
        error, which was printed to standard error.
    """
    left, refused = dict[str, str](), False
    for found in going:
        try:
            if not delete_directory(storage, found):
                left[found.key] = "is being read"
        except tx.SaveError as error:
            echo_report(str(error), prefix="error: ", err=True)
            left[found.key], refused = f"could not be deleted: {error.what}", True
    return left, refused


def _make_line(found: StepDirectory, stays: Mapping[str, str]) -> _Line:
    why = stays.get(found.key)
    if why is None:
        return _Line(found.key, "goes", "red", _figures(found), _note(found))
    return _Line(found.key, "stays", "", _figures(found), why)


def _total(found: Sequence[StepDirectory]) -> str:
    n = len(found)
    count = f"{n:,} {'directory' if n == 1 else 'directories'}"
    return f"{count} ({format_size(sum(each.nbytes or 0 for each in found))})" if n else "nothing"


def _open_run(directory: str, *, any_directory: bool = False) -> Run:
    """The run in a directory; what saves have left there, if it may hold anything else."""
    source = open_source(directory)
    run = read_run(source) or read_empty_run(source)
    if run is None and any_directory:
        run = read_leftovers(source)
    if run is None:
        # Raises an error that says what it is instead, unless it is a checkpoint.
        catalog = open_catalog(source, uncommitted="allow")
        raise tx.UnknownFormat(
            f"Expected a directory of steps, got the checkpoint {catalog.url}",
            hint=f"templax ls {shlex.quote(catalog.url)}",
        )
    return run


def show(run: Run, *, as_json: bool, items: bool = False) -> None:
    """Prints a run, one line per step.

    Args:
        run: What to print.
        as_json: As JSON.
        items: Show the items of each step and paths to open, instead of sizes and metrics.
    """
    if as_json:
        click.echo(render_json(run_fields(run)))
        return
    echo((run.url, "bold"))
    echo_facts(_header(run))
    if items:
        _print_table([_line(found, (), _items(found)) for found in run.steps])
        _print_next(run)
    else:
        _print_table([_line(found, _figures(found), _note(found)) for found in run.steps])
        _print_remains(run, [_Line(each.key, "", "", _figures(each), "") for each in run.remains])


def _print_remains(run: Run, lines: Sequence[_Line]) -> None:
    """Prints the directories of saves that never committed, whose names are long, by themselves."""
    if not lines:
        return
    if run.steps:
        echo()
    echo(("Left by saves that never finished, or are in progress:", "bold"))
    echo()
    _print_table(lines)


def _line(found: StepDirectory, figures: tuple[str, ...], note: str) -> _Line:
    state = ("committed", "") if found.committed else ("UNCOMMITTED", "bold red")
    return _Line(found.key, *state, figures, note)


def _print_table(lines: Sequence[_Line]) -> None:
    if not lines:
        return
    keys = max(len(line.key) for line in lines)
    states = max(len(line.state) for line in lines)
    widths = [max(map(len, column)) for column in zip(*(x.figures for x in lines), strict=True)]
    for line in lines:
        columns = [text.rjust(width) for text, width in zip(line.figures, widths, strict=True)]
        after = "".join(f"  {text}" for text in (*columns, line.note))
        after = (" " * (states - len(line.state)) + after).rstrip()
        gap = "  " if states else ""
        echo((line.key.rjust(keys), "bold"), gap, (line.state, line.style), (after, "cyan"))


def _items(found: StepDirectory) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in found.items.items())


def _figures(found: StepDirectory) -> tuple[str, str]:
    when = "" if found.saved is None else f"{format_age(time.time() - found.saved)} ago"
    return "?" if found.nbytes is None else format_size(found.nbytes), when


def _note(found: StepDirectory) -> str:
    if found.problem is not None:
        return found.problem
    if found.unread is not None:
        return f"unreadable metrics: {found.unread}"
    return ", ".join(f"{name}={_value(value)}" for name, value in found.metrics.items())


def _value(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else json.dumps(value)


def _header(run: Run) -> Iterator[tuple[str, str]]:
    if run.evidence is not None:
        yield "format", f"orbax, recognised by {run.evidence}"
    n, committed = len(run.steps), list(run.committed)
    latest = f"the latest committed is {committed[-1]}" if committed else "none was committed"
    size = f"{size}, " if (size := _total_size(run.steps)) else ""
    if n or run.evidence is not None or not run.remains:
        yield "total", f"{n:,} {'step' if n == 1 else 'steps'}, {size}{latest}"
    if run.unrelated:
        yield "besides", f"nothing that looks like a step: {list_names(run.unrelated)}"
    if run.remains:
        n, size = len(run.remains), _total_size(run.remains)
        count = f"{n:,} {'directory' if n == 1 else 'directories'}"
        yield "besides", f"{count} of saves that never committed{', ' if size else ''}{size}"


def _total_size(directories: Sequence[StepDirectory]) -> str:
    """The size of all of them; empty if none was measured."""
    sizes = [found.nbytes for found in directories if found.nbytes is not None]
    return format_size(sum(sizes)) if sizes else ""


def _print_next(run: Run) -> None:
    """Prints the paths in the latest committed step that can be opened. Each was tried."""
    committed = list(run.committed.values())
    paths = list_openable(open_source(committed[-1].url)) if committed else []
    if paths:
        echo()
        echo(("To look into the latest:", "bold"))
        echo()
        for path in paths:
            echo(f"    templax ls {shlex.quote(path)}")
