"""JAX. The one save that may be in progress in the background."""

from __future__ import annotations

import atexit
import sys
import threading
from collections.abc import Mapping

from .._core.arguments import PyTree
from ..errors import SaveError, UsageError
from .item import Json
from .job import Job
from .options import SaveOptions, Url
from .result import Saved

_behind: Saved | None = None
"""The save that went on, or goes on, in the background: one at a time does."""

_turn = threading.RLock()  # a signal handler may save while the program does

_thread: threading.Thread | None = None
"""That of the save in the background."""


def start_save(
    url: Url, items: Mapping[str, PyTree | Json], request: SaveOptions, *, wait: bool
) -> Saved:
    """Saves trees, or begins to. One save at a time goes on in the background.

    Args:
        url, request: As of `Job`.
        items: As of `Job.begin`.
        wait: Whether to return only when it is done.
    """
    global _behind, _thread
    if threading.current_thread() is _thread:
        raise UsageError("Expected no save inside of another: this is called by its on_progress")
    job, claim = None, threading.Lock()
    try:
        with _turn:
            _end_before()
            job = Job(url, request)
            job.begin(items, background=not wait)
            if not wait:
                _behind = job.saved
                _thread = threading.Thread(target=_run, args=(job, claim), name="templax-save")
                _thread.start()
                return job.saved
        job.run()
        return job.saved.wait()
    except BaseException as error:
        if job is not None and claim.acquire(blocking=False):  # no other thread has come to it
            job.saved._seen = True
            job.give_up(error)
        raise


def _end_before() -> None:
    """Returns when no save goes on in the background; raises what nobody knows of the last."""
    global _behind
    if _behind is not None:
        _behind._ended.wait()
        before, _behind = _behind, None
        if before._error is not None and not before._seen:  # nobody waited for it
            what = f"An earlier save failed: {before._error}"
            raise SaveError(what, file=before.path) from before._error


def _run(job: Job, claim: threading.Lock) -> None:
    if claim.acquire(blocking=False):
        job.run()


@atexit.register
def _report() -> None:
    if _behind is not None and _behind._error is not None and not _behind._seen:
        sys.stderr.write(f"templax: {_behind.path} was NOT saved: {_behind._error}\n")
