"""JAX. How the processes of one job agree during a save, over the key-value store that comes with
`jax.distributed`: no device computes, so that the main thread may train on while a save runs.

A save is a sequence of steps that every process takes in the same order. At each step every process
says its word; process 0 hears all of them and gives the verdict, which all follow: go on, or the
one error that all raise. A verdict is set once: whoever comes second, such as process 0 after the
others gave it up, follows the first: no process can think a save good that another does not.

What happens when a process dies (SIGKILL, out of memory, a lost machine; jax 0.10 and 0.12):

- Any but process 0. Every process gives a sign of life every few seconds of a save. Process 0
  misses it after `SILENT_S`, and all others raise a `SaveError` that names the process. JAX itself
  misses it after `heartbeat_timeout_seconds` of `jax.distributed.initialize` (100), and then
  aborts every process of the job (SIGABRT), whatever it does; not so with the option
  `jax_enable_recoverability`. With a timeout shorter than ours, JAX aborts first.
- Process 0, in which the store lives. JAX aborts all others within milliseconds, with any option.
  What they had begun on disk stays, as after any kill.

A process that lives is waited for, however long it takes to write: it may be slow storage. One that
has not begun the save at all is waited for `timeout_s`.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType

import jax
import msgspec
from jax.errors import JaxRuntimeError

from .._jax.coordination import JobStore
from ..errors import AlreadyExists, SaveError

TIMEOUT_S = 300.0
"""How long a process that has not begun the save is waited for, unless the caller says."""

SILENT_S = 60.0
"""How long one that has begun it may give no sign of life: less than JAX's 100 s, after which no
process is left to raise an error or to clean up."""

PULSE_S = 5.0
"""Between two signs of life: a thousand processes burden the store with 200 calls a second."""

LOOK_S = 0.25
"""How often process 0 looks whether another one failed while it waits for the next."""

GRACE_S = 1.0
"""How long a failure waits for others of its kind: a full disk is full for all."""

_SHOWN = 8

_saves = itertools.count()  # equal on all processes that save in the same order


class _Problem(msgspec.Struct, frozen=True, array_like=True):
    """An error on its way to other processes."""

    what: str
    leaf: str | None = None
    file: str | None = None
    hint: str | None = None
    exists: bool = False

    @classmethod
    def of(cls, error: BaseException) -> _Problem:
        if not isinstance(error, SaveError):
            return cls(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
        exists = isinstance(error, AlreadyExists)
        return cls(error.what, error.leaf, error.file, error.hint, exists)

    def error(self) -> SaveError:
        kind = AlreadyExists if self.exists else SaveError
        return kind(self.what, leaf=self.leaf, file=self.file, hint=self.hint)


class _Word(msgspec.Struct, frozen=True, array_like=True):
    """What one process says at a step; from process 0 also the verdict.

    Attributes:
        path: Where it saves.
        what: What it does; empty if it gave up before the step.
        size: Bytes of the value that it left in the store.
        problem: Why it, or as a verdict the whole save, failed.
    """

    path: str
    what: str
    size: int = 0
    problem: _Problem | None = None


class Hosts:
    """The processes of a job, for one save. Made by `join_job`, used by one thread at a time.

    As a context manager it tells the others of an error that leaves it, and cleans up.

    Attributes:
        index: Of this process.
        count: Of processes. If it is 1, nothing is ever sent.
    """

    def __init__(
        self,
        index: int,
        count: int,
        path: str,
        store: JobStore | None,
        prefix: str,
        timeout_s: float,
    ):
        self.index, self.count = index, count
        self._path, self._prefix, self._timeout_s = path, prefix, timeout_s
        self._next, self._failed = 0, False
        self._closed = threading.Event()
        if store is None:
            return
        self._store = store
        self._pulse_s = min(PULSE_S, timeout_s / 4)
        pulse = (store, f"{prefix}/alive/{index}", self._pulse_s, self._closed)
        self._thread = threading.Thread(
            target=_pulse, args=pulse, name="templax-pulse", daemon=True
        )
        self._thread.start()
        weakref.finalize(self, self._closed.set)  # else one never closed would live forever

    def tell_all(self, what: str, value: bytes | None = None) -> bytes:
        """Process 0's value, on every process.

        Args:
            what: What the processes do, as in "while writing".
            value: On process 0; of any size. Ignored on others.

        Raises:
            SaveError: On every process: one failed, died or is elsewhere.
        """
        mine = (value or b"") if self.index == 0 else b""
        return self._step(what, reply=mine)[1]

    def gather(self, what: str, value: bytes) -> list[bytes]:
        """On process 0 everybody's values in order of process, on others nothing.

        Args, Raises: as `tell_all`.
        """
        return self._step(what, value=value)[0]

    def agree(self, what: str, problem: SaveError | None = None) -> None:
        """Goes on if no process has a problem.

        Args:
            what: What was done, as in "while writing".
            problem: Why it failed on this process, or None.

        Raises:
            SaveError: On every process, the same: it names each process that failed, and why.
            AlreadyExists: Instead, if that is all that was wrong.
        """
        self._step(what, problem=problem)

    def fail(self, error: BaseException) -> None:
        """Tells the others that this process gives up, without waiting for them. Never raises."""
        if self.count == 1 or self._failed or self._closed.is_set():
            return
        self._failed = True
        word = _Word(self._path, "", problem=_Problem.of(error))
        with contextlib.suppress(JaxRuntimeError):
            if self.index == 0:
                self._publish(_Word(self._path, "", problem=self._failure({0: word}, (), "")))
            else:
                self._say(word)

    def close(self) -> None:
        """Stops the signs of life; the last process to leave deletes the keys. Never raises."""
        if self.count == 1 or self._closed.is_set():
            return
        self._closed.set()
        self._thread.join(self._pulse_s)
        with contextlib.suppress(JaxRuntimeError):
            if self._store.add(f"{self._prefix}/left") == self.count:
                self._store.delete(self._prefix)

    def __enter__(self) -> Hosts:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self.fail(error)
        self.close()

    def _step(
        self, what: str, *, value: bytes = b"", reply: bytes = b"", problem: SaveError | None = None
    ) -> tuple[list[bytes], bytes]:
        """One step: the values that process 0 heard, and its reply."""
        if self.count == 1:
            if problem is not None:
                raise problem
            return [value], reply
        if self._failed:
            raise SaveError("This save has failed before", file=self._path)
        key, values = self._key(), list[bytes]()
        mine = None if problem is None else _Problem.of(problem)
        word = _Word(self._path, what, len(value), mine)
        try:
            if self.index == 0:
                said, wrong = self._hear(word)
                if wrong is None:
                    take = self._store.take
                    others = range(1, self.count)
                    values = [value, *(take(f"{key}/value/{i}", said[i].size) for i in others)]
                    self._store.put(f"{key}/reply", reply)
                verdict = self._publish(_Word(self._path, what, len(reply), wrong))
            else:
                self._store.put(f"{key}/value/{self.index}", value)
                self._say(word)
                verdict = self._follow(what)
                if verdict.problem is None:
                    reply = self._store.take(f"{key}/reply", verdict.size)
        except JaxRuntimeError as error:
            text = f"JAX's coordination service (process 0) failed while {what}: "
            failed = SaveError(text + str(error).partition("\n")[0], file=self._path)
            self.fail(failed)
            raise failed from error
        self._next += 1
        if verdict.problem is not None:
            self._failed = True
            raise verdict.problem.error() from problem
        return values, reply

    def _key(self, later: int = 0) -> str:
        return f"{self._prefix}/{self._next + later}"

    def _say(self, word: _Word) -> None:
        data = msgspec.msgpack.encode(word)
        if not self._store.set(f"{self._key()}/said/{self.index}", data):
            # It was interrupted behind its word: the next step hears that it gave up.
            self._store.set(f"{self._key(1)}/said/{self.index}", data)

    def _publish(self, verdict: _Word) -> _Word:
        """Process 0's verdict, or the one that was there before."""
        name = f"{self._key()}/verdict"
        while not self._store.set(name, msgspec.msgpack.encode(verdict)):
            found = self._store.get(name, LOOK_S)
            if found is not None:
                return msgspec.msgpack.decode(found, type=_Word)
        return verdict

    def _hear(self, mine: _Word) -> tuple[dict[int, _Word], _Problem | None]:
        """Every word, and what is wrong with them; on process 0."""
        said, watch = {0: mine}, _Watch(self._timeout_s)
        heard, give_up = f"{self._key()}/said", None
        while True:
            wrong = self._failure(said, (), mine.what) or _disagreement(said, self._path)
            missing = [i for i in range(self.count) if i not in said]
            if not missing:
                break
            if wrong is not None:
                give_up = give_up or time.monotonic() + GRACE_S
                if time.monotonic() > give_up:
                    break
            if self._store.get(f"{heard}/{missing[0]}", LOOK_S) is None:
                lost = watch.lost(missing, self._store.by_process(f"{self._prefix}/alive"))
                if lost:
                    wrong = self._failure(said, lost, mine.what)
                    break
            for index, word in self._store.by_process(heard).items():
                said[index] = msgspec.msgpack.decode(word, type=_Word)
        if self._next > 0 and not missing:  # they have all read the verdict before
            self._store.delete(self._key(-1))
        return said, wrong

    def _follow(self, what: str) -> _Word:
        """The verdict, on others; if process 0 gives no sign of life, this process gives it."""
        watch = _Watch(self._timeout_s)
        while True:
            found = self._store.get(f"{self._key()}/verdict", self._pulse_s)
            if found is not None:
                return msgspec.msgpack.decode(found, type=_Word)
            lost = watch.lost([0], self._store.by_process(f"{self._prefix}/alive"))
            if lost:
                wrong = self._failure({}, lost, what)
                return self._publish(_Word(self._path, what, problem=wrong))

    def _failure(
        self, said: Mapping[int, _Word], lost: Sequence[tuple[int, float]], what: str
    ) -> _Problem | None:
        """What processes that failed or were lost have to say to all; None if there are none.

        Args:
            said: The words by process.
            lost: Process, and how many seconds it was waited for.
            what: What was being done; empty for nothing in particular.
        """
        problems = {i: word.problem for i, word in sorted(said.items()) if word.problem is not None}
        if problems and not lost and all(problem.exists for problem in problems.values()):
            return next(iter(problems.values()))
        doing = f" while {what}" if what else ""
        if len(problems) == 1 and not lost:
            ((index, problem),) = problems.items()
            text = f"Process {index} of {self.count} failed{doing}: {problem.what}"
            return _Problem(text, problem.leaf, problem.file or self._path, problem.hint)
        texts = [
            *(
                f"process {i} of {self.count} failed{doing}: {p.error()}"
                for i, p in problems.items()
            ),
            *(f"process {i} of {self.count} did not answer within {s:g} s{doing}" for i, s in lost),
        ]
        if not texts:
            return None
        more = [f"and {len(texts) - _SHOWN} more processes"] if len(texts) > _SHOWN else []
        text = "; ".join([*texts[:_SHOWN], *more])
        hint = "the logs of these processes say why" if lost else None
        return _Problem(text[0].upper() + text[1:], file=self._path, hint=hint)


