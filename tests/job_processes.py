"""The processes of a JAX job on this machine, as tests start them and read what they print."""

from __future__ import annotations

import contextlib
import json
import multiprocessing as mp
import os
import selectors
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

import templax as tx

DEVICES = 2
"""The number of CPU devices of each process."""

_PATHS = (str(Path(tx.__file__).parents[1]), str(Path(__file__).parent))
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}",
    "PYTHONPATH": os.pathsep.join([*_PATHS, os.environ.get("PYTHONPATH", "")]),
}


def run_script(
    script: str, port: int, index: int, count: int, args: Sequence[str], *, ends: bool = False
) -> int:
    """Joins the job and runs `script`, whose output alone goes to the standard output.

    Returns:
        The exit status. With `ends=True` it does not return: the program ends as programs do.
    """
    sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # native libraries print to stdout, too
    import jax

    jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
    names = {"jax": jax, "index": index, "count": count, "args": list(args), "die": _die}
    names |= {"__name__": "__main__", "os": os, "sys": sys, "signal": signal}
    code = compile(script, "script", "exec")
    if ends:
        exec(code, names)
        sys.exit()
    try:
        exec(code, names)
    except BaseException:  # noqa: BLE001, it is printed
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.close()
    return 0


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class SpawnedProcess:
    """A process that runs a script as a program of its own.

    Args:
        errors: The file for its error output.
        script: The arguments of `run_script`.
        ends: Whether it ends as programs do.
        env: Environment variables.
        prefix: A command that runs the process.
    """

    def __init__(
        self,
        errors: Path,
        *script: Any,
        ends: bool = False,
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ):
        text = json.dumps([*script, ends]).encode()
        program = "from job_processes import run_program; run_program()"
        with errors.open("wb") as file:
            self._process = subprocess.Popen(
                [*prefix, sys.executable, "-c", program, str(len(text))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env={**os.environ, **_ENVIRONMENT, **(env or {})},
            )
        assert self._process.stdin
        assert self._process.stdout
        self.stdout, self._stdin = self._process.stdout, self._process.stdin
        self._stdin.write(text)  # less than a pipe holds
        self._stdin.flush()

    def release(self) -> None:
        """Lets the process end."""
        self._stdin.close()

    def wait(self, timeout_s: float) -> int:
        """Its exit status, or the negative number of the signal that ended it."""
        return self._process.wait(timeout_s)

    def end(self) -> None:
        """Kills the process."""
        self._process.kill()
        self._process.wait()
        self.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()


def run_program() -> None:
    """The program of a `SpawnedProcess`."""
    *script, ends = json.loads(sys.stdin.buffer.read(int(sys.argv[1])))
    code = run_script(*script, ends=ends)
    # JAX aborts the other processes when process 0 ends, so none ends before all have finished.
    sys.stdin.buffer.read()
    os._exit(code)


class ForkedProcess:
    """The same, forked from a server that has imported JAX and templax: it starts sooner.

    Args:
        errors: The file for its error output.
        script: The arguments of `program`.
        program: What runs instead of `run_script`; it returns the exit status. Its standard input
            is what `write` is given, until `release`.
    """

    def __init__(self, errors: Path, *script: Any, program: Callable[..., int] = run_script):
        _start_fork_server()
        context = mp.get_context("forkserver")
        self.stdout, output = context.Pipe(duplex=False)
        released, self._release = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_run_forked, args=(output, released, str(errors), program, *script), daemon=True
        )
        self._process.start()
        output.close()
        released.close()

    def write(self, data: bytes) -> None:
        """Writes to its standard input; less than a pipe holds."""
        os.write(self._release.fileno(), data)

    def release(self) -> None:
        """Lets the process end."""
        self._release.close()

    def wait(self, timeout_s: float) -> int:
        """Its exit status, or the negative number of the signal that ended it."""
        self._process.join(timeout_s)
        assert self._process.exitcode is not None, "the process does not end"
        return self._process.exitcode

    def end(self) -> None:
        """Kills the process."""
        self._process.kill()
        self._process.join()
        self.stdout.close()
        self._release.close()


def _run_forked(
    output: Connection,
    released: Connection,
    errors: str,
    program: Callable[..., int],
    *script: Any,
) -> None:
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.dup2(output.fileno(), 1)
    os.dup2(released.fileno(), 0)
    output.close()
    code = program(*script)
    released.poll(None)
    os._exit(code)


def _start_fork_server() -> None:
    """Starts the server, unless it is running."""
    given = dict(os.environ)
    # OpenBLAS would start threads, which a forked process does not inherit.
    os.environ.update(_ENVIRONMENT, OPENBLAS_NUM_THREADS="1")
    forkserver.set_forkserver_preload(["jax.numpy", "templax.compat.orbax", "pytest"])
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(given)


def read_outputs(
    pipes: Sequence[IO[bytes] | Connection | None],
    timeout_s: float,
    is_whole: Callable[[bytes], bool] = lambda data: False,
) -> tuple[set[int], list[bytes]]:
    """Reads each pipe until it is closed or its message is complete.

    Returns:
        The pipes that were still open after `timeout_s`, by index, and what each gave.
    """
    outs = [b""] * len(pipes)
    end = time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector:
        for index, pipe in enumerate(pipes):
            assert pipe
            selector.register(pipe, selectors.EVENT_READ, index)
        while selector.get_map():
            ready = selector.select(max(0.0, end - time.monotonic()))
            if not ready:
                break
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                outs[key.data] += data
                if not data or is_whole(outs[key.data]):
                    selector.unregister(key.fileobj)
        late = {key.data for key in selector.get_map().values()}
    return late, outs
