"""Runs code in a process of its own and fails the test if it takes too much time or memory.

A few kilobytes of a hostile file must not take minutes or gigabytes. Such tests can't run in the
process of pytest: a failure would take it down.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

_LINUX = sys.platform == "linux"

_FENCE_MB = 512
"""A child that exceeds its limit by this much is stopped by the kernel, for the machine's sake."""

_WALL_FACTOR = 15
"""A child is killed after this many times its seconds: it waits, or the machine is very busy."""

# Imports come first, so that only the work of `code` is measured. Memory is what became resident;
# address space also counts stacks and arenas that nothing touches.
_CHILD = """
import contextlib, json, os, resource, sys, time, traceback
import msgspec, numpy as np
import templax as tx
from templax.errors import TemplaxError

def resident_kb(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field))

code, prepare, seconds, megabytes, fence, linux, report = json.loads(sys.argv[1])
sys.path.insert(0, os.getcwd())
import tempfile
from templax.storage import Memory
with tempfile.TemporaryDirectory() as path:
    tx.save(os.path.join(path, "c"), {"a": np.ones(2, np.float32)})
    tx.verify(os.path.join(path, "c"))
import templax.cli.main, templax.cli.ls, templax.cli.check, templax.cli.verify
import templax.cli.template, templax.cli.runs
globals_ = {"json": json, "os": os, "sys": sys, "np": np, "msgspec": msgspec, "tx": tx}
exec(compile(prepare, "<prepare>", "exec"), globals_)

if linux:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the peak so far
    before = resident_kb("VmRSS:")
    data = resident_kb("VmData:") * 1024 + (megabytes + fence) * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (data, data))
cpu = int(time.process_time() + seconds) + 2
resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
start = time.process_time()
failed = False
error, status = None, None
try:
    exec(compile(code, "<code>", "exec"), globals_)
except TemplaxError as caught:
    error = f"{type(caught).__name__}: {caught}"
except SystemExit as caught:
    status = 0 if caught.code is None else caught.code
except BaseException:
    traceback.print_exc()
    failed = True
taken = time.process_time() - start
peak = max(resident_kb("VmHWM:") - before, 0) / 1024 if linux else 0
sys.stdout.flush()
with open(report, "w") as file:
    json.dump([taken, peak, error, status], file)
os._exit(int(failed))
"""


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
    prepare: str = "",
    seconds: float = 2,
    megabytes: float = 300,
    cwd: Path | None = None,
) -> Outcome:
    """Runs `code` in a process of its own, and fails the test unless it stays within the limits.

    Anything that it raises other than a `TemplaxError` or `SystemExit` fails the test, too.

    Args:
        code: Python source. It finds the names `json`, `os`, `sys`, `np`, `msgspec` and `tx`.
        prepare: Python source that runs first, without limits and with the same names: what makes
            the hostile file, or imports what is not to be measured, such as JAX.
        seconds: Limit of processor time. Time that other processes take does not count.
        megabytes: Limit of memory that becomes resident (in MiB; on Linux only).
        cwd: Directory to run in.

    >>> run_limited("print(tx.__name__)").stdout
    'templax\\n'
    """
    pytest.importorskip("resource")
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory, "report")
        arguments = [code, prepare, seconds, megabytes, _FENCE_MB, _LINUX, str(report)]
        try:
            process = subprocess.run(
                [sys.executable, "-c", _CHILD, json.dumps(arguments)],
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=60 + _WALL_FACTOR * seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise AssertionError(f"It neither ended nor used its {seconds} s:\n{code}") from None
        stdout, stderr = (s.decode(errors="replace") for s in (process.stdout, process.stderr))
        if process.returncode < 0:
            raise AssertionError(
                f"It was stopped by signal {-process.returncode}, at {seconds} s "
                f"and more:\n{code}\n{stderr[-4000:]}"
            )
        if process.returncode:
            raise AssertionError(f"It failed:\n{code}\n{stderr[-4000:]}")
        taken, peak, error, status = json.loads(report.read_text())
    assert taken <= seconds, f"It took {taken:.1f} s of {seconds} s:\n{code}\n{error}"
    assert peak <= megabytes, f"It took {peak:.0f} MiB of {megabytes} MiB:\n{code}\n{error}"
    return Outcome(stdout, stderr, error, status, taken, peak)


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