def _disagreement(said: Mapping[int, _Word], path: str) -> _Problem | None:
    """How processes are at different saves, or at different steps of one; None if they are not."""
    for kind, fact in (("path", "to save to"), ("what", "to be")):
        found: dict[str, list[int]] = {}
        for index, word in sorted(said.items()):
            found.setdefault(getattr(word, kind), []).append(index)
        if len(found) > 1:
            expected, got, *_ = found
            who = ", ".join(map(str, found[got][:_SHOWN]))
            text = f"Expected every process {fact} `{expected}`, got `{got}` on process {who}"
            hint = "make the same saves in the same order on every process"
            return _Problem(text, file=path, hint=hint)
    return None


class _Watch:
    """Since when which process has given no sign of life."""

    def __init__(self, timeout_s: float):
        self._timeout_s = timeout_s
        self._start = time.monotonic()
        self._last: dict[int, tuple[bytes, float]] = {}

    def lost(self, missing: Iterable[int], signs: Mapping[int, bytes]) -> list[tuple[int, float]]:
        """Those of `missing` that are given up, and how many seconds they were silent."""
        now, lost = time.monotonic(), list[tuple[int, float]]()
        for index in missing:
            sign, since = self._last.get(index, (b"", self._start))
            if signs.get(index, sign) != sign:
                self._last[index] = signs[index], now
                continue
            limit_s = min(self._timeout_s, SILENT_S) if sign else self._timeout_s
            if now - since > limit_s:
                lost.append((index, limit_s))
        return lost


def _pulse(store: JobStore, key: str, every_s: float, closed: threading.Event) -> None:
    for n in itertools.count():
        with contextlib.suppress(JaxRuntimeError):
            store.set(key, b"%d" % n, again=True)
        if closed.wait(every_s):
            return


def join_job(path: str, *, timeout_s: float = TIMEOUT_S) -> Hosts:
    """The processes of this job, for a save to `path`. Says and hears nothing yet.

    Every process calls this for the same saves in the same order, in the thread that decides on
    it: that is how one save is told from the next.

    Args:
        path: Where the save goes, spelled the same on all processes.
        timeout_s: How long a process that has not come to this save is waited for.

    Raises:
        SaveError: There are several processes, and no way to talk to them.
    """
    count = jax.process_count()
    if count == 1:
        return Hosts(0, 1, path, None, "", timeout_s)
    prefix = f"templax/save/{next(_saves)}"
    return Hosts(jax.process_index(), count, path, JobStore(), prefix, timeout_s)
