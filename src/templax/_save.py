"""JAX. `save`, and the saves that go on in the background."""

from __future__ import annotations

import atexit
import json
import re
import sys
import threading
from collections.abc import Mapping
from typing import Any, Literal

from ._errors import SaveError, UsageError, count
from ._execute import MAX_THREADS, cores
from ._item import Json
from ._plan import MEMORY_BYTES
from ._saving import Job, Progress, Request, Saved, Url

PyTree = Any

_ZSTD_LEVEL = 1
_COMPRESSION = re.compile(r"zstd(?::(?P<level>[0-9]{1,2}))?")


def save(
    url: Url,
    tree: PyTree,
    *,
    format: Literal["orbax"] = "orbax",
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    wait: bool = True,
    compression: str | None = None,
    memory: int | None = None,
    threads: int | None = None,
    on_progress: Progress | None = None,
) -> Saved:
    """Saves a pytree: as a checkpoint that is wholly there or not at all.

    Every Orbax since 0.6 restores it. By default its arrays lie raw and aligned in one file, so
    that `restore` reads them straight to where they will stay, or maps them; each chunk has a
    checksum, which `restore` checks. Killed at any instant, what was at `url` before is still
    there, or the new checkpoint is; nothing in between is ever visible under that name.

    Args:
        url: A local path that does not exist yet, or an empty directory. Parents are made.
        tree: Any pytree of arrays (typed PRNG keys too), numbers, strings and None. Functions in it
            are left out: the template that restores it supplies them.
        format: The layout; "orbax" is the only one.
        metadata: JSON that goes with it; Orbax calls it `custom_metadata`.
        overwrite: Replaces a checkpoint that is there, in one step.
        wait: False returns as soon as the values are safe: the arrays may be donated or overwritten
            while they are written. Numpy arrays are copied, arrays on accelerators transferred; the
            memory of CPU arrays is held until they are written, so that a step they are donated to
            takes memory of its own.
        compression: None, `"zstd"` or `"zstd:LEVEL"` (1 to 22; 1 if not said): fewer bytes, more
            cycles at each restore, nothing to map.
        memory: Host bytes that are fetched from devices and not yet written; default 2 GiB. A leaf
            that is larger is fetched alone.
        threads: Workers. Default: the cores of this process, at most 8.
        on_progress: Called with bytes written and bytes in all, at most ten times a second; with
            `wait=False` from another thread.

    Returns:
        What was written, once it is; with `wait=False` the handle of a save that goes on. The next
        save, and the end of the process, wait for it.

    Raises:
        SaveError: A leaf that can't be saved, by its name and before a file is made; the disk is
            full or failed; or a save with `wait=False` failed that nobody waited for. What was at
            `url` is untouched, and nothing is left beside it.
        Exists: Something is at `url`.
        UsageError: An argument that means nothing.

    Example:
        >>> import jax.numpy as jnp, os, tempfile, templax as tx
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> saved = tx.save(path, {"w": jnp.ones((2, 3)), "step": 7}, metadata={"run": "a"})
        >>> saved.leaves, saved.fingerprint == tx.fingerprint({"step": 7, "w": jnp.ones((2, 3))})
        (2, True)
        >>> tx.restore(path, {"w": jnp.zeros((2, 3)), "step": 0})["step"]
        7
    """
    request = _request(format, metadata, overwrite, compression, memory, threads, on_progress)
    return start(url, {"": tree}, request, wait=wait)


def _request(
    format: str,
    metadata: Mapping[str, Any] | None,
    overwrite: bool,
    compression: str | None,
    memory: int | None,
    threads: int | None,
    on_progress: Progress | None,
) -> Request:
    if format != "orbax":
        raise UsageError(f'Expected format="orbax", got {format!r}')
    level = None
    if compression is not None:
        found = _COMPRESSION.fullmatch(compression) if isinstance(compression, str) else None
        level = int(found["level"] or _ZSTD_LEVEL) if found else 0
        if not 1 <= level <= 22:
            raise UsageError(
                f'Expected compression=None, "zstd" or "zstd:1" to "zstd:22", got {compression!r}'
            )
    try:
        metadata = json.loads(json.dumps({} if metadata is None else dict(metadata)))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"Expected metadata= a mapping of JSON values: {error}") from error
    return Request(
        metadata or {},
        overwrite,
        level,
        MEMORY_BYTES if memory is None else count("memory", memory),
        min(MAX_THREADS, cores()) if threads is None else count("threads", threads),
        on_progress,
    )


_behind: Saved | None = None
"""The save that went on, or goes on, in the background: one at a time does."""

_turn = threading.RLock()  # a signal handler may save while the program does
_thread: threading.Thread | None = None
"""That of the save in the background."""


def start(url: Url, items: Mapping[str, PyTree | Json], request: Request, *, wait: bool) -> Saved:
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
