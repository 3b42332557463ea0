"""Prepares the directory of a run for another step."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from ..errors import SaveError, UsageError
from ..formats.orbax.limits import find_item_problem
from ..formats.orbax.step_metadata import STEP_METADATA
from ..formats.orbax.step_names import Step, is_temporary, step_name
from ..storage.source import read_ahead
from .contents import choose_tree, find_committed, read_steps
from .run_storage import RunStorage

_log = logging.getLogger("templax")


def prepare_step(
    run: RunStorage, step: int, item: str | None, damaged: Collection[int], overwrite: bool
) -> tuple[str, str]:
    """Cleans the directory of a run, which the caller has locked, for a step to save.

    Args:
        run: The directory.
        step: The step.
        item: The name of its tree; None for the one that the latest step uses.
        damaged: Steps that could not be restored, which do not count.
        overwrite: Whether the step may exist, or be below the latest.

    Returns:
        The names of the step's directory and of its tree.

    Raises:
        SaveError: The step is below the latest.
        UsageError: `item` can't be the name of an item's directory.
    """
    if item is not None:
        problem = find_item_problem(item)
        if item.casefold() == "metrics":
            problem = "is one with `metrics` where case is ignored"
        if problem is not None:
            raise UsageError(
                f"Expected item= the name of a directory, got {item!r}, which {problem}"
            )
    found = run.look()
    steps = read_steps(found)
    committed = find_committed(steps)
    latest = max(committed.keys() - damaged, default=-1)
    if step < latest and not overwrite and step not in committed:
        raise SaveError(
            f"Expected a step after {latest}, the latest in {run.url}, got step {step}",
            hint="save a new run to a directory of its own, or pass overwrite=True to go on"
            " from an earlier step",
        )
    if item is None and committed:
        read_ahead(found, [f"{committed[max(committed)]}/{STEP_METADATA}"])
        item = choose_tree(found.at(committed[max(committed)]), None)
    try:
        # Not only this step's: a step whose deletion was cut short may never be saved again, so
        # nothing else would remove the rest of it.
        run.remove_leftovers([each.key for each in steps if not each.committed])
    except SaveError as error:  # leftovers do not keep the step from being saved
        _log.warning("what killed programs left in %s was not removed: %s", run.url, error)
    return name_step(step, steps), item or "default"


def name_step(step: int, steps: Sequence[Step]) -> str:
    """The name of the directory of a step, among those that there are."""
    existing = [s for s in steps if s.step == step and not is_temporary(s.key)]
    committed = [s for s in existing if s.committed]
    # Several directories may hold the same step, such as `10` and `000010`.
    return [*existing, *committed][-1].key if existing else step_name(step, steps)
