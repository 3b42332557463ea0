"""JAX. How the processes of a job agree during a save.

They communicate over the key-value store that comes with `jax.distributed`. No device takes part,
so the main thread can train while a background thread saves. Beginning and deleting a step of a run
work in the same way; below, "save" stands for these, too.

A save is a sequence of steps, `tell_all`, `gather` and `agree`, which every process takes in the
same order. At each step:

1. Every process sends one message: where it saves, what it does, and its error if it failed.
2. Process 0 collects the messages and decides: continue, or one error for all.
3. Process 0 publishes this verdict, for which the others wait. Either all continue, or all raise
   the same error, after which the save takes no more steps.

The keys in the store, below `templax/save/NUMBER`:

    alive/PROCESS                 heartbeat: a counter
    STEP/value/PROCESS/OFFSET     value of a process, in chunks
    STEP/message/PROCESS          `Message`, set after the value
    STEP/reply/OFFSET             value of process 0 for all, in chunks
    STEP/verdict                  `Message`, set after the reply
    closed                        how many processes have left the save

Invariants:

- A verdict is set once. Any process that tries to publish a second one follows the first instead,
  process 0 included. So all processes see the same verdict, whatever happens to any of them.
- A value is stored before the message that announces its size, so a receiver of the message never
  waits for a process that died in between.
- Only the clock of the waiting process is used: a heartbeat is a value that must change, not a
  time.

What happens if a process ...

- fails between two steps: it sends its error in place of its next message. Process 0 instead
  publishes it as the verdict.
- is interrupted after its message: the step may succeed for the others, and the next one fails.
- makes another save, or is at another step: `path` and `doing` of the messages differ, and all
  processes raise an error that names it.
- is slow: it is waited for as long as its heartbeats arrive, since storage may be slow.
- has not begun the save at all: it is waited for `timeout_s`.
- dies (SIGKILL, out of memory, a lost machine) and is not process 0: process 0 misses its
  heartbeats after `SILENT_S`, and all others raise a `SaveError` that names it. JAX misses it after
  the `heartbeat_timeout_seconds` of `jax.distributed.initialize`, by default 100, and then aborts
  every process of the job (SIGABRT), unless the option `jax_enable_recoverability` is set. If that
  timeout is shorter than `SILENT_S`, JAX comes first.
- dies and is process 0, which holds the store: JAX aborts all others within milliseconds, whatever
  its options. What they had begun to write stays on the disk, as after any kill. JAX's own
  behaviour, here and in the item above, is that of 0.10 and 0.12.
- is process 0 and stops sending heartbeats: the others publish the verdict that it was lost.
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
from ..errors import SaveError
from .messages import Message, RemoteError, describe_disagreement, describe_failure

TIMEOUT_S = 300.0
"""Default for how long to wait for a process that has not begun the save."""

SILENT_S = 60.0
"""How long a process that has begun the save may send no heartbeat. Less than the 100 s after which
JAX aborts every process, since by then none could raise an error or clean up."""

HEARTBEAT_S = 5.0
"""Time between two heartbeats: 1,000 processes burden the store with 200 calls a second."""

POLL_S = 0.25
"""How long process 0 waits for one message before it looks at the others and at the heartbeats."""

GRACE_S = 1.0
"""How long process 0 waits for more errors after the first: a full disk is full for all."""

_save_numbers = itertools.count()  # the same on all processes, which save in the same order


def join_job(path: str, *, timeout_s: float = TIMEOUT_S) -> Hosts:
    """Joins the processes of this job for a save to `path`. Starts heartbeats, but does not wait.

    Every process calls this for the same saves in the same order, in the thread that decides to
    save: the number of the call tells one save from the next.

    Args:
        path: Where the save goes, spelled the same on all processes.
        timeout_s: How long to wait for a process that has not begun this save.

    Raises:
        SaveError: There are several processes, and no way to communicate with them.
    """
    count = jax.process_count()
    if count == 1:
        return Hosts(0, 1, path, None, "", timeout_s)
    prefix = f"templax/save/{next(_save_numbers)}"
    return Hosts(jax.process_index(), count, path, JobStore(), prefix, timeout_s)


class Hosts:
    """The processes of a job, for one save. Made by `join_job`, used by one thread at a time.

    An exception that leaves its `with` block is sent to the other processes.

    Attributes:
        index: The index of this process.
        count: Number of processes. If it is 1, nothing is ever sent.
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
        self._step, self._failed = 0, False
        self._closed = threading.Event()
        if store is None:
            return
        self._store = store
        self._heartbeat_s = min(HEARTBEAT_S, timeout_s / 4)  # several beats within any timeout
        self._thread = threading.Thread(
            target=_send_heartbeats,
            args=(store, f"{prefix}/alive/{index}", self._heartbeat_s, self._closed),
            name="templax-heartbeat",
            daemon=True,
        )
        self._thread.start()
        # Ends the thread, which has no reference to this object, if `close` is never called.
        weakref.finalize(self, self._closed.set)

    def tell_all(self, doing: str, value: bytes | None = None) -> bytes:
        """Returns process 0's value on every process.

        Args:
            doing: What the processes do, as the error says it: "writing" for "while writing".
            value: The value on process 0, of any size. Ignored on others.

        Raises:
            SaveError: On every process: one of them failed, died, or is at another step.
        """
        reply = (value or b"") if self.index == 0 else b""
        return self._take_step(doing, reply=reply)[1]

    def gather(self, doing: str, value: bytes) -> list[bytes]:
        """Returns the values of all processes, in order, on process 0, and an empty list on others.

        Args:
            doing: See `tell_all`.
            value: The value of this process, of any size.

        Raises:
            SaveError: See `tell_all`.
        """
        return self._take_step(doing, value=value)[0]

    def agree(self, doing: str, error: SaveError | None = None) -> None:
        """Returns if no process has an error.

        Args:
            doing: See `tell_all`.
            error: Why this process failed, or None.

        Raises:
            SaveError: On every process, the same: it names each process that failed, and why.
            AlreadyExists: Instead, if every process that failed has that error.
        """
        self._take_step(doing, error=error)

    def fail(self, error: BaseException) -> None:
        """Tells the others that this process gives up, without waiting for them. Never raises."""
        if self.count == 1 or self._failed or self._closed.is_set():
            return
        self._failed = True
        message = Message(self._path, "", error=RemoteError.from_exception(error))
        with contextlib.suppress(JaxRuntimeError):
            if self.index == 0:
                failure = self._describe_failure({0: message}, (), "")
                self._publish(Message(self._path, "", error=failure))
            else:
                self._send(message)

    def close(self) -> None:
        """Stops the heartbeats. The last process to call this deletes the keys. Never raises."""
        if self.count == 1 or self._closed.is_set():
            return
        self._closed.set()
        self._thread.join(self._heartbeat_s)
        with contextlib.suppress(JaxRuntimeError):
            if self._store.add(f"{self._prefix}/closed") == self.count:
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

    def _take_step(
        self,
        doing: str,
        *,
        value: bytes = b"",
        reply: bytes = b"",
        error: SaveError | None = None,
    ) -> tuple[list[bytes], bytes]:
        """Takes one step, of any kind.

        Args:
            doing: See `tell_all`.
            value: What this process sends to process 0.
            reply: What process 0 sends to all. Ignored on others.
            error: Why this process failed, or None.

        Returns:
            The values of all processes, on process 0 only; and the reply of process 0.
        """
        if self.count == 1:
            if error is not None:
                raise error
            return [value], reply
        if self._failed:
            raise SaveError("This save has failed before", file=self._path)
        key, values = self._step_key(), list[bytes]()
        own_error = None if error is None else RemoteError.from_exception(error)
        message = Message(self._path, doing, len(value), own_error)
        try:
            if self.index == 0:
                messages, failure = self._collect(message)
                if failure is None:
                    take = self._store.take
                    others = range(1, self.count)
                    values = [value, *(take(f"{key}/value/{i}", messages[i].size) for i in others)]
                    self._store.put(f"{key}/reply", reply)
                verdict = self._publish(Message(self._path, doing, len(reply), failure))
            else:
                self._store.put(f"{key}/value/{self.index}", value)
                self._send(message)
                verdict = self._await_verdict(doing)
                if verdict.error is None:
                    reply = self._store.take(f"{key}/reply", verdict.size)
        except JaxRuntimeError as cause:
            text = f"JAX's coordination service (process 0) failed while {doing}: "
            unreachable = SaveError(text + str(cause).partition("\n")[0], file=self._path)
            self.fail(unreachable)
            raise unreachable from cause
        self._step += 1
        if verdict.error is not None:
            self._failed = True
            raise verdict.error.to_exception() from error
        return values, reply

    def _step_key(self, ahead: int = 0) -> str:
        return f"{self._prefix}/{self._step + ahead}"

    def _send(self, message: Message) -> None:
        """Sends the message of this process for the current step; on other processes than 0."""
        data = msgspec.msgpack.encode(message)
        if not self._store.set(f"{self._step_key()}/message/{self.index}", data):
            # This process was interrupted after it had sent one, and now sends its error. Process 0
            # may have read the first already, so it reads this one at the next step.
            self._store.set(f"{self._step_key(1)}/message/{self.index}", data)

    def _publish(self, verdict: Message) -> Message:
        """Publishes a verdict, and returns it; or the earlier one, if there is one."""
        key = f"{self._step_key()}/verdict"
        while not self._store.set(key, msgspec.msgpack.encode(verdict)):
            earlier = self._store.get(key, POLL_S)
            if earlier is not None:
                return msgspec.msgpack.decode(earlier, type=Message)
        return verdict

    def _collect(self, own: Message) -> tuple[dict[int, Message], RemoteError | None]:
        """Waits on process 0 for the messages of all, or until it is clear that the save failed.

        Returns:
            The messages by process, and the error to publish. Without an error none is missing.
        """
        messages, liveness = {0: own}, _Liveness(self._timeout_s)
        key, deadline = f"{self._step_key()}/message", None
        while True:
            failure = self._describe_failure(messages, (), own.doing)
            failure = failure or describe_disagreement(messages, self._path)
            missing = [i for i in range(self.count) if i not in messages]
            if not missing:
                break
            if failure is not None:
                deadline = deadline or time.monotonic() + GRACE_S
                if time.monotonic() > deadline:
                    break
            # Blocks for one message only, but then lists all that have arrived.
            if self._store.get(f"{key}/{missing[0]}", POLL_S) is None:
                lost = liveness.find_lost(missing, self._list_heartbeats())
                if lost:
                    failure = self._describe_failure(messages, lost, own.doing)
                    break
            for index, data in self._store.by_process(key).items():
                messages[index] = msgspec.msgpack.decode(data, type=Message)
        if self._step > 0 and not missing:
            # A process that sent a message for this step no longer needs the previous one: it has
            # read the verdict and the reply, or has given up.
            self._store.delete(self._step_key(-1))
        return messages, failure

    def _await_verdict(self, doing: str) -> Message:
        """Waits for the verdict, on other processes than 0.

        If process 0 stops sending heartbeats, this process publishes the verdict that it was lost.
        Others may do the same: the first verdict counts.
        """
        liveness = _Liveness(self._timeout_s)
        while True:
            verdict = self._store.get(f"{self._step_key()}/verdict", self._heartbeat_s)
            if verdict is not None:
                return msgspec.msgpack.decode(verdict, type=Message)
            lost = liveness.find_lost([0], self._list_heartbeats())
            if lost:
                failure = self._describe_failure({}, lost, doing)
                return self._publish(Message(self._path, doing, error=failure))

    def _list_heartbeats(self) -> dict[int, bytes]:
        return self._store.by_process(f"{self._prefix}/alive")

    def _describe_failure(
        self, messages: Mapping[int, Message], lost: Sequence[tuple[int, float]], doing: str
    ) -> RemoteError | None:
        return describe_failure(messages, lost, count=self.count, path=self._path, doing=doing)


