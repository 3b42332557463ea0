"""Which directories of a run are deleted, by a manager or `templax prune`, and their deletion."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence

from ..errors import TemplaxError
from ..formats.orbax.directory import NO_COMMIT_FILE, step_metrics
from ..storage.leftovers import delete_checkpoint, is_abandoned, remove_directory
from ..storage.local import Local
from .contents import find_committed, read_steps
from .retention import Keep, KeepSteps, select_kept
from .steps import Run, StepDirectory

_log = logging.getLogger("templax")


def delete_unkept(url: str, keep: Keep | KeepSteps, saved: int, lower: Sequence[int]) -> list[int]:
    """Deletes the steps that no rule keeps, except those that were just saved.

    Args:
        url: The directory of the run.
        keep: The rule.
        saved: The step that the manager saved last.
        lower: The steps that it saved below the latest, in this order: a run that goes on from an
            earlier step. As many of them stay as the rule keeps of the highest.

    Returns:
        `lower` for the next save: with this step, or empty if this step is the latest.
    """
    last = (isinstance(keep, Keep) and keep.last) or 1
    ranks = isinstance(keep, Keep) and keep.best is not None
    try:
        steps = {n: os.path.join(url, key) for n, key in find_committed(read_steps(url)).items()}
        others = [step for step in lower if step != saved]
        lower = [*others, saved] if any(step > saved for step in steps) else []
        metrics = {n: step_metrics(Local(path)) if ranks else {} for n, path in steps.items()}
        metric = keep.metric if isinstance(keep, Keep) else None
        if metric is not None and not any(metric in found for found in metrics.values()):
            # A misspelled name would otherwise delete the best steps.
            text = "no step of %s has the metric `%s`, so that none is deleted"
            _log.warning(text, url, metric)
            return list(lower)
        for step in sorted(set(steps) - {*select_kept(metrics, keep), saved, *lower[-last:]}):
            if delete_checkpoint(steps[step]):
                _log.info("step %d of %s is deleted, as no rule keeps it", step, url)
            else:
                _log.info("step %d of %s is being read, and stays for now", step, url)
    except TemplaxError as error:
        # The step is saved, and training must not end because an old one remains: the next save
        # tries to delete it again.
        _log.warning("steps of %s that no rule keeps were not deleted: %s", url, error)
    return list(lower)


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
        if found.problem == NO_COMMIT_FILE:
            stays[found.key] = f"{found.problem}: it may be whole; delete it by hand"
        elif found.problem is not None:
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
