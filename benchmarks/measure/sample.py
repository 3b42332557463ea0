"""One call, measured in the process that makes it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Sample:
    """One restore, or one save.

    Attributes:
        seconds: From the call until every leaf is ready, or until the save has ended. For a fresh
            process, from its start to its exit.
        cpu_s: User and system time of all threads.
        peak_rss_bytes: Highest resident set during the call, beyond that of the process before its
            first call. For a fresh process, the whole.
        read_bytes: What its read calls returned, whether from the page cache or not (`rchar`).
        disk_bytes: What the kernel read from the disk for it, mapped files included.
        peak_anon_bytes: As `peak_rss_bytes`, for memory that no file backs. Only for untimed
            restores and fresh processes.
        stall_s: Seconds until the call returned. Only for saves that continue in the background.
    """

    seconds: float
    cpu_s: float
    peak_rss_bytes: int
    read_bytes: int
    disk_bytes: int
    peak_anon_bytes: int | None = None
    stall_s: float | None = None


def measure_call(call: Callable[[], Any], rss: int) -> tuple[Any, Sample]:
    """Makes the call and waits until the arrays that it returns are ready.

    Args:
        call: What to measure.
        rss: Resident bytes of the process before its first call.
    """
    import jax

    gc.collect()  # or else the call would pay for collecting the garbage of everything before it
    trim_heap()
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = read_io()
    cpu, begin = time.process_time(), time.perf_counter()
    result = jax.block_until_ready(call())
    seconds, cpu_s = time.perf_counter() - begin, time.process_time() - cpu
    peak, after = read_status("VmHWM") - rss, read_io()
    read, disk = (after[key] - before[key] for key in ("rchar", "read_bytes"))
    return result, Sample(seconds, cpu_s, peak, read, disk)


def trim_heap() -> None:
    """Gives free memory back to the system, as if nothing had been restored in this process yet.

    How much glibc keeps depends on the sizes of leaves and on which threads allocated them. What it
    keeps would count as growth of the process, and would spare the next call its page faults.
    """
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def read_status(key: str) -> int:
    """One value of `/proc/self/status`, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def read_io() -> dict[str, int]:
    """`/proc/self/io`: what this process and its threads have read and written so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return {key: int(value) for key, value in (line.split(": ") for line in lines)}
