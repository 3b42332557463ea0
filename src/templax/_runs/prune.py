"""Which directories of a run are deleted, by a manager or `templax prune`, and their deletion."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence

from ..errors import TemplaxError
from ..formats.orbax.directory import step_metrics
from ..storage.leftovers import delete_checkpoint, is_abandoned, remove_directory
from ..storage.local import Local
from .contents import find_committed, read_steps
from .retention import Keep, KeepSteps, select_kept
from .steps import Run, StepDirectory

_log = logging.getLogger("templax")


def delete_unkept(url: str, keep: Keep | KeepSteps, saved: int, lower: Sequence[int]) -> None:
    """Deletes the steps that no rule keeps, except those that were just saved.

    Args:
        url: The directory of the run.
        keep: The rule.
        saved: The step that the manager saved last.
        lower: The steps that it saved below the latest, in this order: a run that goes on from an
            earlier step. As many of them stay as the rule keeps of the highest.
    """
    last = (isinstance(keep, Keep) and keep.last) or 1
    ranks = isinstance(keep, Keep) and keep.best is not None
    try:
        steps = {n: os.path.join(url, key) for n, key in find_committed(read_steps(url)).items()}
        metrics = {n: step_metrics(Local(path)) if ranks else {} for n, path in steps.items()}
        for step in sorted(set(steps) - {*select_kept(metrics, keep), saved, *lower[-last:]}):
            if delete_checkpoint(steps[step]):
                _log.info("step %d of %s is deleted, as no rule keeps it", step, url)
            else:
                _log.info("step %d of %s is being read, and stays for now", step, url)
    except TemplaxError as error:
        # The step is saved, and training must not end because an old one remains: the next save
        # tries to delete it again.
        _log.warning("steps of %s that no rule keeps were not deleted: %s", url, error)


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
