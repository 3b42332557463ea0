"""Starting a save, and the one save that may be in progress in the background."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable, Mapping

from .._hosts.agreement import Hosts
from ..errors import SaveError, UsageError
from .contents import Content
from .destination import Destination
from .foreign_items import is_inside_save
from .job import Job
from .options import SaveOptions
from .result import Outcome, Saved

_background_save: Outcome | None = None
"""The latest save that was started in the background. At most one is in progress at a time."""

_background_thread: threading.Thread | None = None

_save_lock = threading.RLock()  # re-entrant: a signal handler may save while the program does


def start_save(
    call: Hosts,
    path: str,
    items: Mapping[str, Content],
    options: SaveOptions,
    decide: Callable[[], Destination],
    *,
    wait: bool,
    earlier: SaveError | None = None,
) -> Saved:
    """Saves items, or begins to. One save at a time is in progress in the background.

    A save inside of another, by the code of a `ForeignItem`, takes place at once.

    Args:
        call: The call that saves, of all processes of the job. It is closed once the save has
            ended.
        path, options: See `Job`.
        items, decide, earlier: See `Job.begin`.
        wait: Whether to return only when the checkpoint is committed.
    """
    global _background_save, _background_thread
    if is_inside_save():  # by a thread that the other save may wait for
        return _save_inside(Job(call, path, options), items, decide)
    if threading.current_thread() is _background_thread:
        raise UsageError("Expected no save inside of another: this is called by its on_progress")
    # Whoever gets `claim` owns the job's end: the background thread, which runs it, or this thread,
    # which aborts it when an interrupt arrives before the other thread has begun.
    job, previous, claim = None, None, threading.Lock()
    try:
        with _save_lock:
            previous = _background_save
            earlier = earlier or _find_earlier_failure()
            if earlier is not None and call.count == 1:
                _forget(previous)
                raise earlier
            job = Job(call, path, options)
            job.begin(items, decide, background=not wait, earlier=earlier)
            _forget(previous)
            if not wait:
                _background_save = job.outcome
                job.outcome.thread = _background_thread = threading.Thread(
                    target=_run_claimed, args=(job, claim), name="templax-save"
                )
                _background_thread.start()
                return Saved(job.outcome)
        job.run()
        return Saved(job.outcome).wait()
    except BaseException as error:
        if job is not None and claim.acquire(blocking=False):
            job.outcome.error_reported = True
            job.abort(error)
        if earlier is error:
            _forget(previous)
        raise


def _save_inside(
    job: Job, items: Mapping[str, Content], decide: Callable[[], Destination]
) -> Saved:
    """A save by the code of a foreign item. It is finished on return."""
    try:
        job.begin(items, decide, background=False)
        job.run()
    except BaseException as error:
        job.abort(error)
        raise
    return Saved(job.outcome).wait()


def _find_earlier_failure() -> SaveError | None:
    """Waits for the save in the background; its error, if no caller has seen it."""
    if _background_save is None:
        return None
    _background_save.wait_for_end()
    error = _background_save.unreported_error
    if error is None:
        return None
    failed = SaveError(f"An earlier save failed: {error}", file=_background_save.path)
    failed.__cause__ = error
    return failed


def _forget(outcome: Outcome | None) -> None:
    """Reports the error of an ended save to nobody else."""
    global _background_save
    if outcome is not None:
        outcome.error_reported = True
        if _background_save is outcome:
            _background_save = None


def _run_claimed(job: Job, claim: threading.Lock) -> None:
    if claim.acquire(blocking=False):
        job.run()


class _FailedExit:
    """Ends the process with exit status 1 once the interpreter has shut down.

    Python ignores what an `atexit` callback raises, and `os._exit` would skip the callbacks of
    others. The namespace of `sys` is among the last things that the interpreter clears, after files
    are flushed.
    """

    def __init__(self) -> None:
        self._exit = os._exit

    def __del__(self) -> None:
        self._exit(1)


@atexit.register
def _report_at_exit() -> None:
    """Prints the error of a background save that nobody has seen, and fails the process."""
    if _background_save is None:
        return
    error: object = _background_save.unreported_error
    if not _background_save.has_ended():  # the wait for its thread was interrupted
        error = "the process ended first"
    if error is not None:
        sys.stderr.write(f"templax: {_background_save.path} was NOT saved: {error}\n")
        sys.__dict__["_templax_failed_exit"] = _FailedExit()


def _forget_saves_of_parent() -> None:
    """Lets a forked child save: the threads of its parent, which may hold the lock, are gone."""
    global _background_save, _background_thread, _save_lock
    _background_save = _background_thread = None
    _save_lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_saves_of_parent)
