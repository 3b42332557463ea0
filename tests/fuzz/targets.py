"""What a target is, and what it counts as a failure."""

from __future__ import annotations

import hashlib
import random
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import templax as tx

from .mutators import mutate_bytes

MAX_SECONDS = 2.0
"""Maximum processor time of one input, in seconds. `python -m tests.fuzz --slow` sets another."""

MAX_GROWTH = 300 << 20
"""Maximum growth of the process's peak memory from one input, in bytes."""

_PACKAGE = f"{Path(tx.__file__).parent}/"

_LINES = (tx.TemplateError, tx.MappingError)
"""Errors whose message may have several lines."""


class Wrong(AssertionError):
    """A target's own finding: a wrong value, a write outside the tree, a forged line."""


@dataclass(frozen=True)
class Target:
    """Code that reads what a stranger wrote.

    Attributes:
        name: Its name on the command line, and of its directory in `corpus/`.
        run: Called with an input. A `TemplaxError` is right; any other exception is a failure.
        seeds: Inputs to begin with.
        mutate: A mutation that keeps the structure of an input.
        tokens: What an engine may insert.
        max_bytes: Longest input.
    """

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]
    mutate: Callable[[bytes, random.Random], bytes] = mutate_bytes
    tokens: tuple[bytes, ...] = ()
    max_bytes: int = 1 << 16

    def inputs(self) -> list[bytes]:
        """The seeds and the inputs kept in the repository: those that failed once."""
        kept = sorted((Path(__file__).parent / "corpus" / self.name).glob("*"))
        return [*self.seeds(), *(path.read_bytes() for path in kept)]


TARGETS: dict[str, Target] = {}


def add_target(
    name: str,
    *,
    seeds: Callable[[], Iterable[bytes]],
    mutate: Callable[[bytes, random.Random], bytes] = mutate_bytes,
    tokens: Iterable[bytes] = (),
    max_bytes: int = 1 << 16,
) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
    """Registers a function as the `run` of a target."""

    def register(run: Callable[[bytes], None]) -> Callable[[bytes], None]:
        TARGETS[name] = Target(name, run, seeds, mutate, tuple(tokens), max_bytes)
        return run

    return register


@dataclass(frozen=True)
class Failure:
    """Something that an input did and must not do.

    Attributes:
        kind: Equal for failures with the same cause: the exception and where it came from.
        text: The whole message.
    """

    kind: str
    text: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.kind.encode()).hexdigest()[:12]


@dataclass
class Judge:
    """Runs a target, and tells right outcomes from failures.

    Attributes:
        seconds: Longest run so far.
    """

    target: Target
    seconds: float = 0.0
    _peak: int = field(default_factory=lambda: _peak_bytes())

    def try_input(self, data: bytes) -> Failure | None:
        """Runs the target on an input; None if it did as it should.

        An input that seems slow is run again, and its second time counts: what a process runs
        first also pays for what it imports.
        """
        failure, took = self._time_run(data)
        if failure is None and took > MAX_SECONDS:
            failure, took = self._time_run(data)
        self.seconds = max(self.seconds, took)
        before, self._peak = self._peak, _peak_bytes()
        if failure is None and took > MAX_SECONDS:
            failure = Failure(f"slow {self.target.name}", f"took {took:.1f} s")
        if failure is None and self._peak - before > MAX_GROWTH:
            grown = (self._peak - before) >> 20
            failure = Failure(f"large {self.target.name}", f"took {grown} MiB")
        return failure

    def _time_run(self, data: bytes) -> tuple[Failure | None, float]:
        """What went wrong, and the seconds of processor time."""
        begin = time.process_time()
        failure = None
        try:
            self.target.run(data)
        except tx.TemplaxError as error:
            failure = judge_message(error)
        except Exception as error:  # noqa: BLE001 (whatever escapes is looked for)
            failure = describe(error)
        return failure, time.process_time() - begin


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def judge_message(error: tx.TemplaxError) -> Failure | None:
    """A failure if the text of an error could forge a line or control the terminal."""
    text = str(error)
    if isinstance(error, _LINES):
        text = text.replace("\n", "")
    if text.isprintable():
        return None
    bad = next(c for c in text if not c.isprintable())
    where = _last_frame(error)
    return Failure(f"message {where}", f"unprintable {bad!r} in {text[:400]!r}\n{_trace(error)}")


def describe(error: Exception) -> Failure:
    """The failure that stands for an exception."""
    return Failure(f"{type(error).__name__} {_last_frame(error)}", _trace(error))


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-6000:]


def _last_frame(error: BaseException) -> str:
    """The innermost place in templax, or in the target, that an error went through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if f.filename.startswith(_PACKAGE)] or list(frames)
    if not ours:
        return "?"
    return f"{ours[-1].filename.removeprefix(_PACKAGE)}:{ours[-1].lineno}"


def limit_recursion() -> None:
    """Sets the limit that Python has by default, which engines may have raised."""
    sys.setrecursionlimit(1000)
