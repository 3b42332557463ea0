"""How many threads work, and how much memory they may hold."""

from __future__ import annotations

import os

MAX_THREADS = 8


def count_cores() -> int:
    """Cores that this process may use; a container often has fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


MEMORY_BYTES = 2 * 1024 * 1024 * 1024
"""Default of `memory=`."""
