"""The processes in which a library restores from a bucket or saves to it, seen from both ends."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from pathlib import Path

from tests.stores.server import Bucket

from ..files import locate_checkpoint
from ..jobs import Job
from ..measure.compare import compare_result
from ..measure.processes import Worker, serve_commands
from ..measure.sample import Sample, measure_call
from ..workloads import WARM_UP, WORKLOADS, Workload, count_bytes, make_values
from .restorers import RESTORERS
from .savers import SAVERS


class _RestoreSession:
    """Restores at each command; "check" also compares the result, "time" does not."""

    def __init__(
        self,
        pipe: Connection,
        directory: Path,
        workload: Workload,
        scale: float,
        library: str,
        bucket: Bucket,
    ) -> None:
        self._pipe, self._directory, self._bucket = pipe, directory, bucket
        self._restorer = RESTORERS[library]
        self._job, self._small = (
            Job(locate_checkpoint(directory, each, self._restorer.kind), each, scale)
            for each in (workload, WARM_UP)
        )

    def warm_up(self) -> None:
        """Restores a small checkpoint, so that imports are done. Limits have none."""
        if not self._restorer.limit:
            import jax

            jax.block_until_ready(self._restorer.open(self._small, self._bucket)())

    def open(self) -> tuple[int, list[str]]:
        nbytes = self._job.nbytes
        self._restore = self._restorer.open(self._job, self._bucket)
        return nbytes, self._job.notes

    def run(self, command: str, rss: int) -> None:
        tree, sample = measure_call(self._restore, rss)
        if command == "check" and not self._restorer.limit:
            compare_result(self._directory, tree, self._job)
        self._pipe.send(("sample", sample))


class _SaveSession:
    """Saves at each command, which is a path. The tree stays in memory from the start."""

    def __init__(
        self, pipe: Connection, workload: Workload, scale: float, library: str, bucket: Bucket
    ) -> None:
        self._pipe, self._workload, self._scale = pipe, workload, scale
        self._library, self._bucket = library, bucket

    def warm_up(self) -> None:
        if not self._library.startswith("limit-"):
            small = make_values(WARM_UP.make_stored(self._scale))
            SAVERS[self._library](small, self._bucket, [])(f"warm-up-{os.getpid()}")

    def open(self) -> tuple[int, list[str]]:
        notes: list[str] = []
        self._tree = make_values(self._workload.make_stored(self._scale))
        self._save = SAVERS[self._library](self._tree, self._bucket, notes)
        return count_bytes(self._tree), notes

    def run(self, command: str, rss: int) -> None:
        _, sample = measure_call(lambda: self._save(command), rss)
        self._pipe.send(("sample", sample))


def _serve_restores(
    pipe: Connection, directory: Path, name: str, scale: float, library: str, bucket: Bucket
) -> None:
    os.environ |= bucket.server.environment
    workload = WORKLOADS[name]
    session = _RestoreSession(pipe, directory, workload, scale, library, bucket)
    serve_commands(pipe, workload, session)


def _serve_saves(
    pipe: Connection, directory: Path, name: str, scale: float, library: str, bucket: Bucket
) -> None:
    os.environ |= bucket.server.environment
    workload = WORKLOADS[name]
    session = _SaveSession(pipe, workload, scale, library, bucket)
    serve_commands(pipe, workload, session)


class RestoreWorker(Worker):
    """A library that restores from a bucket, the last of the arguments."""

    _serve = staticmethod(_serve_restores)

    def run(self, command: str) -> Sample:
        """Restores at "time"; restores and compares at "check"."""
        self._child.pipe.send(command)
        return self._child.receive("sample")[1]


class SaveWorker(RestoreWorker):
    """A library that saves to a bucket, the last of the arguments; `run` takes a path there."""

    _serve = staticmethod(_serve_saves)
