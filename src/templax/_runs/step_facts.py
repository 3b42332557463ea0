"""What the steps of a run say of themselves: when they were committed, and their metrics."""

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
    """The step that was committed last; None if the time is unknown of some of them.

    Args:
        run: The directory of the steps.
        committed: Number → directory name of each committed step, ascending.
    """
    times = {step: read_commit_time(run.at(key)) for step, key in committed.items()}
    latest = times.get(max(committed, default=-1))
    if latest is None or find_cost(run) is None:
        return _find_last(times)
    # The times are those of the markers, which a copy of a run has in any order. Look closer only
    # if they say that a run went on from an earlier step.
    later = {step: committed[step] for step, time in times.items() if time and time >= latest}
    read_ahead(run, [f"{key}/{STEP_METADATA}" for key in later.values()])
    return _find_last({step: _read_noted_time(run.at(key)) for step, key in later.items()})


def _find_last(times: Mapping[int, float | None]) -> int | None:
    known = {step: time for step, time in times.items() if time is not None}
    if len(known) < len(times):
        return None
    return max(known, key=lambda step: (known[step], step), default=None)


def read_commit_time(step: Source) -> float | None:
    """When a step was committed, in Unix seconds; None if it does not say.

    In an object store, that is the time at which it got the marker of the commit, which a listing
    tells: to read what the step has noted would be a request for each.
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
    """The metrics of each step, and the error of each step whose metrics are unreadable."""
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
    """Reads what `read_step_metrics` needs of several steps side by side, if a store gains."""
    if find_cost(run) is not None:
        list_ahead(run)
        wanted = [key for key in keys if not _has_no_metrics(run.at(key))]
        files = [(f"{key}/{METRICS}", f"{key}/{STEP_METADATA}") for key in wanted]
        read_ahead(run, [a if run.stat(a) is not None else b for a, b in files])


def read_step_metrics(step: Source) -> dict[str, Any]:
    """See `read_metrics`. In an object store, nothing is read of a step that has none."""
    if find_cost(step) is not None and _has_no_metrics(step):
        return {}
    return read_metrics(step)


def _has_no_metrics(step: Source) -> bool:
    """Whether it is certain without reading anything: templax saves metrics as an item.

    Orbax may have noted them in the metadata of the step only.
    """
    names = list_names(step)
    items = [name for name in names if name.endswith("/")]
    by_templax = any(step.stat(f"{item}{_INDEX}") is not None for item in ["", *items])
    return "metrics/" not in names and by_templax
