"""The process in which a library restores, from both ends of the pipe."""

from __future__ import annotations

import gc
import os
import warnings
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

from ..files import file_of, files_under
from ..jobs import Job
from ..measure.compare import compare
from ..measure.processes import Answers, Child, Opened
from ..measure.sample import Sample, measure, status, trim
from ..workloads import WARM_UP, WORKLOADS, Workload
from .libraries import LIBRARIES, Library

_TICK_S = 0.002
"""Between two looks at a worker's anonymous memory."""


def job_for(directory: Path, workload: Workload, scale: float, library: Library) -> Job:
    path = file_of(directory, workload, library.kind(workload))
    return Job(path, workload, scale, library.uncast)


def serve(pipe: Connection, directory: Path, name: str, scale: float, library: str) -> None:
    """Restores at each command: `"check"` compares the result, `"time"` does not, `"stop"` ends.

    Before that it warms up, and at the first command, `"open"`, prepares the workload.
    """
    workload = WORKLOADS[name]
    with Answers(pipe, workload), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = LIBRARIES[library]
        if not peer.limit:
            import jax

            warm_up = job_for(directory, replace(WARM_UP, kind=workload.kind), scale, peer)
            _ = warm_up.template
            jax.block_until_ready(peer.open(warm_up)())
        pipe.send(("warm",))
        if pipe.recv() == "stop":
            return
        job = job_for(directory, workload, scale, peer)
        nbytes = job.nbytes
        restore = peer.open(job)
        if peer.limit:
            measure(restore, 0)  # it had no warm-up
        gc.collect()
        trim()
        rss = status("VmRSS")
        pipe.send(("ready", nbytes, job.notes))
        while (command := pipe.recv()) != "stop":
            tree, sample = measure(restore, rss)
            pipe.send(("sample", sample))
            if command == "check" and not peer.limit:
                compare(directory, tree, job)
            if command == "check":
                pipe.send(("checked",))
            del tree


def restore_once(
    pipe: Connection, directory: Path, name: str, scale: float, library: str, path: Path
) -> None:
    """Compares what a save left with what it was given."""
    workload = WORKLOADS[name]
    with Answers(pipe, workload), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        job = Job(path, workload, scale, uncast=True)
        compare(directory, LIBRARIES[library].open(job)(), job)
        pipe.send(("checked",))


class Worker(Opened):
    """A library that restores."""

    _serve = staticmethod(serve)

    def open(self) -> None:
        super().open()
        self._anon = self._child.anon()

    def time(self) -> Sample:
        self._child.pipe.send("time")
        return self._child.answer("sample")[1]

    def check(self) -> Sample:
        """Restores, compares, and meanwhile looks at the anonymous memory.

        From outside: a thread in the process would wait while a library holds the GIL. And not in
        timed samples: there are no cores to spare.
        """
        self._child.pipe.send("check")
        peak = self._anon
        while not self._child.pipe.poll(_TICK_S):
            peak = max(peak, self._child.anon())
        sample = self._child.answer("sample")[1]
        self._child.answer("checked")
        return replace(sample, peak_anon_bytes=peak - self._anon)


def restored(directory: Path, workload: Workload, scale: float, library: str, path: Path) -> None:
    """Has a library restore a checkpoint in a process of its own, and compares the result.

    Raises:
        Wrong: It is not what was saved.
        Failed: It can't be restored.
    """
    child = Child(restore_once, directory, workload.name, scale, library, path)
    try:
        child.answer("checked")
    finally:
        child.end()


def drop_cache(directory: Path, workload: str, library: str) -> None:
    """Has the kernel forget the files that a library is about to restore.

    Pages that a process has mapped stay; `Sample.disk_bytes` tells what was read again.
    """
    found = WORKLOADS[workload]
    for file in files_under(file_of(directory, found, LIBRARIES[library].kind(found))):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
