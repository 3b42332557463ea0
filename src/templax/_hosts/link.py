"""JAX. What connects the processes of a job: one object, made by the first call of several."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

import jax

from .._jax.coordination import JobStore, is_connected
from .pairing import Pairing
from .presence import Presence

_MAX_TOLD = 8
"""How many answers to the same question the store keeps, for processes that are behind."""


_MAX_OPEN = 32
"""How many sessions ago one is taken for ended, although somebody never left it."""


class Link:
    """What connects this process with the others of its job, made once and kept.

    Attributes:
        store: The store that they share.
        presence: Who is there.
        pairing: Which calls belong together.
        asked: How often this process has asked what process 0 finds.
    """

    def __init__(self, store: JobStore, index: int, count: int):
        self.store = store
        self.presence = Presence(store, index)
        self.pairing = Pairing(store, self.presence, index, count)
        self.asked: dict[str, int] = {}
        self._open: list[int] = []

    def open_session(self, number: int, count: int) -> str:
        """The prefix of the keys of a session. Process 0 deletes those of ended ones."""
        if jax.process_index() == 0:
            for old in list(self._open):
                left = len(self.store.by_process(f"templax/session/{old}/closed"))
                if left == count or old <= number - _MAX_OPEN:  # somebody died in it
                    self._open.remove(old)
                    self.store.delete(f"templax/session/{old}")
            self._open.append(number)
        return f"templax/session/{number}"


_link: Link | None = None


def connect_job(*, strict: bool) -> Link | None:
    """The connection with the other processes of the job; None if there are none.

    Args:
        strict: Whether to raise if there are several processes and no way to communicate. Only then
            JAX is asked how many there are, which initializes its backends.

    Raises:
        SaveError: There is no way to communicate.
    """
    global _link
    if not is_connected() and not (strict and jax.process_count() > 1):
        return None
    store = JobStore()
    count = jax.process_count()
    if count == 1:
        return None
    if _link is None or _link.store.client is not store.client:
        _link = Link(store, jax.process_index(), count)
    return _link


def follow_process_0(what: str, make: Callable[[], bytes], wait_s: float) -> bytes | None:
    """What process 0 finds, on every process that asks at the same point of the program.

    Process 0 waits for nobody. The others take its latest answer, and wait for one if they have
    asked more often than process 0.

    Args:
        what: What is asked.
        make: Finds it, on process 0.
        wait_s: How long the others wait for process 0 to ask.

    Returns:
        None if there are no other processes, or if process 0 does not ask.
    """
    link = connect_job(strict=False)
    if link is None:
        return None
    store, key = link.store, f"templax/told/{hashlib.sha256(what.encode()).hexdigest()[:16]}"
    asked = link.asked.get(what, 0)
    if jax.process_index() == 0:
        value = make()
        store.set(f"{key}/value", value, overwrite=True)
        store.set(f"{key}/{asked}", b"", overwrite=True)
        store.delete(f"{key}/{asked - _MAX_TOLD}")
        link.asked[what] = asked + 1
        return value
    # A process that is far behind finds no such key any more, but a later one.
    if store.get(f"{key}/{asked}", wait_s) is None and store.peek(f"{key}/value") is None:
        return None
    link.asked[what] = asked + 1
    return store.peek(f"{key}/value")


def leave_run(path: str, why: str, after_s: float = 0.0) -> None:
    """Tells the other processes that this one makes no more calls about a run. Never raises.

    Args:
        path: The run.
        why: As in "process 1 of 2 left: KeyboardInterrupt".
        after_s: For how long the others wait for it all the same.
    """
    if _link is not None:
        _link.presence.announce_leaving(why, os.path.realpath(path), after_s)
