"""Which directories of a run are deleted, by a manager or `templax prune`, and their deletion."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .._core.text import list_names
from ..errors import TemplaxError, UsageError
from ..formats.orbax.directory import NO_COMMIT_FILE
from .contents import find_committed, find_linked, find_repeated, read_steps
from .retention import Keep, KeepSteps, rank_steps, select_kept
from .run_storage import RunStorage
from .step_facts import read_all_metrics
from .steps import Run, StepDirectory

_log = logging.getLogger("templax")


def delete_unkept(
    run: RunStorage,
    keep: Keep | KeepSteps,
    saved: int,
    lower: Sequence[int],
    damaged: Collection[int] = (),
) -> list[int]:
    """Deletes the steps that no rule keeps, except those that were just saved.

    A step stays, with a warning, if its metrics are unreadable and the rule compares metrics, or if
    two directories have its number.

    Args:
        run: The directory of the run.
        keep: The rule.
        saved: The step that the manager saved last.
        lower: The steps that it saved below the latest, in this order: a run that goes on from an
            earlier step. As many of them stay as the rule keeps of the highest.
        damaged: Steps that could not be restored. They stay, and the rule does not count them.

    Returns:
        `lower` for the next save: with this step, or empty if this step is the latest.
    """
    last = (isinstance(keep, Keep) and keep.last) or 1
    try:
        look = run.look()
        found = read_steps(look)
        committed = find_committed(found)
        whole = {step: key for step, key in committed.items() if step not in damaged}
        others = [step for step in lower if step != saved]
        lower = [*others, saved] if any(step > saved for step in whole) else []
        metrics: Mapping[int, Mapping[str, Any]] = {step: {} for step in whole}
        stays = {saved, *lower[-last:], *find_repeated(found)}
        for step, keys in find_repeated(found).items():
            text = "step %d of %s has several directories, and none of them is deleted: %s"
            _log.warning(text, step, run.url, list_names(keys))
        if isinstance(keep, Keep) and keep.metric is not None:
            read, errors = read_all_metrics(look, whole)
            for step, error in errors.items():
                _log.warning(
                    "step %d of %s stays, as its metrics are unreadable: %s", step, run.url, error
                )
            metrics, stays = metrics | read, stays | errors.keys()
            if not rank_steps(metrics, keep.metric, keep.mode):
                # A misspelled name would otherwise delete the best steps.
                text = "no step of %s has the metric `%s`, so that none is deleted"
                _log.warning(text, run.url, keep.metric)
                return list(lower)
        going = set(whole) - {*select_kept(metrics, keep), *stays}
        linked = find_linked(look, [key for step, key in committed.items() if step not in going])
        for step in sorted(going):
            if whole[step] in linked:
                text = "step %d of %s stays, as `%s` is a link to it"
                _log.info(text, step, run.url, linked[whole[step]])
            elif run.delete(whole[step]):
                _log.info("step %d of %s is deleted, as no rule keeps it", step, run.url)
            else:
                _log.info("step %d of %s is being read, and stays for now", step, run.url)
    except TemplaxError as error:
        # The step is saved, and training must not end because an old one remains: the next save
        # tries to delete it again.
        _log.warning("steps of %s that no rule keeps were not deleted: %s", run.url, error)
    return list(lower)


def find_staying(
    run: Run, storage: RunStorage, rule: Keep | None, leftovers: bool
) -> Mapping[str, str]:
    """The name of each directory that stays, and the reason.

    Args:
        run: The run.
        storage: Its directory.
        rule: Which steps to keep; None keeps all.
        leftovers: Whether to delete the remains of saves whose process has died.

    Raises:
        UsageError: No step has the metric that the rule compares as a number.
    """
    committed = run.committed
    metrics = {step: found.metrics for step, found in committed.items()}
    if rule is not None and rule.metric is not None and metrics:
        _check_metric(metrics, rule, run.url)
    by_rule = dict.fromkeys(metrics, "") if rule is None else select_kept(metrics, rule)
    stays = {committed[step].key: why for step, why in by_rule.items()}
    times = {step: found.saved for step, found in committed.items() if found.saved is not None}
    if times:  # a run that goes on from an earlier step saves below the highest
        last = max(times, key=lambda step: (times[step], step))
        stays.setdefault(committed[last].key, "saved last")
    unfinished = [found.key for found in run.leftovers if found.problem != NO_COMMIT_FILE]
    abandoned = storage.find_abandoned(unfinished)
    for found in run.directories:
        if found.problem == NO_COMMIT_FILE:
            stays[found.key] = f"{found.problem}: it may be whole; delete it by hand"
        elif found.problem is not None:
            if found.key not in abandoned:
                stays[found.key] = "of a save that is in progress, or wrote something within a day"
            elif not leftovers:
                stays[found.key] = "left by a dead save; --leftovers deletes it"
        elif found.step is not None and committed[found.step] is not found:
            other = committed[found.step].key
            stays[found.key] = f"the same step as `{other}`; delete one of them by hand"
            stays.setdefault(other, f"the same step as `{found.key}`; delete one of them by hand")
        elif found.unread is not None and rule is not None and rule.metric is not None:
            stays.setdefault(found.key, f"unreadable metrics: {found.unread}")
    if run.steps:
        for name, link in find_linked(storage.look(), stays).items():
            stays.setdefault(name, f"`{link}` is a link to it")
    return stays


def _check_metric(metrics: Mapping[int, Mapping[str, Any]], rule: Keep, url: str) -> None:
    """Refuses a rule about a metric that no step has: a misspelled one would keep no step."""
    if rule.metric is not None and not rank_steps(metrics, rule.metric, rule.mode):
        names = sorted({name for found in metrics.values() for name in found})
        raise UsageError(
            f"Expected steps with a number as `{rule.metric}` in {url}, found"
            f" {list_names(names) or 'no metrics'}"
        )


def delete_directory(storage: RunStorage, found: StepDirectory) -> bool:
    """Deletes a step of the run in `storage`, or the remains of one.

    Returns:
        Whether it was deleted; False if a process is reading it.
    """
    if found.committed:
        return storage.delete(found.key)
    storage.remove_leftover(found.key)
    return True
