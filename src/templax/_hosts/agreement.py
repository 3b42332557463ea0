"""JAX. How the processes of a job agree during a call that concerns all: a save, a restore.

They communicate over the key-value store that comes with `jax.distributed`. No device takes part,
so the main thread can train while a background thread saves.

A call begins when all processes have come to it (`pairing`). Then they are in a session, which is a
sequence of steps, `tell_all`, `gather` and `agree`, which every process takes in the same order. At
each step:

1. Every process sends one message: what it does, and its error if it failed.
2. Process 0 collects the messages and decides: continue, or one error for all.
3. Process 0 publishes this verdict, for which the others wait. Either all continue, or all raise
   the same error, after which the session takes no more steps.

The last step of a save is `announce`: process 0 has committed, and says so to whoever still
listens. No process can turn that into an error.

The keys in the store, below `templax/session/NUMBER`:

    STEP/value/PROCESS/OFFSET     value of a process, in chunks
    STEP/message/PROCESS          `Message`, set after the value
    STEP/reply/OFFSET             value of process 0 for all, in chunks
    STEP/verdict                  `Message`, set after the reply
    closed/PROCESS                the process has left the session

Invariants:

- A verdict is set once. Any process that tries to publish a second one follows the first instead,
  process 0 included. So all processes see the same verdict, whatever happens to any of them.
- A value is stored before the message that announces its size, so a receiver of the message never
  waits for a process that died in between.

What happens if a process ...

- fails between two steps: it sends its error in place of its next message. Process 0 instead
  publishes it as the verdict. Who is busy meanwhile hears of it by `check`.
- is interrupted after its message: the step may succeed for the others, and the next one fails.
- is slow: it is waited for as long as its heartbeats arrive, since storage may be slow.
- makes another call, or none: see `pairing`.
- dies (SIGKILL, out of memory, a lost machine) and is not process 0: process 0 misses its
  heartbeats after `SILENT_S`, and all others raise an error that names it. JAX misses it after
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
import os
import time
from collections.abc import Callable, Generator, Mapping
from types import TracebackType

import jax
import msgspec
from jax.errors import JaxRuntimeError

from .._core.arguments import check_company
from ..errors import SaveError, TemplaxError
from . import presence
from .link import Link, connect_job
from .messages import (
    Call,
    Message,
    RemoteError,
    describe_disagreement,
    describe_failure,
    read_number,
)
from .pairing import GRACE_S, LONE_S, POLL_S, Wait

TIMEOUT_S = 240.0
"""Default for how long to wait for a process that is alive and has not come to the call. Less than
the 300 s after which a process that ends aborts, because the others did not end with it."""

CHECK_S = 0.5
"""Time between two looks of a busy process at whether the others go on."""

MakeError = Callable[[RemoteError], TemplaxError]


def open_call(
    doing: str,
    path: str,
    *,
    step: int | None = None,
    timeout: float | None = None,
    alone: bool = False,
    strict: bool = True,
    make_error: MakeError = RemoteError.to_exception,
) -> Hosts:
    """Begins a call that all processes of the job make, each in the thread that decides to.

    Nothing is sent yet: `Hosts.join` waits for the others. An error until then is told to them.

    Args:
        doing: What the call does, as errors say it: "saving".
        path: The path concerned.
        step: The step concerned. By default the number at the end of the path, if it has one.
        timeout: Seconds to wait for a process that is alive and has not come to the call.
        alone: Whether to leave the others out, as if this were the only process.
        strict: Whether the call is refused if there is no way to communicate.
        make_error: Makes the exception that this process raises for an error of another one.

    Raises:
        UsageError: `timeout` or `alone` is invalid.
        SaveError: There are several processes, and no way to communicate with them.
    """
    check_company(timeout, alone)
    link = None if alone else connect_job(strict=strict)
    if link is not None:
        # Spelled the same on all processes, also where one of them goes through a link.
        path = os.path.realpath(path)
    call = Call(doing, path, read_number(path) if step is None else step)
    return Hosts(link, call, timeout, make_error)


class Hosts:
    """The processes of a job, for one call. Made by `open_call`, used by one thread at a time.

    An exception that leaves its `with` block is sent to the other processes.

    Attributes:
        index: The index of this process; 0 if it is on its own.
        count: Number of processes. If it is 1, nothing is ever sent.
    """

    def __init__(self, link: Link | None, call: Call, timeout: float | None, make_error: MakeError):
        self.index, self.count = 0, 1
        self._call, self._make_error = call, make_error
        self._joined = self.failed = self._closed = False
        self._step, self._checked = 0, 0.0
        if link is None:
            return
        self.index, self.count = jax.process_index(), jax.process_count()
        self._link, self._store = link, link.store
        self._call = link.pairing.count_call(call)
        self._prefix = ""
        timeout_s = TIMEOUT_S if timeout is None else timeout
        self._silent_s = max(min(timeout_s, presence.SILENT_S), 3 * presence.HEARTBEAT_S)
        self._timeout, self._timeout_s = timeout, timeout_s

    def join(
        self,
        facts: Mapping[str, str] | None = None,
        *,
        notes: Mapping[str, str] | None = None,
        values: bytes = b"",
        name_leaf: Callable[[int], str] = str,
        earlier: TemplaxError | None = None,
        local: bool = False,
    ) -> None:
        """Waits until all processes have come to this call.

        Args:
            facts, notes, values: See `Call`.
            name_leaf: The name of a leaf whose index is in `values`.
            earlier: The error of an earlier call that no caller has seen yet: it is raised now, on
                all processes.
            local: Whether the call concerns values that this process alone has all of, so that it
                may have been meant for this process only.

        Raises:
            TemplaxError: On every process that is in this call: they do not make the same call,
                one of them failed before, or is absent.
        """
        self._joined = True
        if self.count == 1:
            if earlier is not None:
                raise earlier
            return
        remote = None if earlier is None else RemoteError.from_exception(earlier)
        call = msgspec.structs.replace(
            self._call,
            facts=dict(facts or {}),
            notes=dict(notes or {}),
            values=values,
            earlier=remote,
        )
        lone_s = LONE_S if local and self._timeout is None else self._timeout_s
        wait = Wait(self._timeout_s, self._silent_s, lone_s)
        self.failed = True
        try:
            meeting = self._link.pairing.meet(call, wait, name_leaf)
            if meeting.error is None:
                self._prefix = self._link.open_session(meeting.session, self.count)
        except JaxRuntimeError as cause:
            raise self._describe_unreachable(cause, self._call.doing) from cause
        if meeting.error is not None:
            if (
                earlier is not None
                and remote is not None
                and meeting.error.what.startswith(remote.what)
            ):
                raise earlier
            raise self._make_error(meeting.error)
        self.failed = False

    def tell_all(self, doing: str, value: bytes | None = None) -> bytes:
        """Returns process 0's value on every process.

        Args:
            doing: What the processes do, as the error says it: "writing" for "while writing".
            value: The value on process 0, of any size. Ignored on others.

        Raises:
            TemplaxError: On every process: one of them failed, died, or is at another step.
        """
        reply = (value or b"") if self.index == 0 else b""
        return self._take_step(doing, reply=reply)[1]

    def gather(self, doing: str, value: bytes) -> list[bytes]:
        """Returns the values of all processes, in order, on process 0, and an empty list on others.

        Args:
            doing: See `tell_all`.
            value: The value of this process, of any size.

        Raises:
            TemplaxError: See `tell_all`.
        """
        return self._take_step(doing, value=value)[0]

    def agree(self, doing: str, error: TemplaxError | None = None) -> None:
        """Returns if no process has an error.

        Args:
            doing: See `tell_all`.
            error: Why this process failed, or None.

        Raises:
            TemplaxError: On every process: it names each process that failed, and why. One that
                all have is raised as it is.
        """
        self._take_step(doing, error=error)

    def announce(self, doing: str, value: bytes | None = None) -> bytes:
        """`tell_all`, but process 0 waits for nobody: what it says is done.

        Raises:
            TemplaxError: On the others: process 0 failed, or was lost.
        """
        reply = (value or b"") if self.index == 0 else b""
        return self._take_step(doing, reply=reply, heed_others=False)[1]

    def check(self) -> None:
        """Raises the error of another process that failed, if there is one; a look, no step.

        For a thread that is busy between two steps. Looks only every `CHECK_S`.
        """
        now = time.monotonic()
        if self.count == 1 or now - self._checked < CHECK_S:
            return
        self._checked = now
        with contextlib.suppress(JaxRuntimeError):
            error = self._find_failure()
            if error is not None:
                self.failed = True
                raise self._make_error(error)

    def settle(self, error: Exception, *, done: bool) -> tuple[Exception, bytes | None]:
        """What becomes of the call after an error of this process.

        If process 0 gives up, it removes what the others write to, and their own errors would only
        tell of that. If it has all that it needs of this process, the call may succeed without it.

        Args:
            error: The error.
            done: Whether this process has told process 0 all, so that only `announce` is to come.

        Returns:
            The error to raise: this one, or that of process 0 if it failed before; and what process
            0 announced, or None if it failed or is not that far.
        """
        if self.count == 1 or self._closed or self.failed or self.index == 0:
            return error, None
        self.fail(error)
        try:
            if done:
                verdict = self._await_verdict("committing")
                if verdict.error is None:
                    return error, self._store.take(f"{self._step_key()}/reply", verdict.size)
            else:
                data = self._store.get(f"{self._step_key()}/verdict", POLL_S)
                verdict = None if data is None else msgspec.msgpack.decode(data, type=Message)
        except JaxRuntimeError:
            return error, None
        agreed = None if verdict is None else verdict.error
        if agreed is not None and not agreed.what.startswith(f"Process {self.index} of"):
            return self._make_error(agreed), None
        return error, None

    def fail(self, error: BaseException) -> None:
        """Tells the others that this process gives up, without waiting for them. Never raises."""
        if self.count == 1 or self.failed or self._closed:
            return
        self.failed = True
        remote = RemoteError.from_exception(error)
        with contextlib.suppress(JaxRuntimeError):
            if not self._joined:
                self._link.pairing.give_up(self._call, remote)
            elif self.index == 0:
                self._publish(Message("", error=self._describe_failure({0: remote}, {}, "")))
            else:
                self._send(Message("", error=remote))

    def close(self) -> None:
        """Leaves the session. Never raises."""
        if self.count == 1 or self._closed:
            return
        self._closed = True
        if self._prefix:
            with contextlib.suppress(JaxRuntimeError):
                self._store.set(f"{self._prefix}/closed/{self.index}", b"")

    @contextlib.contextmanager
    def report_errors(self) -> Generator[None]:
        """Tells the others of an exception that leaves the block; otherwise the call stays open."""
        try:
            yield
        except BaseException as error:
            self.fail(error)
            self.close()
            raise

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
        error: TemplaxError | None = None,
        heed_others: bool = True,
    ) -> tuple[list[bytes], bytes]:
        """Takes one step, of any kind.

        Args:
            doing: See `tell_all`.
            value: What this process sends to process 0.
            reply: What process 0 sends to all. Ignored on others.
            error: Why this process failed, or None.
            heed_others: Whether process 0 waits for the messages of all before it decides.

        Returns:
            The values of all processes, on process 0 only; and the reply of process 0.
        """
        if self.count == 1:
            if error is not None:
                raise error
            return [value], reply
        if self.failed:
            raise SaveError("This call has failed before", file=self._call.path)
        key, values = self._step_key(), list[bytes]()
        own_error = None if error is None else RemoteError.from_exception(error)
        message = Message(doing, len(value), own_error)
        try:
            if self.index == 0:
                messages, failure = {0: message}, None
                if heed_others:
                    messages, failure = self._collect(message)
                if failure is None and heed_others:
                    take = self._store.take
                    others = range(1, self.count)
                    values = [value, *(take(f"{key}/value/{i}", messages[i].size) for i in others)]
                if failure is None:
                    self._store.put(f"{key}/reply", reply)
                verdict = self._publish(Message(doing, len(reply), failure))
            else:
                self._store.put(f"{key}/value/{self.index}", value)
                if heed_others:
                    self._send(message)
                verdict = self._await_verdict(doing)
                if verdict.error is None:
                    reply = self._store.take(f"{key}/reply", verdict.size)
        except JaxRuntimeError as cause:
            unreachable = self._describe_unreachable(cause, doing)
            self.fail(unreachable)
            raise unreachable from cause
        self._step += 1
        if verdict.error is not None:
            self.failed = True
            if error is not None and verdict.error.what == RemoteError.from_exception(error).what:
                raise error  # that of all, or of an existing path
            raise self._make_error(verdict.error) from error
        return values, reply

    def _describe_unreachable(self, cause: Exception, doing: str) -> SaveError:
        text = f"JAX's coordination service (process 0) failed while {doing}: "
        return SaveError(text + str(cause).partition("\n")[0], file=self._call.path)

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
        """Waits on process 0 for the messages of all, or until it is clear that the step failed.

        Returns:
            The messages by process, and the error to publish. Without an error none is missing.
        """
        messages, began = {0: own}, time.monotonic()
        key, deadline = f"{self._step_key()}/message", None
        while True:
            failure = self._describe_messages(messages, own.doing)
            failure = failure or describe_disagreement(messages, self._call.path)
            missing = [i for i in range(self.count) if i not in messages]
            if not missing:
                break
            if failure is not None:
                deadline = deadline or time.monotonic() + GRACE_S
                if time.monotonic() > deadline:
                    break
            # Blocks for one message only, but then lists all that have arrived.
            if self._store.get(f"{key}/{missing[0]}", POLL_S) is None:
                lost = self._find_lost(missing, began)
                if lost:
                    failure = self._describe_messages(messages, own.doing, lost)
                    break
            messages |= self._read_messages(key)
        if self._step > 0 and not missing:
            # A process that sent a message for this step no longer needs the previous one: it has
            # read the verdict and the reply, or has given up.
            self._store.delete(self._step_key(-1))
        return messages, failure

    def _read_messages(self, key: str) -> dict[int, Message]:
        found = self._store.by_process(key)
        return {i: msgspec.msgpack.decode(data, type=Message) for i, data in found.items()}

    def _await_verdict(self, doing: str) -> Message:
        """Waits for the verdict, on other processes than 0.

        If process 0 stops sending heartbeats, this process publishes the verdict that it was lost.
        Others may do the same: the first verdict counts.
        """
        began = time.monotonic()
        while True:
            verdict = self._store.get(f"{self._step_key()}/verdict", 4 * POLL_S)
            if verdict is not None:
                return msgspec.msgpack.decode(verdict, type=Message)
            lost = self._find_lost([0], began)
            if lost:
                return self._publish(Message(doing, error=self._describe_failure({}, lost, doing)))

    def _find_lost(self, missing: list[int], began: float) -> dict[int, str]:
        """Those whose heartbeats stopped, or whose program ended, and not those that left a run:
        a save in the background goes on without the thread that left.
        """
        return self._link.presence.find_absent(missing, "", began, self._silent_s)

    def _find_failure(self) -> RemoteError | None:
        """The verdict on the current step, if there is one and it is an error."""
        if self.index != 0:
            data = self._store.peek(f"{self._step_key()}/verdict")
            return None if data is None else msgspec.msgpack.decode(data, type=Message).error
        messages = self._read_messages(f"{self._step_key()}/message")
        failure = self._describe_messages(messages, "")
        if failure is None:
            return None
        return self._publish(Message("", error=failure)).error

    def _describe_messages(
        self, messages: Mapping[int, Message], doing: str, lost: Mapping[int, str] | None = None
    ) -> RemoteError | None:
        failed = {i: message.error for i, message in messages.items() if message.error is not None}
        return self._describe_failure(failed, lost or {}, doing)

    def _describe_failure(
        self, failed: Mapping[int, RemoteError], lost: Mapping[int, str], doing: str
    ) -> RemoteError | None:
        path = self._call.path
        return describe_failure(failed, lost, count=self.count, path=path, doing=doing)
