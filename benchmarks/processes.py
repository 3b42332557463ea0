"""The processes as the programs see them: one saves, and one per library restores, or saves."""

from __future__ import annotations

import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .files import files_under
from .libraries import LIBRARIES
from .worker import (
    Sample,
    Wrong,
    file_of,
    restore_once,
    save,
    serve,
    serve_saves,
    xla_flags,
)
from .workloads import WORKLOADS, Workload

ROOT = Path(__file__).parents[1]
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK_S = 0.002
"""Between two looks at a worker's anonymous memory."""


class Failed(Exception):
    """A library that could not do it: what it said."""


def written(
    directory: Path, workload: Workload, scale: float, kinds: Sequence[str]
) -> tuple[int, int]:
    """Saves a workload in a process of its own, and waits until the disk has it.

    Returns:
        Leaves and bytes that are asked for.
    """
    child = _Child(save, directory, workload.name, scale, kinds)
    try:
        _, leaves, nbytes = child.answer("saved")
    finally:
        child.end()
    for kind in kinds:
        for file in files_under(file_of(directory, workload, kind)):
            with file.open("rb") as opened:
                os.fsync(opened.fileno())  # dirty pages can't be dropped from the page cache
    return leaves, nbytes


def restored(directory: Path, workload: Workload, scale: float, library: str, path: Path) -> None:
    """Has a library restore a checkpoint in a process of its own, and compares the result.

    Raises:
        Wrong: It is not what was saved.
        Failed: It can't be restored.
    """
    child = _Child(restore_once, directory, workload.name, scale, library, path)
    try:
        child.answer("checked")
    finally:
        child.end()


class _Opened:
    """A library in a process that imports once and does many times what it is asked.

    Attributes:
        nbytes: Of the tree.
        notes: What the library says of itself.
    """

    _serve: staticmethod[..., None]

    def __init__(self, directory: Path, workload: Workload, scale: float, library: str) -> None:
        self._child = _Child(self._serve, directory, workload.name, scale, library)
        self.nbytes = 0
        self.notes: list[str] = []

    def open(self) -> None:
        """Warms up and prepares. Of all workers the first half runs at once, the second alone."""
        self._child.answer("warm")
        self._child.pipe.send("open")
        _, self.nbytes, self.notes = self._child.answer("ready")

    def close(self) -> None:
        self._child.end("stop")


class SaveWorker(_Opened):
    """A library that saves."""

    _serve = staticmethod(serve_saves)

    def save(self, path: Path) -> Sample:
        self._child.pipe.send(str(path))
        return self._child.answer("sample")[1]


class Worker(_Opened):
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


class FreshWorker:
    """A library that gets a new process for each restore; all of its life counts."""

    def __init__(self, directory: Path, workload: Workload, scale: float, library: str) -> None:
        self._command = [
            *(sys.executable, "-m", "benchmarks.fresh"),
            *(str(directory), str(scale), workload.name, library),
        ]
        path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path),
            "XLA_FLAGS": xla_flags(workload.devices),
        }
        self.nbytes = 0
        self.notes: list[str] = []

    def open(self) -> None:
        pass

    def time(self) -> Sample:
        return self._run()

    def check(self) -> Sample:
        return self._run("check")

    def close(self) -> None:
        pass

    def _run(self, *options: str) -> Sample:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        begin = time.perf_counter()
        done = subprocess.run(
            [*self._command, *options], env=self._env, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - begin
        if done.returncode:
            last = done.stderr.strip().rpartition("\n")[2]
            if last.startswith("wrong: "):
                raise Wrong(last.removeprefix("wrong: "))
            raise Failed(last or f"exit code {done.returncode}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime
        facts = dict(line.split(":", 1) for line in done.stdout.splitlines() if ":" in line)
        peak, anon = (1024 * int(facts[key].split()[0]) for key in ("VmHWM", "RssAnon"))
        return Sample(
            *(seconds, cpu_s, peak, int(facts["rchar"]), int(facts["read_bytes"])),
            peak_anon_bytes=anon,
        )


def worker_for(
    directory: Path, workload: Workload, scale: float, library: str
) -> Worker | FreshWorker:
    kind = FreshWorker if workload.fresh else Worker
    return kind(directory, workload, scale, library)


def drop_cache(directory: Path, workload: str, library: str) -> None:
    """Has the kernel forget the files that a library is about to restore.

    Pages that a process has mapped stay; `Sample.disk_bytes` tells what was read again.
    """
    found = WORKLOADS[workload]
    for file in files_under(file_of(directory, found, LIBRARIES[library].kind(found))):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class _Child:
    """A spawned process and the pipe to it."""

    def __init__(self, target: Callable[..., None], *args: object) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=target, args=(theirs, *args), daemon=True)
        self._process.start()
        theirs.close()

    def answer(self, expected: str) -> tuple[Any, ...]:
        try:
            answer = self.pipe.recv()
        except EOFError:
            self._process.join()
            raise Failed(f"died with exit code {self._process.exitcode}") from None
        if answer[0] == "wrong":
            raise Wrong(answer[1])
        if answer[0] != expected:
            raise Failed(answer[1])
        return answer

    def anon(self) -> int:
        """Resident bytes that no file backs; 0 when the process is gone."""
        try:
            fields = Path(f"/proc/{self._process.pid}/statm").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            return 0
        return (int(fields[1]) - int(fields[2])) * _PAGE if fields else 0

    def end(self, command: str | None = None) -> None:
        """Asks it to stop, or, if it does not listen, stops it."""
        try:
            if command is not None:
                self.pipe.send(command)
        except OSError:
            self._process.terminate()
        self._process.join(timeout=60)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()
        self.pipe.close()
