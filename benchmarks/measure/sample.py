"""One call, measured."""

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
        seconds: From the call until every leaf is ready, or until the save has ended; of a fresh
            process, of all of it.
        cpu_s: Of all threads, user and system.
        peak_rss_bytes: Highest resident set during it, beyond that of the process before its
            first; of a fresh process, in all.
        read_bytes: What its read calls returned, from the page cache or not (`rchar`).
        disk_bytes: What the kernel read from the disk for it, mapped files included.
        peak_anon_bytes: As `peak_rss_bytes`, of memory that no file backs. Of untimed restores.
        stall_s: Until the call returned. Of saves that go on behind it.
    """

    seconds: float
    cpu_s: float
    peak_rss_bytes: int
    read_bytes: int
    disk_bytes: int
    peak_anon_bytes: int | None = None
    stall_s: float | None = None


def measure(call: Callable[[], Any], rss: int) -> tuple[Any, Sample]:
    import jax

    gc.collect()  # else a restore pays for one of everything before it
    trim()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    before = io()
    cpu, begin = time.process_time(), time.perf_counter()
    result = jax.block_until_ready(call())
    seconds, cpu_s = time.perf_counter() - begin, time.process_time() - cpu
    peak, after = status("VmHWM") - rss, io()
    read, disk = (after[key] - before[key] for key in ("rchar", "read_bytes"))
    return result, Sample(seconds, cpu_s, peak, read, disk)


def trim() -> None:
    """Gives free memory back, as if this were the first restore of the process.

    What glibc keeps of the restores before depends on the sizes of leaves and on which threads
    allocated: it would count as growth here, and spare the first touch of fresh memory there.
    """
    with contextlib.suppress(AttributeError):  # another libc
        ctypes.CDLL(None).malloctrim(0)


def status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def io() -> dict[str, int]:
    """/proc/self/io: bytes of this process and its threads so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return {key: int(value) for key, value in (line.split(": ") for line in lines)}
