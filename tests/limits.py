"""Runs code in a process of its own and fails the test if it takes too much time or memory.

A few kilobytes of a hostile file must not take minutes or gigabytes. Such tests can't run in the
process of pytest: a failure would take it down.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_SERVER = Path(__file__).with_name("limits_server.py")

_FENCE_MB = 512
"""A child that exceeds its limit by this much is stopped by the kernel, for the machine's sake."""

_WALL_FACTOR = 15
"""A child is killed after this many times its seconds: it waits, or the machine is very busy."""


@dataclass(frozen=True)
class Outcome:
    """What limited code did.

    Attributes:
        stdout, stderr: What it printed.
        error: Type and message of the `TemplaxError` that it raised, if any.
        status: The exit status, if it exited (as the command line does), if any.
        seconds: Processor time that it took, over all threads.
        megabytes: How much more memory was resident at its peak than before it.
    """

    stdout: str
    stderr: str
    error: str | None
    status: int | None
    seconds: float
    megabytes: float


def run_limited(
    code: str,
    *,
    preload: str = "",
    prepare: str = "",
    seconds: float = 2,
    megabytes: float = 300,
    cwd: Path | None = None,
) -> Outcome:
    """Runs `code` in a process of its own, and fails the test unless it stays within the limits.

    Anything that it raises other than a `TemplaxError` or `SystemExit` fails the test, too.

    Args:
        code: Python source. It finds the names `json`, `os`, `sys`, `np`, `msgspec` and `tx`.
        preload: Python source that runs before, without limits and with the same names, once for
            all calls that give it: imports that are not to be measured, such as that of JAX.
        prepare: Python source that runs before in the same process, without limits and with the
            same names: what makes the hostile file.
        seconds: Limit of processor time. Time that other processes take does not count.
        megabytes: Limit of memory that becomes resident (in MiB; on Linux only).
        cwd: Directory to run in.

    >>> run_limited("print(tx.__name__)").stdout
    'templax\\n'
    """
    pytest.importorskip("resource")
    with tempfile.TemporaryDirectory() as directory:
        ended = _ask_server(
            preload,
            code=code,
            prepare=prepare,
            seconds=seconds,
            megabytes=megabytes,
            fence=_FENCE_MB,
            directory=directory,
            cwd=str(cwd or Path.cwd()),
            wall_seconds=60 + _WALL_FACTOR * seconds,
        )
        stdout, stderr = (
            Path(directory, name).read_text(errors="replace") for name in ("stdout", "stderr")
        )
        if ended is None:
            raise AssertionError(f"It neither ended nor used its {seconds} s:\n{code}")
        if ended < 0:
            raise AssertionError(
                f"It was stopped by signal {-ended}, at {seconds} s "
                f"and more:\n{code}\n{stderr[-4000:]}"
            )
        if ended:
            raise AssertionError(f"It failed:\n{code}\n{stderr[-4000:]}")
        taken, peak, error, status = json.loads(Path(directory, "report").read_text())
    assert taken <= seconds, f"It took {taken:.1f} s of {seconds} s:\n{code}\n{error}"
    assert peak <= megabytes, f"It took {peak:.0f} MiB of {megabytes} MiB:\n{code}\n{error}"
    return Outcome(stdout, stderr, error, status, taken, peak)


@functools.cache
def _start_server(preload: str) -> subprocess.Popen[str]:
    """A server that ends with this process."""
    server = subprocess.Popen(
        [sys.executable, str(_SERVER), preload],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # OpenBLAS would start threads, which a forked process does not inherit.
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        text=True,
    )
    atexit.register(_stop_server, server)
    return server


def _stop_server(server: subprocess.Popen[str]) -> None:
    server.communicate()


def _ask_server(preload: str, **arguments: Any) -> int | None:
    """How the process ended that ran with these arguments; None if it took too long."""
    server = _start_server(preload)
    assert server.stdin
    assert server.stdout
    server.stdin.write(json.dumps(arguments) + "\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    assert answer, f"the server ended: {server.wait()}"
    return json.loads(answer)


def run_cli_limited(
    *arguments: str,
    prepare: str = "",
    seconds: float = 2,
    megabytes: float = 300,
    cwd: Path | None = None,
) -> Outcome:
    """Runs `templax` with these arguments as `run_limited` does.

    The test fails if the exit status is not 0, 1 or 2.
    """
    code = f"from templax.cli.main import main; main({list(arguments)!r})"
    outcome = run_limited(code, prepare=prepare, seconds=seconds, megabytes=megabytes, cwd=cwd)
    assert outcome.status in (0, 1, 2), outcome
    assert "Traceback" not in outcome.stderr, outcome.stderr
    return outcome
