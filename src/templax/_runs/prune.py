"""Which directories of a run `templax prune` deletes, and their deletion."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import UsageError
from ..formats.orbax.directory import step_prefix
from ..storage.leftovers import delete_checkpoint, is_abandoned, remove_directory
from .retention import Keep, select_kept
from .steps import Run, StepDirectory


def refuse_mixed_names(run: Run) -> None:
    """Refuses a run with both `10` and `eval_10`: which of them is step 10 is unknown.

    Raises:
        UsageError: Committed steps have names that differ by more than their number.
    """
    keys = {step_prefix(found.key): found.key for found in run.steps if found.committed}
    if len(keys) > 1:
        one, other, *_ = keys.values()
        raise UsageError(
            f"Expected steps whose names differ by their number only, got `{one}` and `{other}`"
            f" in {run.url}; hint: move those of one name to a directory of their own"
        )


def find_staying(run: Run, rule: Keep | None, leftovers: bool) -> Mapping[str, str]:
    """The name of each directory that stays, and the reason.

    Args:
        run: The run.
        rule: Which steps to keep; None keeps all.
        leftovers: Whether to delete the remains of saves whose process has died.
    """
    committed = run.committed
    metrics = {step: found.metrics for step, found in committed.items()}
    by_rule = dict.fromkeys(metrics, "") if rule is None else select_kept(metrics, rule)
    stays = {committed[step].key: why for step, why in by_rule.items()}
    for found in run.directories:
        if found.problem is not None:
            if not is_abandoned(found.url):
                stays[found.key] = "of a save that is in progress, or wrote something within a day"
            elif not leftovers:
                stays[found.key] = "left by a dead save; --leftovers deletes it"
        elif found.step is not None and committed[found.step] is not found:
            stays[found.key] = f"the same step as `{committed[found.step].key}`"
    return stays


def delete_directory(found: StepDirectory) -> bool:
    """Deletes a step, or the remains of one.

    Returns:
        Whether it was deleted; False if a process is reading it.
    """
    if found.committed:
        return delete_checkpoint(found.url)
    remove_directory(found.url)
    return True
