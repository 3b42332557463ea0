"""Jobs of several processes on this machine."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import pytest

from job_processes import ForkedProcess, SpawnedProcess, read_outputs


@dataclass
class Output:
    """How one process ended, and what it printed.

    Attributes:
        code: Its exit status, or the negative number of the signal that ended it.
        out, err: Its standard output and its error output.
    """

    code: int
    out: str
    err: str


class Run(Protocol):
    """Runs `script` in each of `n` processes of one job.

    The script can use `jax`, `index`, `count`, `args` (strings) and `die`, which kills its process.
    No process ends before all have finished or died, and none outlives the call. The test fails if
    one takes longer than `timeout_s`.

    With `ends=True` each process ends as programs do once the script has: with `atexit`, and the
    exit status of an exception. `env` is set in all processes. Those with an index in `prefixes`
    are run by the command there.
    """

    def __call__(
        self,
        n: int,
        script: str,
        *args: str,
        timeout_s: float = 120.0,
        ends: bool = False,
        env: Mapping[str, str] | None = None,
        prefixes: Mapping[int, Sequence[str]] | None = None,
    ) -> list[Output]: ...


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    def call(
        n: int,
        script: str,
        *args: str,
        timeout_s: float = 120.0,
        ends: bool = False,
        env: Mapping[str, str] | None = None,
        prefixes: Mapping[int, Sequence[str]] | None = None,
    ) -> list[Output]:
        logs = tmp_path_factory.mktemp("job")
        processes: list[ForkedProcess | SpawnedProcess] = []
        with contextlib.ExitStack() as stack:
            port = stack.enter_context(_port())
            for index in range(n):
                job = (logs / f"{index}.err", script, port, index, n, args)
                prefix = (prefixes or {}).get(index, ())
                process = (
                    SpawnedProcess(*job, ends=ends, env=env, prefix=prefix)
                    if ends or env or prefix
                    else ForkedProcess(*job)
                )
                stack.callback(process.end)
                processes.append(process)
            late, outs = read_outputs([process.stdout for process in processes], timeout_s)
            for process in processes:
                process.release()
            codes = [0 if i in late else process.wait(20) for i, process in enumerate(processes)]
        errs = [(logs / f"{index}.err").read_text(errors="replace") for index in range(n)]
        if late:
            outputs = (f"--- process {i}\n{outs[i].decode()}\n{errs[i][-3000:]}" for i in range(n))
            pytest.fail(f"not done after {timeout_s} s: {sorted(late)}\n" + "\n".join(outputs))
        return [
            Output(code, out.decode(), err)
            for code, out, err in zip(codes, outs, errs, strict=True)
        ]

    return call


@contextlib.contextmanager
def _port() -> Iterator[int]:
    """A port that stays reserved until the job has ended, where gRPC can share it."""
    with socket.socket() as held:
        if hasattr(socket, "SO_REUSEPORT"):
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("", 0))
        port = held.getsockname()[1]
        if not hasattr(socket, "SO_REUSEPORT"):
            held.close()
        yield port