class _Liveness:
    """Tracks, during one step, when the heartbeat of each process last changed.

    Args:
        timeout_s: How long to wait for a process that has not begun the save.
    """

    def __init__(self, timeout_s: float):
        self._timeout_s = timeout_s
        self._start = time.monotonic()
        self._last_changes: dict[int, tuple[bytes, float]] = {}

    def find_lost(
        self, missing: Iterable[int], heartbeats: Mapping[int, bytes]
    ) -> list[tuple[int, float]]:
        """The processes that are considered lost, each with the limit in seconds that it exceeded.

        Args:
            missing: The processes that are waited for.
            heartbeats: The latest heartbeat of each process that has begun the save.
        """
        now, lost = time.monotonic(), list[tuple[int, float]]()
        for index in missing:
            last, since = self._last_changes.get(index, (b"", self._start))
            if heartbeats.get(index, last) != last:
                self._last_changes[index] = heartbeats[index], now
                continue
            limit_s = min(self._timeout_s, SILENT_S) if last else self._timeout_s
            if now - since > limit_s:
                lost.append((index, limit_s))
        return lost


def _send_heartbeats(store: JobStore, key: str, every_s: float, closed: threading.Event) -> None:
    """The body of a thread: changes the value of `key` until `closed` is set."""
    for n in itertools.count():
        with contextlib.suppress(JaxRuntimeError):
            store.set(key, b"%d" % n, overwrite=True)
        if closed.wait(every_s):
            return
