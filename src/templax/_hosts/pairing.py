"""How the processes of a job meet: which call of one process belongs to which of another.

Calls are paired by what they are, not by a counter: a process may leave a call out, fail before it
meets the others, or make another one instead.

1. Each process other than 0 offers its call, and waits for the answer.
2. Process 0, in a call of its own, looks at the offers of all. If all are the call that it makes,
   it answers each with the number of a new session, in which they take their steps together.
   Otherwise nobody gets a session: see `judge_offers`.

The keys in the store:

    templax/offer/PROCESS/NUMBER     `Call`, until process 0 has answered it
    templax/answer/PROCESS/NUMBER    `Answer`, set once
    templax/refused                  the last `Refusal`s of process 0

Whoever sets an answer first decides: process 0, or the process that made the offer, which thereby
withdraws it. So no process can begin a session that another one has given up.

`delete_used_keys` deletes keys after the call has ended. Before that, other processes may be
waiting for them.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from .._jax.coordination import JobStore, StoreError
from .messages import (
    Answer,
    Call,
    Message,
    Refusal,
    RemoteError,
    describe_failure,
    name_processes,
)
from .offers import (
    Identity,
    Offer,
    describe_different_values,
    find_different_leaf,
    find_different_value,
    judge_offers,
)
from .presence import Presence

POLL_S = 0.25
"""How long a process waits for one key before it looks at the others."""

GRACE_S = 1.0
"""How long process 0 waits for more errors after the first: a full disk is full for all."""

LONE_S = 5.0
"""How long process 0 waits for the others in a call that may be meant for itself alone."""

_MAX_REMEMBERED = 32
"""Calls that failed and are remembered, so that processes that come later hear of it."""

_MAX_COUNTED = 1024
"""Different calls that are counted: a run has a new one at each step."""

_log = logging.getLogger("templax")


class Wait(NamedTuple):
    """How long a process waits for the others to come to a call, in seconds.

    Attributes:
        timeout_s: For a process that is alive, and does something else.
        silent_s: For the heartbeat of a process that has begun a call before.
        lone_s: For a process that has never begun one.
    """

    timeout_s: float
    silent_s: float
    lone_s: float


class Meeting(NamedTuple):
    """How a meeting ended.

    Attributes:
        session: The number of the session that begins; -1 if there is an error.
        error: Why the call fails.
        reply: What process 0 told all.
    """

    session: int = -1
    error: RemoteError | None = None
    reply: bytes = b""


class Pairing:
    """The side of one process in all meetings of a job.

    Args:
        store: The store that the processes share.
        presence: Who is there.
        index, count: The index of this process, and the number of processes.
    """

    def __init__(self, store: JobStore, presence: Presence, index: int, count: int):
        self._store, self._presence = store, presence
        self._index, self._count = index, count
        self._calls: dict[Identity, int] = {}
        self._numbers, self._sessions = itertools.count(), itertools.count()
        self._answered: dict[int, int] = {}  # by process, the number of its last answered offer
        self._refused: dict[int, deque[Identity]] = {}
        self._refusals: list[Refusal] = []
        self._heard: set[tuple[Identity, int]] = set()
        self._stale: list[str] = []  # answers to offers that process 0 will not look at
        self._broken: list[str] = []  # sessions that ended before they began
        self._used: list[str] = []  # keys to delete
        self._lock = threading.RLock()  # a process makes one call at a time

    def count_call(self, call: Call) -> Call:
        """The call with its `number`."""
        number = self._calls.pop(call.identity, 0)
        self._calls[call.identity] = number + 1
        if len(self._calls) > _MAX_COUNTED:
            del self._calls[next(iter(self._calls))]
        return msgspec.structs.replace(call, number=number)

    def give_up(self, call: Call, error: RemoteError) -> None:
        """Tells the others that this process failed in a call before it met them."""
        if self._index > 0:
            self._offer(msgspec.structs.replace(call, error=error, leaves=b"", values=b""))
            return
        for index, offer in self._read_offers().items():
            if offer.call.identity == call.identity and offer.call.error is not None:
                self._answer(index, offer, Answer())  # it failed there, too
        self._refuse(call, self._describe({0: error}, call) or error)

    def fail_session(self, session: int, error: RemoteError) -> None:
        """Ends a session that this process can't begin because it was interrupted.

        Args:
            session: The number of the session; if it is -1, nothing is done.
            error: Why.
        """
        if session < 0:
            return
        data = msgspec.msgpack.encode(Message("", error=error))
        end = "verdict" if self._index == 0 else f"message/{self._index}"
        self._store.set(f"templax/session/{session}/0/{end}", data)

    def delete_used_keys(self) -> None:
        """Deletes the offers and answers that nobody needs any more."""
        used, self._used = self._used, []
        for key in used:
            self._store.delete(key)

    # --- process 0

    def lead(
        self,
        call: Call,
        wait: Wait,
        name_leaf: Callable[[int], str],
        make_reply: Callable[[], bytes],
    ) -> Meeting:
        """On process 0, waits until all processes are in the call.

        Args:
            call: The call of this process.
            wait: How long to wait.
            name_leaf: Returns the name of a leaf, given its index.
            make_reply: Makes what process 0 tells the others, once all have come.
        """
        with self._lock:
            try:
                self._presence.announce_return(call.path)
                self._retract_refusal(call)
                offers, ahead, error = self._await_offers(call, wait)
                error = error or self._find_difference(call, offers, name_leaf)
                if error is None:
                    answer = self._make_answer(call, offers, make_reply)
                    error = self._begin_session(answer, call, offers)
                    if error is None:
                        return Meeting(answer.session, reply=answer.reply)
            except BaseException as failed:
                if not isinstance(failed, StoreError):
                    self.give_up(call, RemoteError.from_exception(failed))
                raise
            for index, offer in offers.items():
                if index not in ahead:
                    refused = self._refused.setdefault(index, deque(maxlen=_MAX_REMEMBERED))
                    refused.append(offer.call.identity)
                    self._answer(index, offer, Answer(error=error))
            self._refuse(call, error)
            return Meeting(error=error)

    def _await_offers(
        self, call: Call, wait: Wait
    ) -> tuple[dict[int, Offer], frozenset[int], RemoteError | None]:
        """Waits for the offers of all processes, or until it is clear that the call fails.

        Returns:
            The offers so far, the processes that are ahead, and the error if the call fails.
        """
        began, deadline = time.monotonic(), None
        while True:
            offers = self._read_offers()
            failures = {refusal.identity: refusal.error for refusal in self._refusals}
            judged = judge_offers(call, offers, self._count, self._refused, failures)
            for index, past in judged.past.items():
                self._answer(index, offers[index], Answer(error=past))
            if judged.past:
                continue
            missing = [i for i in range(1, self._count) if i not in offers]
            if not missing or judged.at_once:
                return offers, judged.ahead, judged.error
            if judged.error is not None:
                deadline = deadline or time.monotonic() + GRACE_S
                if time.monotonic() > deadline:
                    return offers, judged.ahead, judged.error
            following = _offer_key(missing[0], self._answered.get(missing[0], -1) + 1)
            if self._store.get(following, POLL_S) is None and judged.error is None:
                absence = self._find_absence(call, missing, began, wait)
                if absence is not None:
                    return offers, judged.ahead, absence

    def _read_offers(self) -> dict[int, Offer]:
        """The first offer of each process that was not answered yet."""
        offers: dict[int, Offer] = {}
        for index, number, data in self._store.by_process_and_number("templax/offer"):
            first = offers.get(index)
            if number > self._answered.get(index, -1) and (not first or number < first.number):
                offers[index] = Offer(number, msgspec.msgpack.decode(data, type=Call))
        return offers

    def _find_difference(
        self, call: Call, offers: Mapping[int, Offer], name_leaf: Callable[[int], str]
    ) -> RemoteError | None:
        for index, (_, other) in offers.items():
            error = find_different_leaf(call, other, index, name_leaf)
            if error is not None:
                return error
            leaf = find_different_value(call, other)
            if leaf is not None:
                return describe_different_values(name_leaf(leaf), index, call.path)
            notes = [name for name, note in call.notes.items() if other.notes.get(name) != note]
            if notes:
                text = "process %d passed other %s than process 0, whose are taken, when %s"
                _log.warning(text, index, " and ".join(notes), call)
        return None

    def _make_answer(
        self, call: Call, offers: Mapping[int, Offer], make_reply: Callable[[], bytes]
    ) -> Answer:
        try:
            return Answer(next(self._sessions), reply=make_reply())
        except BaseException as failed:
            error = self._describe({0: RemoteError.from_exception(failed)}, call)
            for index, offer in offers.items():
                self._answer(index, offer, Answer(error=error))
            raise

    def _begin_session(
        self, answer: Answer, call: Call, offers: Mapping[int, Offer]
    ) -> RemoteError | None:
        """Answers all offers; the error of a process that has withdrawn its own meanwhile."""
        failed: dict[int, RemoteError] = {}
        try:
            for index, offer in offers.items():
                withdrawn = self._answer(index, offer, answer)
                if withdrawn is not None:
                    failed[index] = withdrawn
        except BaseException as error:
            if not isinstance(error, StoreError):
                self.fail_session(answer.session, RemoteError.from_exception(error))
            raise
        error = self._describe(failed, call)
        if error is not None:  # those who have their answer wait for the first verdict
            self.fail_session(answer.session, error)
            self._broken.append(f"templax/session/{answer.session}")
            return error
        self._used += self._broken  # all have come since, and so have heard of it
        self._broken.clear()
        return None

    def _answer(self, index: int, offer: Offer, answer: Answer) -> RemoteError | None:
        """Answers an offer, unless it is withdrawn: then the error of that process."""
        if self._answered.get(index, -1) >= offer.number:
            return None
        self._answered[index] = offer.number
        self._used.append(_offer_key(index, offer.number))
        if offer.call.error is not None:  # nobody waits for the answer
            return None
        key = _answer_key(index, offer.number)
        if self._store.set(key, msgspec.msgpack.encode(answer)):
            return None
        found = self._store.get(key, POLL_S)
        self._used.append(key)
        withdrawn = Answer() if found is None else msgspec.msgpack.decode(found, type=Answer)
        return withdrawn.error or RemoteError("it gave up")

    def _refuse(self, call: Call, error: RemoteError) -> None:
        """Lets processes that come to the call later hear why process 0 gave it up."""
        refusal = Refusal(call.identity, call.number, error)
        self._publish_refusals([*self._refusals_of_others(call), refusal])

    def _retract_refusal(self, call: Call) -> None:
        """Takes back what process 0 said of an earlier try of the call: it tries again."""
        kept = self._refusals_of_others(call)
        if len(kept) < len(self._refusals):
            self._publish_refusals(kept)

    def _refusals_of_others(self, call: Call) -> list[Refusal]:
        return [refusal for refusal in self._refusals if refusal.identity != call.identity]

    def _publish_refusals(self, refusals: list[Refusal]) -> None:
        self._refusals = refusals[-_MAX_REMEMBERED:]
        with contextlib.suppress(StoreError):
            data = msgspec.msgpack.encode(self._refusals)
            self._store.set("templax/refused", data, overwrite=True)

    # --- the other processes

    def follow(self, call: Call, wait: Wait) -> Meeting:
        """On a process other than 0, waits until all processes are in the call.

        Args:
            call: The call of this process.
            wait: How long to wait.
        """
        with self._lock:
            self._presence.announce_return(call.path)
            began, number = time.monotonic(), -1
            try:
                number = self._offer(call)
                answer = self._await_answer(call, number, began, wait)
            except BaseException as error:
                if number >= 0 and not isinstance(error, StoreError):
                    remote = RemoteError.from_exception(error)
                    self.fail_session(self._withdraw(number, remote).session, remote)
                raise
            if not answer.withdrawn:  # else process 0 deletes it, when it comes
                self._used += [*self._stale, _answer_key(self._index, number)]
                self._stale.clear()
            return Meeting(answer.session, answer.error, answer.reply)

    def _offer(self, call: Call) -> int:
        """Offers a call; returns the number of the offer."""
        number = next(self._numbers)
        self._store.set(_offer_key(self._index, number), msgspec.msgpack.encode(call))
        return number

    def _await_answer(self, call: Call, number: int, began: float, wait: Wait) -> Answer:
        """The answer of process 0; or that of this process itself, if it can't wait any longer."""
        while True:
            data = self._store.get(_answer_key(self._index, number), 2 * POLL_S)
            if data is not None:
                return msgspec.msgpack.decode(data, type=Answer)
            error = self._find_refusal(call)
            if error is not None:
                answer = self._withdraw(number, error)
                # Process 0 is past this call, and must not find the offer in its next call.
                self._store.delete(_offer_key(self._index, number))
                self._stale.append(_answer_key(self._index, number))
                return answer
            error = self._find_absence(call, [0], began, wait)
            if error is not None:
                return self._withdraw(number, error)

    def _withdraw(self, number: int, error: RemoteError) -> Answer:
        """Withdraws an offer, or returns the answer that was faster."""
        key, answer = _answer_key(self._index, number), Answer(error=error, withdrawn=True)
        if self._store.set(key, msgspec.msgpack.encode(answer)):
            return answer
        data = self._store.get(key, POLL_S)
        return answer if data is None else msgspec.msgpack.decode(data, type=Answer)

    def _find_refusal(self, call: Call) -> RemoteError | None:
        """What process 0 said of this call before it went on, unless this process heard it."""
        data = self._store.peek("templax/refused")
        for refusal in msgspec.msgpack.decode(data, type=list[Refusal]) if data else ():
            mark = refusal.identity, refusal.number
            applies = refusal.identity == call.identity and call.number <= refusal.number
            if applies and mark not in self._heard:
                self._heard.add(mark)
                return refusal.error
        return None

    # --- both

    def _describe(self, failed: Mapping[int, RemoteError], call: Call) -> RemoteError | None:
        return describe_failure(failed, {}, count=self._count, path=call.path, doing=call.doing)

    def _find_absence(
        self, call: Call, missing: list[int], began: float, wait: Wait
    ) -> RemoteError | None:
        """The error for processes that can't be waited for any longer; None if all can."""
        absent = self._presence.find_absent(missing, call.path, began, wait.silent_s)
        # Process 0 gives up first, so that what it says reaches the others before they do.
        waited = time.monotonic() - began - (0 if self._index == 0 else 2 * GRACE_S)
        doing = f"process {self._index} is {call}"
        if absent or waited > wait.timeout_s:
            late = dict.fromkeys(missing, f"did not come within {wait.timeout_s:g} s")
            return describe_failure(
                {}, absent or late, count=self._count, path=call.path, doing=doing
            )
        if waited > wait.lone_s and not any(self._presence.has_begun(i) for i in missing):
            return RemoteError(
                f"Expected all {self._count} processes of this job, found {name_processes(missing)}"
                f" absent for {wait.lone_s:g} s while {doing}",
                places={
                    "file": call.path,
                    "hint": "make this call on every process; or pass alone=True, if it concerns"
                    " this process only",
                },
            )
        return None


def _offer_key(index: int, number: int) -> str:
    return f"templax/offer/{index}/{number}"


def _answer_key(index: int, number: int) -> str:
    return f"templax/answer/{index}/{number}"
