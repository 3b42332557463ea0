"""Saving into a directory that is itself part of a save, or that a caller commits on its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import replace

from .._hosts.agreement import open_call
from ..storage.disk import save_error
from ..storage.leftovers import absolute_path
from ..storage.staging import Staging
from .contents import Content
from .destination import Destination
from .job import Job
from .options import make_options
from .result import Saved


def save_part(path: str | os.PathLike[str], items: Mapping[str, Content], *, wait: bool) -> Saved:
    """Saves items into a directory as it is, without the files that mark a save as finished.

    Not atomic: a save that fails leaves what it had written. Neither waits for the save in the
    background nor is that one.

    Args:
        path: A local directory; it is created if need be.
        items: Name → content; "" is the name of one that the directory itself holds.
        wait: Whether to return only when everything is written.

    Raises:
        SaveError: See `templax.save`; or a file of the same name is there.
    """
    directory = absolute_path(path)

    def decide() -> Destination:
        try:
            os.makedirs(directory, exist_ok=True)
        except OSError as error:
            raise save_error("create", directory, error) from error
        return Destination(Staging.join(directory, directory))

    call = open_call("saving", directory)
    with call.report_errors():
        job = Job(call, directory, replace(make_options(), whole=False))
        try:
            job.begin(items, decide, background=not wait)
            if wait:
                job.run()
            else:
                thread = threading.Thread(target=job.run, name="templax-save-part")
                job.outcome.thread = thread
                thread.start()
        except BaseException as error:
            job.abort(error)
            raise
    return Saved(job.outcome).wait() if wait else Saved(job.outcome)
