"""A new process for each restore, measured as a whole."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from ..measure.compare import WrongResult
from ..measure.processes import LibraryError, make_xla_flags
from ..measure.sample import Sample
from ..workloads import Workload
from .worker import RestoreWorker

ROOT = Path(__file__).parents[2]


class FreshWorker:
    """Used like a `RestoreWorker`; each sample is a process from its start to its exit."""

    def __init__(self, directory: Path, workload: Workload, scale: float, library: str) -> None:
        self._command = [
            *(sys.executable, "-m", "benchmarks.restore.fresh"),
            *(str(directory), str(scale), workload.name, library),
        ]
        path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path),
            "XLA_FLAGS": make_xla_flags(workload.devices),
        }
        self.nbytes = 0
        self.notes: list[str] = []

    def open(self) -> None:
        """Nothing to prepare: nothing outlives a sample."""

    def time(self) -> Sample:
        return self._run()

    def check(self) -> Sample:
        return self._run("check")

    def close(self) -> None:
        pass

    def _run(self, *options: str) -> Sample:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        begin = time.perf_counter()
        done = subprocess.run(
            [*self._command, *options], env=self._env, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - begin
        if done.returncode:
            last = done.stderr.strip().rpartition("\n")[2]
            if last.startswith("wrong: "):
                raise WrongResult(last.removeprefix("wrong: "))
            raise LibraryError(last or f"exit code {done.returncode}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        facts = dict(line.split(":", 1) for line in done.stdout.splitlines() if ":" in line)
        peak, anon = (1024 * int(facts[key].split()[0]) for key in ("VmHWM", "RssAnon"))
        return Sample(
            *(seconds, cpu_s, peak, int(facts["rchar"]), int(facts["read_bytes"])),
            peak_anon_bytes=anon,
        )


def start_worker(
    directory: Path, workload: Workload, scale: float, library: str
) -> RestoreWorker | FreshWorker:
    kind = FreshWorker if workload.fresh else RestoreWorker
    return kind(directory, workload, scale, library)
