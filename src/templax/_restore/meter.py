"""Counts the bytes that the threads of a restore read, for `on_progress=`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import Any, cast

from .._core.progress import PROGRESS_S, Progress
from .._plan.parts import Check
from .._plan.plan import Plan
from ..storage.source import Source, begin_read
from .stats import StageSeconds


class ReadMeter:
    """The bytes that a restore has read, and the callback that hears of them.

    Threads call `add`. The callback is called by the thread that restores, so that it needs no
    lock, may raise to end the restore, and may touch what belongs to that thread.

    Args:
        progress: The callback.
        plan: What is read: the bytes in all are those of its requests, and those of mapped files
            that are compared with their checksums.
    """

    def __init__(self, progress: Progress, plan: Plan):
        self._progress = progress
        self._done, self._lock = 0, threading.Lock()
        self._told = time.perf_counter()
        checked = plan.batches if plan.summed and plan.verify != "off" else ()
        jobs = [job for batch in checked for job in batch.checks]
        self._total = plan.read_bytes + sum(map(_count_bytes, jobs))

    def add(self, nbytes: int) -> None:
        """Counts bytes. Called by any thread."""
        with self._lock:
            self._done += nbytes

    def count_reads(self, source: Source) -> Source:
        """The source, with every read counted."""
        return cast("Source", _CountedSource(source, self))

    def count_checks(self, job: Sequence[Check], done: Future[StageSeconds]) -> None:
        """Counts the bytes of a job of checks once it is done."""
        nbytes = _count_bytes(job)
        done.add_done_callback(lambda _: self.add(nbytes))

    def wait(self, jobs: Sequence[Future[StageSeconds]]) -> None:
        """Waits for all jobs, or the first error of one, and calls the callback meanwhile."""
        pending = set(jobs)
        while pending:
            done, pending = wait(pending, PROGRESS_S, FIRST_EXCEPTION)
            if any(job.exception() is not None for job in done):
                return
            self.report()

    def report(self) -> None:
        """Calls the callback, unless it was called a short while ago or all bytes are read."""
        now, done = time.perf_counter(), self._done
        if now - self._told >= PROGRESS_S and done < self._total:
            self._told = now
            self._progress(done, self._total)

    def finish(self) -> None:
        """Calls the callback for the last time: everything is in place."""
        self._progress(self._total, self._total)


class _CountedSource:
    """A source whose reads are counted."""

    def __init__(self, source: Source, meter: ReadMeter):
        self._source, self._meter = source, meter

    def read(
        self, key: str, start: int = 0, stop: int | None = None, out: memoryview | None = None
    ) -> memoryview:
        data = self._source.read(key, start, stop, out)
        self._meter.add(len(data))
        return data

    def begin_read(
        self, key: str, start: int, stop: int, out: memoryview
    ) -> Callable[[], memoryview]:
        finish = begin_read(self._source, key, start, stop, out)

        def count() -> memoryview:
            data = finish()
            self._meter.add(len(data))
            return data

        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


def _count_bytes(job: Sequence[Check]) -> int:
    return sum(item.stop - item.start for item in job)
