"""The process in which a library restores, seen from both ends of the pipe."""

from __future__ import annotations

import os
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

from ..files import list_files, locate_checkpoint
from ..jobs import Job
from ..measure.compare import compare_result
from ..measure.processes import ChildProcess, Worker, report_errors, serve_commands
from ..measure.sample import Sample, measure_call
from ..workloads import WARM_UP, WORKLOADS, Workload
from .libraries import LIBRARIES

_POLL_S = 0.002
"""Between two readings of a worker's anonymous memory."""


class _RestoreSession:
    """Restores at each command; "check" also compares the result, "time" does not."""

    def __init__(
        self, pipe: Connection, directory: Path, workload: Workload, scale: float, library: str
    ) -> None:
        self._pipe = pipe
        self._directory = directory
        self._workload = workload
        self._scale = scale
        self._library = LIBRARIES[library]

    def warm_up(self) -> None:
        """Restores a small checkpoint of the kind that will be measured. Limits have none."""
        if self._library.limit:
            return
        import jax

        small = replace(WARM_UP, kind=self._workload.kind)
        job = self._library.make_job(self._directory, small, self._scale)
        jax.block_until_ready(self._library.open(job)())

    def open(self) -> tuple[int, list[str]]:
        self._job = self._library.make_job(self._directory, self._workload, self._scale)
        nbytes = self._job.nbytes
        self._restore = self._library.open(self._job)
        if self._library.limit:
            measure_call(self._restore, 0)  # in place of a warm-up
        return nbytes, self._job.notes

    def run(self, command: str, rss: int) -> None:
        tree, sample = measure_call(self._restore, rss)
        self._pipe.send(("sample", sample))
        if command == "check":
            if not self._library.limit:
                compare_result(self._directory, tree, self._job)
            self._pipe.send(("checked",))


def _serve_restores(
    pipe: Connection, directory: Path, name: str, scale: float, library: str
) -> None:
    workload = WORKLOADS[name]
    session = _RestoreSession(pipe, directory, workload, scale, library)
    serve_commands(pipe, workload, session)


class RestoreWorker(Worker):
    """A library that restores."""

    _serve = staticmethod(_serve_restores)

    def open(self) -> None:
        super().open()
        self._anon = self._child.read_anon()

    def time(self) -> Sample:
        self._child.pipe.send("time")
        return self._child.receive("sample")[1]

    def check(self) -> Sample:
        """Restores and compares, and polls the anonymous memory of the process meanwhile.

        The parent polls because a thread in the child would wait for the GIL. Timed samples are not
        polled, since that would take time from a core.
        """
        self._child.pipe.send("check")
        peak = self._anon
        while not self._child.pipe.poll(_POLL_S):
            peak = max(peak, self._child.read_anon())
        sample = self._child.receive("sample")[1]
        self._child.receive("checked")
        return replace(sample, peak_anon_bytes=peak - self._anon)


def check_checkpoint(
    directory: Path, workload: Workload, scale: float, library: str, path: Path
) -> None:
    """Restores a checkpoint in a process of its own, and compares the result with what was saved.

    Args:
        directory: Where the expected hashes are.
        workload: What was saved.
        scale: The scale of the workload.
        library: The library that restores.
        path: The checkpoint.

    Raises:
        WrongResult: It differs from what was saved.
        LibraryError: It can't be restored.
    """
    child = ChildProcess(_restore_once, directory, workload.name, scale, library, path)
    try:
        child.receive("checked")
    finally:
        child.end()


def _restore_once(
    pipe: Connection, directory: Path, name: str, scale: float, library: str, path: Path
) -> None:
    workload = WORKLOADS[name]
    with report_errors(pipe, workload):
        job = Job(path, workload, scale, keep_dtypes=True)
        compare_result(directory, LIBRARIES[library].open(job)(), job)
        pipe.send(("checked",))


def drop_cache(directory: Path, workload: Workload, library: str) -> None:
    """Drops the files that a library is about to restore from the page cache.

    Pages that a process has mapped stay; `Sample.disk_bytes` shows what was read again.
    """
    kind = LIBRARIES[library].choose_kind(workload)
    for path in list_files(locate_checkpoint(directory, workload, kind)):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
