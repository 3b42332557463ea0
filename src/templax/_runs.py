"""The commands about a run, which is a directory of steps: what it holds, and what of it stays."""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from ._terminal import echo, echo_facts

if TYPE_CHECKING:
    from ._steps import Run, StepDirectory

SCHEMA = 1
"""Version of the JSON; changes only when a field is removed or changes its meaning."""


@click.command("steps")
@click.argument("directory", metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (its fields: docs/guide.md).")
def steps(directory: str, as_json: bool) -> None:
    """Show the steps in DIR: sizes, ages and metrics, committed or not, and what dead saves left.

    Reads metadata only. Exits with 2 if DIR is no directory of steps.
    """
    show(_opened(directory), as_json=as_json)


def _opened(directory: str) -> Run:
    import templax as tx

    from . import _steps
    from .formats import open_catalog
    from .sources import open_source

    source = open_source(directory)
    run = _steps.run(source)
    if run is None:
        # Says what it is instead, if it is no checkpoint.
        catalog = open_catalog(source, uncommitted="allow")
        raise tx.UnknownFormat(
            f"Expected a directory of steps, got the checkpoint {catalog.url}",
            hint=f"templax ls {shlex.quote(catalog.url)}",
        )
    return run


def show(run: Run, *, as_json: bool, items: bool = False) -> None:
    """Print a run: a line per step.

    Args:
        run: What to print.
        as_json: As JSON.
        items: Show what a step consists of and which to look into, not how large and good it is.
    """
    if as_json:
        click.echo(json.dumps(_json(run), indent=1))
        return
    echo((run.url, "bold"))
    echo_facts(_header(run))
    if items:
        notes = [_items(found) for found in run.steps]
        _print_table(run.steps, [()] * len(notes), notes)
        _print_next(run)
        return
    figures = [_figures(found) for found in run.directories]
    _print_table(run.directories, figures, [_note(found) for found in run.directories])


def _print_table(
    found: Sequence[StepDirectory], figures: Sequence[tuple[str, ...]], notes: Sequence[str]
) -> None:
    """A line each: name, whether committed, figures aligned to the right, a note."""
    keys = max(len(each.key) for each in found)
    widths = [max(map(len, column)) for column in zip(*figures, strict=True)]
    for each, numbers, note in zip(found, figures, notes, strict=True):
        state = "committed" if each.committed else "UNCOMMITTED"
        columns = [number.rjust(width) for number, width in zip(numbers, widths, strict=True)]
        gap = " " * (len("UNCOMMITTED") - len(state))
        after = "  ".join([gap, *columns, note]) if columns or note else ""
        style = "" if each.committed else "bold red"
        echo((each.key.rjust(keys), "bold"), "  ", (state, style), (after.rstrip(), "cyan"))


def _items(found: StepDirectory) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in found.items.items())


def _figures(found: StepDirectory) -> tuple[str, str]:
    from ._listing import size

    when = "" if found.saved is None else f"{age(time.time() - found.saved)} ago"
    return size(found.nbytes or 0), when


def _note(found: StepDirectory) -> str:
    if found.problem is not None:
        return found.problem
    return ", ".join(f"{name}={_value(value)}" for name, value in found.metrics.items())


def _value(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else json.dumps(value)


def age(seconds: float) -> str:
    """A duration in a few characters.

    >>> age(-3), age(59), age(90), age(7200 - 1), age(86400 * 3.7)
    ('0 s', '59 s', '1 min', '1 h', '3 d')
    """
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(int(seconds), 0)} s"


def _header(run: Run) -> Iterator[tuple[str, str]]:
    from ._listing import size

    yield "format", f"orbax, recognised by {run.evidence}"
    n, committed = len(run.steps), list(run.committed)
    latest = f"the latest committed is {committed[-1]}" if committed else "none was committed"
    sizes = [found.nbytes for found in run.directories if found.nbytes is not None]
    total = f"{size(sum(sizes))}, " if sizes else ""
    yield "total", f"{n:,} {'step' if n == 1 else 'steps'}, {total}{latest}"


def _print_next(run: Run) -> None:
    """Paths to look into: those in the latest committed step that open. Each was opened."""
    from .formats._orbax import openable
    from .sources import open_source

    committed = list(run.committed.values())
    paths = openable(open_source(committed[-1].url)) if committed else []
    if paths:
        echo()
        echo(("To look into the latest:", "bold"))
        echo()
        for path in paths:
            echo(f"    templax ls {shlex.quote(path)}")


def _json(run: Run) -> dict[str, Any]:
    """The run as data; `docs/guide.md` documents the fields."""
    return {
        "schema": SCHEMA,
        "url": run.url,
        "format": "orbax",
        "evidence": run.evidence,
        "latest": max(run.committed, default=None),
        "steps": [_directory_json(found) for found in run.steps],
        "others": [_directory_json(found) for found in run.directories if found.step is None],
    }


def _directory_json(found: StepDirectory) -> dict[str, Any]:
    return {
        "step": found.step,
        "url": found.url,
        "committed": found.committed,
        "problem": found.problem,
        "items": dict(found.items),
        "metrics": _plain(dict(found.metrics)),
        "nbytes": found.nbytes,
        "saved": found.saved,
    }


def _plain(value: Any) -> Any:
    """A metric as strict JSON has it: NaN and infinities are null."""
    if isinstance(value, dict):
        return {name: _plain(below) for name, below in value.items()}
    if isinstance(value, list):
        return [_plain(below) for below in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
