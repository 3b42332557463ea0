"""The process in which a library saves, seen from both ends of the pipe."""

from __future__ import annotations

import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ..files import remove_checkpoint
from ..jobs import Save
from ..measure.processes import Worker, serve_commands
from ..measure.sample import Sample, measure_call
from ..workloads import WARM_UP, WORKLOADS, Workload, count_bytes, make_values
from .savers import SAVERS


class _SaveSession:
    """Saves at each command, which is a path. The tree stays in memory from the start."""

    def __init__(
        self, pipe: Connection, directory: Path, workload: Workload, scale: float, library: str
    ) -> None:
        self._pipe = pipe
        self._workload = workload
        self._scale = scale
        self._saver = SAVERS[library]
        self._small = directory / f"{WARM_UP.name}-{library}.{self._saver.kind}"

    def warm_up(self) -> None:
        save = self._saver.open(make_values(WARM_UP.make_stored(self._scale)))
        _measure_save(save, self._small, 0)
        remove_checkpoint(self._small)

    def open(self) -> tuple[int, list[str]]:
        self._tree = make_values(self._workload.make_stored(self._scale))
        self._save = self._saver.open(self._tree)
        return count_bytes(self._tree), []

    def run(self, command: str, rss: int) -> None:
        self._pipe.send(("sample", _measure_save(self._save, Path(command), rss)))


def _measure_save(save: Save, path: Path, rss: int) -> Sample:
    def call() -> tuple[float | None, Any]:
        begin = time.perf_counter()
        wait = save(path)
        stall_s = time.perf_counter() - begin
        return (None, None) if wait is None else (stall_s, wait())

    (stall_s, _), sample = measure_call(call, rss)
    return replace(sample, stall_s=stall_s)


def _serve_saves(pipe: Connection, directory: Path, name: str, scale: float, library: str) -> None:
    workload = WORKLOADS[name]
    serve_commands(pipe, workload, _SaveSession(pipe, directory, workload, scale, library))


class SaveWorker(Worker):
    """A library that saves."""

    _serve = staticmethod(_serve_saves)

    def save(self, path: Path) -> Sample:
        self._child.pipe.send(str(path))
        return self._child.receive("sample")[1]
