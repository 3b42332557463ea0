"""The processes that measure, seen from both ends of the pipe.

A child answers with `(word, ...)`. An error ends it with `("failed", reason)`, or with `("wrong",
reason)` if a result differs from what was saved.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import traceback
import warnings
from collections.abc import Callable, Generator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from ..workloads import Workload
from .compare import WrongResult
from .sample import read_status, trim_heap

_PAGE = os.sysconf("SC_PAGE_SIZE")


class LibraryError(Exception):
    """A library failed; the message is what it said."""


class ChildProcess:
    """A spawned process and the pipe to it.

    Args:
        target: What it runs, with its end of the pipe as the first argument.
        args: The other arguments.
    """

    def __init__(self, target: Callable[..., None], *args: object) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=target, args=(theirs, *args), daemon=True)
        self._process.start()
        theirs.close()

    def receive(self, expected: str) -> tuple[Any, ...]:
        """Waits for an answer that begins with the word `expected`.

        Raises:
            WrongResult: A result differs from what was saved.
            LibraryError: Anything else ended the process.
        """
        try:
            answer = self.pipe.recv()
        except EOFError:
            self._process.join()
            raise LibraryError(f"died with exit code {self._process.exitcode}") from None
        if answer[0] == "wrong":
            raise WrongResult(answer[1])
        if answer[0] != expected:
            raise LibraryError(answer[1])
        return answer

    def read_anon(self) -> int:
        """Resident bytes that no file backs; 0 if the process is gone."""
        try:
            fields = Path(f"/proc/{self._process.pid}/statm").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            return 0
        return (int(fields[1]) - int(fields[2])) * _PAGE if fields else 0

    def end(self, command: str | None = None) -> None:
        """Sends a last command and waits; terminates a process that does not end by itself."""
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


class Worker:
    """A library in a process that imports it once and then runs many commands.

    Subclasses name the function that the process runs, which calls `serve_commands` and takes the
    arguments of the constructor, `more` included.

    Attributes:
        nbytes: Bytes of the tree; known once open.
        notes: What the library says about its run.
    """

    _serve: staticmethod[..., None]

    def __init__(
        self, directory: Path, workload: Workload, scale: float, library: str, *more: object
    ) -> None:
        self._child = ChildProcess(self._serve, directory, workload.name, scale, library, *more)
        self.nbytes = 0
        self.notes: list[str] = []

    def open(self) -> None:
        """Waits for the warm-up, which all workers do at once, then prepares the workload alone."""
        self._child.receive("warm")
        self._child.pipe.send("open")
        _, self.nbytes, self.notes = self._child.receive("ready")

    def close(self) -> None:
        self._child.end("stop")


class Session(Protocol):
    """What the child of a `Worker` does at each command."""

    def warm_up(self) -> None:
        """Does a small piece of work of the same kind, so that imports are done."""
        ...

    def open(self) -> tuple[int, list[str]]:
        """Prepares the workload.

        Returns:
            Bytes of the tree, and the notes of the library.
        """
        ...

    def run(self, command: str, rss: int) -> None:
        """Runs a command and sends its answers.

        Args:
            command: What the parent sent.
            rss: Resident bytes of the process before its first command.
        """
        ...


def serve_commands(pipe: Connection, workload: Workload, session: Session) -> None:
    """Warms up, prepares the workload at the command "open", then runs commands until "stop"."""
    with report_errors(pipe, workload):
        session.warm_up()
        pipe.send(("warm",))
        if pipe.recv() == "stop":
            return
        nbytes, notes = session.open()
        gc.collect()
        trim_heap()
        rss = read_status("VmRSS")
        pipe.send(("ready", nbytes, notes))
        while (command := pipe.recv()) != "stop":
            session.run(command, rss)


@contextlib.contextmanager
def report_errors(pipe: Connection, workload: Workload) -> Generator[None]:
    """Sends the error that ends a child, as text because exceptions may not pickle.

    Before that, gives the process the workload's devices and silences warnings.
    """
    os.environ["XLA_FLAGS"] = make_xla_flags(workload.devices)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # noqa: BLE001  (whatever a library raises is an answer)
        if os.environ.get("BENCHMARKS_TRACEBACK"):
            traceback.print_exception(error)
        pipe.send(_describe_error(error))


def _describe_error(error: Exception) -> tuple[str, str]:
    """An exception as an answer: only its first line, to fit in a table."""
    if isinstance(error, WrongResult):
        return "wrong", str(error)
    first = str(error).strip().partition("\n")[0]
    return "failed", f"{type(error).__name__}: {first}"[:200]


def make_xla_flags(devices: int) -> str:
    """`XLA_FLAGS` for so many simulated CPU devices; to be set before JAX is imported."""
    force = "--xla_force_host_platform_device_count"
    flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if not f.startswith(force)]
    return " ".join([*flags, f"{force}={devices}"])
