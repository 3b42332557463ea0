"""The processes that measure, from both ends of the pipe.

They answer with `(word, ...)`; what ends one of them comes as `("failed", reason)`, or as
`("wrong", reason)` when a result is not what was saved.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ..workloads import Workload
from .compare import Wrong

_PAGE = os.sysconf("SC_PAGE_SIZE")


class Failed(Exception):
    """A library that could not do it: what it said."""


class Opened:
    """A library in a process that imports once and does many times what it is asked.

    Attributes:
        nbytes: Of the tree.
        notes: What the library says of itself.
    """

    _serve: staticmethod[..., None]

    def __init__(self, directory: Path, workload: Workload, scale: float, library: str) -> None:
        self._child = Child(self._serve, directory, workload.name, scale, library)
        self.nbytes = 0
        self.notes: list[str] = []

    def open(self) -> None:
        """Warms up and prepares. Of all workers the first half runs at once, the second alone."""
        self._child.answer("warm")
        self._child.pipe.send("open")
        _, self.nbytes, self.notes = self._child.answer("ready")

    def close(self) -> None:
        self._child.end("stop")


class Child:
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


class Answers:
    """Sends what ends a worker as a line of text: the exception may not pickle."""

    def __init__(self, pipe: Connection, workload: Workload) -> None:
        self.pipe = pipe
        self.devices = workload.devices

    def __enter__(self) -> None:
        os.environ["XLA_FLAGS"] = xla_flags(self.devices)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, Exception):
            if os.environ.get("BENCHMARKS_TRACEBACK"):
                traceback.print_exception(error)
            self.pipe.send(said(error))
        return isinstance(error, Exception)


def said(error: Exception) -> tuple[str, str]:
    """An exception as an answer: its first line, which tables have room for."""
    if isinstance(error, Wrong):
        return "wrong", str(error)
    first = str(error).strip().partition("\n")[0]
    return "failed", f"{type(error).__name__}: {first}"[:200]


def xla_flags(devices: int) -> str:
    """XLA_FLAGS for a process with so many simulated CPU devices, to be set before JAX starts."""
    force = "--xla_force_host_platform_device_count"
    flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if not f.startswith(force)]
    return " ".join([*flags, f"{force}={devices}"])
