"""The process in which a library saves, from both ends of the pipe."""

from __future__ import annotations

import gc
import time
import warnings
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ..files import removed
from ..jobs import Save
from ..measure.processes import Answers, Opened
from ..measure.sample import Sample, measure, status, trim
from ..workloads import WARM_UP, WORKLOADS, named, values
from .savers import SAVERS


def serve_saves(pipe: Connection, directory: Path, name: str, scale: float, library: str) -> None:
    """Saves to each path it gets; `"stop"` ends. The tree is there before the first.

    Before that it warms up, and at the first command, `"open"`, makes the tree.
    """
    workload = WORKLOADS[name]
    with Answers(pipe, workload), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = SAVERS[library]
        small = directory / f"{WARM_UP.name}-{library}.{peer.kind}"
        _measure_save(peer.open(values(WARM_UP.stored(scale))), small, 0)
        removed(small)
        pipe.send(("warm",))
        if pipe.recv() == "stop":
            return
        tree = values(workload.stored(scale))
        save = peer.open(tree)
        gc.collect()
        trim()
        rss = status("VmRSS")
        pipe.send(("ready", sum(leaf.nbytes for leaf in named(tree).values()), []))
        while (command := pipe.recv()) != "stop":
            pipe.send(("sample", _measure_save(save, Path(command), rss)))


def _measure_save(save: Save, path: Path, rss: int) -> Sample:
    def call() -> tuple[float | None, Any]:
        begin = time.perf_counter()
        wait = save(path)
        stall_s = time.perf_counter() - begin
        return (None, None) if wait is None else (stall_s, wait())

    (stall_s, _), sample = measure(call, rss)
    return replace(sample, stall_s=stall_s)


class SaveWorker(Opened):
    """A library that saves."""

    _serve = staticmethod(serve_saves)

    def save(self, path: Path) -> Sample:
        self._child.pipe.send(str(path))
        return self._child.answer("sample")[1]
