"""How the processes of a job agree during a call that concerns all: a save, a restore.

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
import time
from collections.abc import Callable, Generator, Mapping
from types import TracebackType

import msgspec

from .._core.arguments import check_company
from .._jax.coordination import StoreError
from ..errors import SaveError, TemplaxError
from ..storage.open import spell_path
from . import presence
from .link import Link, connect_job
from .messages import Call, RemoteError, read_number
from .pairing import LONE_S, POLL_S, Meeting, Wait
from .session import Session

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
        strict: Whether to raise if `jax.distributed` does not connect the processes. If not, this
            process then makes the call on its own.
        make_error: Makes the exception that this process raises for an error of another one.

    Raises:
        UsageError: `timeout` or `alone` is invalid.
        SaveError: There are several processes, and `jax.distributed` does not connect them.
    """
    check_company(timeout, alone)
    link = None if alone else connect_job(strict=strict)
    if link is not None:
        # Spelled the same on all processes, also where one of them goes through a link.
        path = spell_path(path)
    number = read_number(path) if step is None else None
    call = Call(doing, path, step if number is None else number, in_path=number is not None)
    return Hosts(link, call, timeout, make_error)


class Hosts:
    """The processes of a job, for one call. Made by `open_call`, used by one thread at a time.

    An exception that leaves its `with` block is sent to the other processes.

    Attributes:
        index: The index of this process; 0 if it is on its own.
        count: Number of processes. If it is 1, nothing is ever sent.
        failed: Whether the call has failed, on this process or another.
    """

    def __init__(self, link: Link | None, call: Call, timeout: float | None, make_error: MakeError):
        self.index, self.count = 0, 1
        self._call, self._make_error = call, make_error
        self._joined = self.failed = self._closed = False
        self._session: Session | None = None
        self._checked = 0.0
        if link is None:
            return
        self.index, self.count, self._link = link.index, link.count, link
        self._call = link.pairing.count_call(call)
        timeout_s = TIMEOUT_S if timeout is None else timeout
        self._silent_s = max(min(timeout_s, presence.SILENT_S), 3 * presence.HEARTBEAT_S)
        self._timeout, self._timeout_s = timeout, timeout_s

    def join(
        self,
        facts: Mapping[str, str] | None = None,
        *,
        notes: Mapping[str, str] | None = None,
        leaves: bytes = b"",
        values: bytes = b"",
        name_leaf: Callable[[int], str] = str,
        earlier: TemplaxError | None = None,
        local: bool = False,
        make_reply: Callable[[], bytes] = bytes,
    ) -> bytes:
        """Waits until all processes have come to this call.

        Args:
            facts, notes, leaves, values: See `Call`.
            name_leaf: The name of a leaf by its index.
            earlier: The error of an earlier call that no caller has seen yet: it is raised now, on
                all processes.
            local: Whether the call concerns values that this process alone has all of, so that it
                may have been meant for this process only.
            make_reply: Called on process 0 once all have come.

        Returns:
            What `make_reply` returned on process 0.

        Raises:
            TemplaxError: On every process that is in this call: they do not make the same call,
                one of them failed before, or is absent.
        """
        self._joined = True
        if self.count == 1:
            if earlier is not None:
                raise earlier
            return make_reply()
        remote = None if earlier is None else RemoteError.from_exception(earlier)
        call = msgspec.structs.replace(
            self._call,
            facts=dict(facts or {}),
            notes=dict(notes or {}),
            leaves=leaves,
            values=values,
            earlier=remote,
        )
        lone_s = LONE_S if local and self._timeout is None else self._timeout_s
        wait = Wait(self._timeout_s, self._silent_s, lone_s)
        self.failed = True
        meeting = Meeting()
        try:
            pairing, path = self._link.pairing, self._call.path
            if self.index == 0:
                meeting = pairing.lead(call, wait, name_leaf, make_reply)
            else:
                meeting = pairing.follow(call, wait)
            if meeting.error is None:
                self._session = Session(self._link, meeting.session, path, self._silent_s)
                self.failed = False
        except StoreError as cause:
            raise self._describe_unreachable(cause, self._call.doing) from cause
        except BaseException as error:
            if self._session is None:
                self._link.pairing.fail_session(meeting.session, RemoteError.from_exception(error))
            raise
        if meeting.error is not None:
            if earlier is not None and meeting.error.earlier:
                raise earlier
            raise self._make_error(meeting.error)
        return meeting.reply

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

    def agree(self, doing: str, error: TemplaxError | None = None, choice: str = "") -> None:
        """Returns if no process has an error, and all have made the same choice.

        Args:
            doing: See `tell_all`.
            error: Why this process failed, or None.
            choice: A digest of what this process has chosen, for all to do.

        Raises:
            TemplaxError: On every process: it names each process that failed, and why. One that
                all have is raised as it is.
        """
        self._take_step(doing, error=error, choice=choice)

    def announce(self, doing: str, value: bytes | None = None, *, again: bool = False) -> bytes:
        """`tell_all`, but process 0 waits for nobody: what it says is done.

        Args:
            doing, value: See `tell_all`.
            again: Whether an interrupt may have come after process 0 said it.

        Raises:
            TemplaxError: On the others: process 0 failed, or was lost.
        """
        reply = (value or b"") if self.index == 0 else b""
        if again and self._session is not None and self._session.last == doing:
            return reply
        return self._take_step(doing, reply=reply, heed_others=False)[1]

    def check(self) -> None:
        """Raises the error of another process that failed, if there is one; a look, no step.

        For a thread that is busy between two steps. Looks only every `CHECK_S`.
        """
        now = time.monotonic()
        if self.count == 1 or now - self._checked < CHECK_S:
            return
        self._checked = now
        with contextlib.suppress(StoreError):
            error = None if self._session is None else self._session.find_failure()
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
        if self._session is None or self._closed or self.failed or self.index == 0:
            return error, None
        self.fail(error)
        try:
            agreed, announced = self._session.find_end(None if done else POLL_S)
        except StoreError:
            return error, None
        if agreed is not None and agreed.process != self.index:
            return self._make_error(agreed), None
        return error, announced

    def fail(self, error: BaseException) -> None:
        """Tells the others that this process gives up, without waiting for them. Never raises."""
        if self.count == 1 or self.failed or self._closed:
            return
        self.failed = True
        remote = RemoteError.from_exception(error)
        with contextlib.suppress(StoreError):
            if not self._joined:
                self._link.pairing.give_up(self._call, remote)
            elif self._session is not None:
                self._session.give_up(remote)

    def close(self) -> None:
        """Leaves the session. Never raises."""
        if self.count == 1 or self._closed:
            return
        self._closed = True
        with contextlib.suppress(StoreError):
            if self._session is None:
                self._link.pairing.delete_used_keys()
            else:
                self._link.leave_session(self._session.number)

    @contextlib.contextmanager
    def report_errors(self) -> Generator[None]:
        """Tells the others of an exception that leaves the block; otherwise the call stays open."""
        try:
            yield
        except BaseException as error:
            try:
                self.fail(error)
            finally:  # which tells the others, too, if telling them why was interrupted
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
        try:
            if error is not None:
                self.fail(error)
        finally:
            self.close()

    def _take_step(
        self,
        doing: str,
        *,
        value: bytes = b"",
        reply: bytes = b"",
        error: TemplaxError | None = None,
        heed_others: bool = True,
        choice: str = "",
    ) -> tuple[list[bytes], bytes]:
        """Takes one step, of any kind.

        Args:
            doing: See `tell_all`.
            value: What this process sends to process 0.
            reply: What process 0 sends to all. Ignored on others.
            error: Why this process failed, or None.
            heed_others: Whether process 0 waits for the messages of all before it decides.
            choice: See `agree`.

        Returns:
            The values of all processes, on process 0 only; and the reply of process 0.
        """
        if self.count == 1:
            if error is not None:
                raise error
            return [value], reply
        if self.failed or self._session is None:
            raise SaveError("This call has failed before", file=self._call.path)
        own = None if error is None else RemoteError.from_exception(error)
        try:
            values, reply, failure = self._session.take_step(
                doing,
                value=value,
                reply=reply,
                error=own,
                heed_others=heed_others,
                choice=choice,
            )
        except StoreError as cause:
            unreachable = self._describe_unreachable(cause, doing)
            self.fail(unreachable)
            raise unreachable from cause
        if failure is not None:
            self.failed = True
            if error is not None and own is not None and failure.what == own.what:
                raise error  # that of all, or of an existing path
            raise self._make_error(failure) from error
        return values, reply

    def _describe_unreachable(self, cause: Exception, doing: str) -> SaveError:
        text = f"JAX's coordination service (process 0) failed while {doing}: "
        return SaveError(text + str(cause).partition("\n")[0], file=self._call.path)
