"""The steps that the processes of a job take together, once they have met.

`agreement` describes the protocol, its keys and its invariants.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import msgspec

from .link import Link
from .messages import Message, RemoteError, describe_disagreement, describe_failure
from .pairing import GRACE_S, POLL_S


class Session:
    """The side of one process in one session. All methods raise `StoreError` if JAX's
    coordination service can't be reached.

    Args:
        link: The connection with the others.
        number: The number of the session.
        path: What the session is about, for errors.
        silent_s: How long a process may send no heartbeat.

    Attributes:
        index, count: The index of this process, and the number of processes.
        number: The number of the session.
        last: What was done in the last step that ended.
    """

    def __init__(self, link: Link, number: int, path: str, silent_s: float):
        self.index, self.count = link.index, link.count
        self._store, self._presence = link.store, link.presence
        self._path, self._silent_s, self._step = path, silent_s, 0
        self.number, self.last = number, ""
        self._prefix = f"templax/session/{number}"

    def take_step(
        self,
        doing: str,
        *,
        value: bytes,
        reply: bytes,
        error: RemoteError | None,
        heed_others: bool,
        choice: str = "",
    ) -> tuple[list[bytes], bytes, RemoteError | None]:
        """Takes one step, of any kind.

        Args:
            doing: What the processes do, as errors say it.
            value: What this process sends to process 0.
            reply: What process 0 sends to all. Ignored on others.
            error: Why this process failed, or None.
            heed_others: Whether process 0 waits for the messages of all before it decides.
            choice: See `Message`.

        Returns:
            The values of all processes, on process 0 only; the reply of process 0; and the error on
            which all agree, or None.
        """
        key, values = self._step_key(), list[bytes]()
        message = Message(doing, len(value), error, choice)
        if self.index == 0:
            failure = error
            if heed_others:
                messages, failure = self._collect(message)
                if failure is None:
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
        self._step, self.last = self._step + 1, doing
        return values, reply, verdict.error

    def give_up(self, error: RemoteError) -> None:
        """Tells the others that this process failed, without waiting for them."""
        if self.index == 0:
            verdict = Message("", error=self._describe_failure({0: error}, {}, ""))
            if self._publish(verdict).error is None:
                # It was interrupted after it had published that the step went well.
                self._step += 1
                self._publish(verdict)
        else:
            self._send(Message("", error=error))

    def find_end(self, wait_s: float | None) -> tuple[RemoteError | None, bytes | None]:
        """How the current step ended for the others, after this process gave up.

        Args:
            wait_s: How long to wait for the verdict; None for as long as it takes.

        Returns:
            The error on which all agreed; or what process 0 sent to all. Both None without a
            verdict.
        """
        if wait_s is None:
            verdict = self._await_verdict("giving up")
        else:
            data = self._store.get(f"{self._step_key()}/verdict", wait_s)
            if data is None:
                return None, None
            verdict = msgspec.msgpack.decode(data, type=Message)
        if verdict.error is not None:
            return verdict.error, None
        return None, self._store.take(f"{self._step_key()}/reply", verdict.size)

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
        lost = self._presence.find_absent(missing, "", began, self._silent_s)
        closed = self._store.by_process(f"{self._prefix}/closed")
        said = "verdict" if self.index else "message"
        for i in missing:
            key = f"{self._step_key()}/{said}" + (f"/{i}" if self.index == 0 else "")
            if i in closed and self._store.peek(key) is None:
                # It was interrupted once more when it was about to say that it failed.
                lost.setdefault(i, "left this call without a word")
        return lost

    def find_failure(self) -> RemoteError | None:
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
        path = self._path
        return describe_failure(failed, lost, count=self.count, path=path, doing=doing)
