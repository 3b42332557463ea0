"""How many threads to use, and how much memory they may use."""

from __future__ import annotations

import os

from .arguments import check_int

MAX_THREADS = 8
"""Maximum of the default number of threads."""

REMOTE_THREADS = 64
"""The default where threads wait for an object store most of the time."""

MEMORY_BYTES = 2 * 1024 * 1024 * 1024
"""Default for `memory=`, the bytes that all threads together may have in flight."""


def choose_threads(threads: int | None, *, remote: bool = False) -> int:
    """The number of threads to start.

    Args:
        threads: What the user passed as `threads=`. None means one per core, but at most 8.
        remote: Whether they read from an object store.

    Raises:
        UsageError: `threads` is not an int of at least 1.
    """
    if threads is None and remote:
        return REMOTE_THREADS
    if threads is None:
        return min(MAX_THREADS, count_cores())
    return check_int("threads", threads)


def count_cores() -> int:
    """The number of cores that this process may use, often fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
