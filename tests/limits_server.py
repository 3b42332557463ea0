"""Runs code under limits, each time in a process forked from one that has imported templax.

`python limits_server.py CODE` runs CODE once, whose names later programs find, and then reads lines
of JSON: the arguments of `_run`. It writes a line for each: how the process ended, or null if it
took too long. A forked process starts in milliseconds; imports take seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import tempfile
import threading
import time
import traceback
from typing import Any

import msgspec
import numpy as np

import templax as tx
from templax.errors import TemplaxError

_LINUX = sys.platform == "linux"


def main() -> None:
    names = {"json": json, "os": os, "sys": sys, "np": np, "msgspec": msgspec, "tx": tx}
    _warm_up()
    exec(compile(sys.argv[1], "<preload>", "exec"), names)
    assert threading.active_count() == 1, "a forked process has no other threads"
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(_serve(names, **json.loads(line))) + "\n")


def _warm_up() -> None:
    """Imports what opening, saving and verifying import, so that only their work is measured."""
    with tempfile.TemporaryDirectory() as path:
        tx.save(os.path.join(path, "c"), {"a": np.ones(2, np.float32)})
        tx.verify(os.path.join(path, "c"))
    import templax.cli.check
    import templax.cli.ls
    import templax.cli.main
    import templax.cli.runs
    import templax.cli.template
    import templax.cli.verify  # noqa: F401


def _serve(names: dict[str, Any], wall_seconds: float, **arguments: Any) -> int | None:
    child = os.fork()
    if not child:
        os._exit(_run(dict(names), **arguments))
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, wall_seconds)
    begin = time.monotonic()
    _, status = os.waitpid(child, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    late = time.monotonic() - begin >= wall_seconds
    return None if late else os.waitstatus_to_exitcode(status)


def _run(
    names: dict[str, Any],
    code: str,
    prepare: str,
    seconds: float,
    megabytes: float,
    fence: int,
    directory: str,
    cwd: str,
) -> int:
    """Runs the code and writes `report`, `stdout` and `stderr` into the directory."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(os.path.join(directory, name), os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(cwd)
    sys.path.insert(0, cwd)
    error, status, failed = None, None, False
    try:
        exec(compile(prepare, "<prepare>", "exec"), names)
        before = _set_limits(seconds, megabytes + fence)
    except BaseException:  # noqa: BLE001, it is printed
        traceback.print_exc()
        return 1
    start = time.process_time()
    try:
        exec(compile(code, "<code>", "exec"), names)
    except TemplaxError as caught:
        error = f"{type(caught).__name__}: {caught}"
    except SystemExit as caught:
        status = 0 if caught.code is None else caught.code
    except BaseException:  # noqa: BLE001, it is printed
        traceback.print_exc()
        failed = True
    taken = time.process_time() - start
    peak = max(_resident_kb("VmHWM:") - before, 0) / 1024 if _LINUX else 0
    sys.stdout.flush()
    sys.stderr.flush()
    with open(os.path.join(directory, "report"), "w") as file:
        json.dump([taken, peak, error, status], file)
    return int(failed)


def _set_limits(seconds: float, megabytes: float) -> int:
    """Sets the limits at which the kernel stops the process. Returns what is resident, in KiB."""
    before = 0
    if _LINUX:
        with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # forget the peak so far
        before = _resident_kb("VmRSS:")
        data = int(_resident_kb("VmData:") * 1024 + megabytes * 2**20)
        resource.setrlimit(resource.RLIMIT_DATA, (data, data))
    cpu = int(time.process_time() + seconds) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    return before


def _resident_kb(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field))


if __name__ == "__main__":
    main()
