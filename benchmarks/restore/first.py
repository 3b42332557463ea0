"""The first restore of a process, which pays for the imports of the library."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection
from pathlib import Path

from ..measure.processes import ChildProcess, report_errors
from ..workloads import WORKLOADS, Workload
from .libraries import LIBRARIES


def time_first_restore(directory: Path, workload: Workload, scale: float, library: str) -> float:
    """Restores once in a new process.

    The process has imported JAX, started its backend and built the template before: programs do so
    anyway, whichever library restores for them.

    Returns:
        Seconds from before the library is imported until every leaf is ready.

    Raises:
        LibraryError: It can't be restored.
    """
    child = ChildProcess(_restore_first, directory, workload.name, scale, library)
    try:
        return child.receive("first")[1]
    finally:
        child.end()


def _restore_first(
    pipe: Connection, directory: Path, name: str, scale: float, library: str
) -> None:
    workload = WORKLOADS[name]
    with report_errors(pipe, workload):
        import jax

        peer = LIBRARIES[library]
        job = peer.make_job(directory, workload, scale)
        jax.block_until_ready(jax.device_put(job.nbytes))
        assert job.is_plain is not None  # is computed here, not in the time below
        begin = time.perf_counter()
        jax.block_until_ready(peer.open(job)())
        pipe.send(("first", time.perf_counter() - begin))
