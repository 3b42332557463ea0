"""Jobs of several processes on this machine."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

import templax as tx

DEVICES = 2
"""The number of CPU devices of each process."""

_CHILD = f"""
import os, signal, sys, traceback
sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # native libraries print to stdout, too
port, index, count, *args = sys.argv[1:]
index, count = int(index), int(count)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count={DEVICES}"
import jax
jax.distributed.initialize("127.0.0.1:" + port, count, index)
def die():
    os.kill(os.getpid(), signal.SIGKILL)
code = 0
script = compile(sys.stdin.buffer.read(int(args.pop(0))), "script", "exec")
if "JOB_ENDS_AS_PROGRAMS_DO" in os.environ:
    exec(script, globals())
    sys.exit()
try:
    exec(script, globals())
except BaseException:
    traceback.print_exc()
    code = 1
# JAX aborts the other processes when process 0 ends, so none ends before all have finished.
sys.stdout.close()
sys.stdin.buffer.read()
os._exit(code)
"""


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
        env = {**(env or {}), **({"JOB_ENDS_AS_PROGRAMS_DO": "1"} if ends else {})}
        logs = tmp_path_factory.mktemp("job")
        return _run(n, script, args, timeout_s, logs, env, prefixes or {})

    return call


def _run(
    n: int,
    script: str,
    args: tuple[str, ...],
    timeout_s: float,
    logs: Path,
    env: Mapping[str, str],
    prefixes: Mapping[int, Sequence[str]],
) -> list[Output]:
    source = script.encode()
    path = os.pathsep.join([str(Path(tx.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    children: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(_port())
        for index in range(n):
            python = [*prefixes.get(index, ()), sys.executable]
            command = [*python, "-c", _CHILD, str(port), str(index), str(n)]
            child = subprocess.Popen(
                [*command, str(len(source)), *args],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stack.enter_context((logs / f"{index}.err").open("wb")),
                env={**os.environ, **env, "PYTHONPATH": path},
            )
            stack.callback(_end, child)
            assert child.stdin
            child.stdin.write(source)  # less than a pipe holds
            child.stdin.flush()
            children.append(child)
        late, outs = _read(children, timeout_s)
        for child in children:
            assert child.stdin
            child.stdin.close()
        codes = [child.wait(20) if i not in late else None for i, child in enumerate(children)]
    errs = [(logs / f"{index}.err").read_text(errors="replace") for index in range(n)]
    if late:
        outputs = (f"--- process {i}\n{outs[i]}\n{errs[i][-3000:]}" for i in range(n))
        pytest.fail(f"not done after {timeout_s} s: {sorted(late)}\n" + "\n".join(outputs))
    return [Output(code or 0, out, err) for code, out, err in zip(codes, outs, errs, strict=True)]


def _read(children: list[subprocess.Popen[bytes]], timeout_s: float) -> tuple[set[int], list[str]]:
    """The processes that did not close their output in time, and what each has printed."""
    outs = [b""] * len(children)
    end = time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector:
        for index, child in enumerate(children):
            assert child.stdout
            selector.register(child.stdout, selectors.EVENT_READ, index)
        while selector.get_map():
            ready = selector.select(max(0.0, end - time.monotonic()))
            if not ready:
                break
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                outs[key.data] += data
                if not data:
                    selector.unregister(key.fileobj)
        late = {key.data for key in selector.get_map().values()}
    return late, [out.decode() for out in outs]


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for stream in (child.stdin, child.stdout):
        if stream:
            with contextlib.suppress(BrokenPipeError):
                stream.close()


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
