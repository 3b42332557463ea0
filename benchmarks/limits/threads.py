"""Tasks shared among threads, and memory that has been touched."""

from __future__ import annotations

import functools
import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

PIECE = 8 << 20
"""Bytes per call: large enough to make a call's own cost negligible, small enough to share."""


def count_threads() -> int:
    """As many as templax uses by default."""
    return min(8, len(os.sched_getaffinity(0)))


def allocate_touched(nbytes: int) -> Any:
    """Bytes whose pages are already mapped, so that writing to them causes no page faults."""
    import numpy as np

    buffer = np.empty(nbytes, np.uint8)
    buffer.fill(1)
    return buffer


def allocate_fresh(nbytes: int) -> Any:
    """Bytes whose pages are mapped when they are first written, if possible 2 MiB at a time."""
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def share_tasks(work: Callable[[Iterator[Any]], None], tasks: list[Any]) -> Callable[[], None]:
    """A call that runs all tasks in all threads; each thread takes the next task when it is free.

    Args:
        work: Runs in each thread, on an iterator that all threads share.
        tasks: What that iterator yields.
    """

    def run() -> None:
        todo = iter(tasks)  # `next` on a list iterator is atomic
        for done in [_pool().submit(work, todo) for _ in range(count_threads())]:
            done.result()

    return run


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count_threads())
