"""Commit times and metrics, as the steps of a run record them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import CheckpointError
from ..formats.orbax.directory import list_names
from ..formats.orbax.step_metadata import (
    COMMITTED,
    METRICS,
    STEP_METADATA,
    read_metrics,
    step_metadata,
)
from ..storage.source import Source, find_cost, list_ahead, read_ahead

_INDEX = "templax.index"
"""An item has this if templax saved it."""


def find_saved_last(run: Source, committed: Mapping[int, str]) -> int | None:
    """The step that was committed last; None if the time of any step is unknown.

    Args:
        run: The directory of the steps.
        committed: Number → directory name of each committed step, ascending.
    """
    times = {step: read_commit_time(run.at(key)) for step, key in committed.items()}
    latest = times.get(max(committed, default=-1))
    if latest is None or find_cost(run) is None:
        return _find_last(times)
    # These are the times of the markers, which may have any order in a copy of a run. Read more
    # only if they suggest that the run went on from an earlier step.
    later = {step: committed[step] for step, time in times.items() if time and time >= latest}
    read_ahead(run, [f"{key}/{STEP_METADATA}" for key in later.values()])
    return _find_last({step: _read_noted_time(run.at(key)) for step, key in later.items()})


def _find_last(times: Mapping[int, float | None]) -> int | None:
    known = {step: time for step, time in times.items() if time is not None}
    if len(known) < len(times):
        return None
    return max(known, key=lambda step: (known[step], step), default=None)


def read_commit_time(step: Source) -> float | None:
    """When a step was committed, in Unix seconds; None if that is not recorded.

    In an object store, this is the time of the commit marker in the listing: to read what each step
    has recorded would take a request per step.
    """
    marker = step.stat(COMMITTED) if find_cost(step) is not None else None
    if marker is not None and marker.modified is not None:
        return marker.modified
    return _read_noted_time(step)


def _read_noted_time(step: Source) -> float | None:
    nanoseconds = step_metadata(step).get("commit_timestamp_nsecs")
    if isinstance(nanoseconds, int) and 0 < nanoseconds < 2**63:  # the file may hold anything
        return nanoseconds / 1e9
    return None


def read_all_metrics(
    run: Source, committed: Mapping[int, str]
) -> tuple[dict[int, dict[str, Any]], dict[int, CheckpointError]]:
    """The metrics of each step, and an error for each step whose metrics are unreadable."""
    read_metrics_ahead(run, committed.values())
    found: dict[int, dict[str, Any]] = {}
    errors: dict[int, CheckpointError] = {}
    for step, key in committed.items():
        try:
            found[step] = read_step_metrics(run.at(key))
        except CheckpointError as error:
            errors[step] = error
    return found, errors


def read_metrics_ahead(run: Source, keys: Iterable[str]) -> None:
    """Reads what `read_step_metrics` needs of several steps, in parallel if that is faster."""
    if find_cost(run) is not None:
        list_ahead(run)
        wanted = [key for key in keys if not _has_no_metrics(run.at(key))]
        files = [(f"{key}/{METRICS}", f"{key}/{STEP_METADATA}") for key in wanted]
        read_ahead(run, [a if run.stat(a) is not None else b for a, b in files])


def read_step_metrics(step: Source) -> dict[str, Any]:
    """See `read_metrics`. In an object store, reads nothing from a step without metrics."""
    if find_cost(step) is not None and _has_no_metrics(step):
        return {}
    return read_metrics(step)


def _has_no_metrics(step: Source) -> bool:
    """Whether a step certainly has no metrics, as far as names tell: templax saves them as an item.

    Orbax may have recorded them only in the metadata of the step.
    """
    names = list_names(step)
    items = [name for name in names if name.endswith("/")]
    by_templax = any(step.stat(f"{item}{_INDEX}") is not None for item in ["", *items])
    return "metrics/" not in names and by_templax
