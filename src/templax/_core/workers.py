"""How many threads work, and how much memory they may hold."""

from __future__ import annotations

import os

from .arguments import check_int

MAX_THREADS = 8

MEMORY_BYTES = 2 * 1024 * 1024 * 1024
"""Default of `memory=`."""


def choose_threads(threads: int | None) -> int:
    """The number of workers for an argument `threads=`: by default the cores, at most 8.

    Raises:
        UsageError: `threads` is not an int of at least 1.
    """
    if threads is None:
        return min(MAX_THREADS, count_cores())
    return check_int("threads", threads)


def count_cores() -> int:
    """Cores that this process may use; a container often has fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
