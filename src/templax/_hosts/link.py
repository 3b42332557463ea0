"""What connects the processes of a job: one object, made by the first call of several."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable

import msgspec

from .._jax.coordination import JobStore, count_processes, is_connected, process_index
from ..storage.open import spell_path
from .pairing import Pairing
from .presence import Presence

_MAX_TOLD = 8
"""How many of the latest questions that process 0 asked are kept in the store."""

_MAX_OPEN = 32
"""A session that began this many sessions ago counts as ended, even if a process never left it."""


class Link:
    """What connects this process with the others of its job, made once and kept.

    Attributes:
        store: The store that they share.
        index, count: The index of this process, and the number of processes.
        presence: Who is there.
        pairing: Which calls belong together.
        asked: How often this process has asked what process 0 finds.
    """

    def __init__(self, store: JobStore, index: int, count: int):
        self.store, self.index, self.count = store, index, count
        self.presence = Presence(store, index)
        self.pairing = Pairing(store, self.presence, index, count)
        self.asked: dict[str, int] = {}
        self._left: list[int] = []
        self._lock = threading.Lock()  # background saves leave sessions, too

    def leave_session(self, number: int) -> None:
        """Announces that this process left a session. Process 0 deletes sessions that all left."""
        self.store.set(f"templax/session/{number}/closed/{self.index}", b"")
        self.pairing.delete_used_keys()
        if self.index > 0:
            return
        with self._lock:
            for old in list(self._left):
                left = len(self.store.by_process(f"templax/session/{old}/closed"))
                if left == self.count or old <= number - _MAX_OPEN:  # a process died in it
                    self._left.remove(old)
                    self.store.delete(f"templax/session/{old}")
            self._left.append(number)


_link: Link | None = None


def connect_job(*, strict: bool) -> Link | None:
    """The connection with the other processes of the job; None if there are none.

    Args:
        strict: Whether to raise if there are several processes but `jax.distributed` does not
            connect them. Only then is JAX asked how many there are, which initializes its backends.

    Raises:
        SaveError: `jax.distributed` does not connect the processes.
    """
    global _link
    if not is_connected() and not (strict and count_processes() > 1):
        return None
    store = JobStore()
    count = count_processes()
    if count == 1:
        return None
    if _link is None or _link.store.client is not store.client:
        _link = Link(store, process_index(), count)
    return _link


def follow_process_0(what: str, make: Callable[[], bytes], wait_s: float) -> bytes | None:
    """What process 0 finds, on every process that asks at the same point of the program.

    Process 0 never waits. The others use its latest answer, but wait for a new one if they have
    already asked as often as process 0 has.

    Args:
        what: The question.
        make: Finds the answer, on process 0.
        wait_s: How long the others wait for process 0 to ask.

    Returns:
        The answer; None if this is the only process, or if process 0 does not ask.
    """
    link = connect_job(strict=False)
    if link is None:
        return None
    store, key = link.store, f"templax/told/{hashlib.sha256(what.encode()).hexdigest()[:16]}"
    asked = link.asked.get(what, 0)
    if link.index == 0:
        value = make()
        store.set(f"{key}/last", msgspec.msgpack.encode((asked, value)), overwrite=True)
        store.set(f"{key}/{asked}", b"", overwrite=True)
        store.delete(f"{key}/{asked - _MAX_TOLD}")
        link.asked[what] = asked + 1
        return value
    last = store.peek(f"{key}/last")
    if last is None or msgspec.msgpack.decode(last, type=tuple[int, bytes])[0] < asked:
        if store.get(f"{key}/{asked}", wait_s) is None:
            return None
        last = store.peek(f"{key}/last")
    if last is None:
        return None
    link.asked[what] = asked + 1
    return msgspec.msgpack.decode(last, type=tuple[int, bytes])[1]


def leave_run(path: str, why: str, after_s: float = 0.0) -> None:
    """Tells the other processes that this one makes no more calls about a run. Never raises.

    Args:
        path: The run.
        why: As in "process 1 of 2 left: KeyboardInterrupt".
        after_s: For how long the others wait for it all the same.
    """
    if _link is not None:
        _link.presence.announce_leaving(why, spell_path(path), after_s)
