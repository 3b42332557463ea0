"""Work shared out over threads, and memory that was touched before."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

PIECE = 8 << 20
"""Bytes of one call: large enough that its call costs nothing, small enough to share out."""


def threads() -> int:
    """As many as templax takes by default."""
    return min(8, len(os.sched_getaffinity(0)))


def touched(nbytes: int) -> Any:
    import numpy as np

    buffer = np.empty(nbytes, np.uint8)
    buffer.fill(1)
    return buffer


def shared(work: Callable[[Iterator[Any]], None], tasks: list[Any]) -> Callable[[], None]:
    """All tasks by all threads, each of which takes the next when it is free."""

    def run() -> None:
        todo = iter(tasks)  # of a list: `next` on it is atomic
        for done in [_pool().submit(work, todo) for _ in range(threads())]:
            done.result()

    return run


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads())
