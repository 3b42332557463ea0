"""What the processes of a job know of each other: who is alive, and who has left.

The keys in the store:

    templax/alive/PROCESS    heartbeat: a counter
    templax/left/PROCESS     `Notice`: the process takes part in nothing any more, and why

Only the clock of the process that waits is used: a heartbeat is a value that must change, not a
time.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from types import FrameType

import msgspec

from .._jax.coordination import JobStore, StoreError

SILENT_S = 60.0
"""How long a process may send no heartbeat before it is given up. Less than the 100 s after which
JAX aborts every process, since by then none could raise an error or clean up."""

HEARTBEAT_S = 5.0
"""Time between two heartbeats: 1,000 processes burden the store with 200 calls a second."""

LAST_S = 10.0
"""How long the end of the program waits for a heartbeat that is being sent."""


class Notice(msgspec.Struct, frozen=True, array_like=True):
    """Why a process takes no further part.

    Attributes:
        why: As in "process 1 of 2 left: KeyboardInterrupt".
        path: The run that it left; empty if it is everything.
        after_s: Seconds for which the others wait anyway, since it may open the run again.
    """

    why: str
    path: str = ""
    after_s: float = 0.0


class Presence:
    """Heartbeats of this process, and those of the others as this one has seen them."""

    def __init__(self, store: JobStore, index: int):
        self._store, self._index = store, index
        self._seen: dict[int, tuple[bytes, float]] = {}
        self._lost: set[int] = set()
        self._heard: dict[int, bytes] = {}
        self._left: str | None = None
        self._send_heartbeat(0)  # before any offer, or a death soon after could not be noticed
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._send_heartbeats, name="templax-heartbeat")
        self._thread.daemon = True
        self._thread.start()
        # JAX's own callback, which disconnects the process, was registered before and runs later.
        atexit.register(self._leave_at_exit)
        self._catch_sigterm()

    def _send_heartbeats(self) -> None:
        for n in itertools.count(1):
            if self._ended.wait(HEARTBEAT_S):
                return
            self._send_heartbeat(n)

    def _send_heartbeat(self, n: int) -> None:
        with contextlib.suppress(StoreError):
            self._store.set(f"templax/alive/{self._index}", b"%d" % n, overwrite=True)

    def announce_leaving(self, why: str, path: str = "", after_s: float = 0.0) -> None:
        """Tells the others, now and whenever they ask, that this process left. Never raises."""
        self._left = path
        notice = msgspec.msgpack.encode(Notice(why, path, after_s))
        with contextlib.suppress(StoreError):
            self._store.set(f"templax/left/{self._index}", notice, overwrite=True)

    def announce_return(self, path: str) -> None:
        """Takes the notice back, if it is about this path: the process takes part again."""
        if self._left in ("", path):
            self._left = None
            self._store.delete(f"templax/left/{self._index}")

    def find_absent(
        self, indices: Iterable[int], path: str, began: float, silent_s: float
    ) -> dict[int, str]:
        """The processes that can't be waited for, each with what is known of it.

        Args:
            indices: The processes that are waited for.
            path: What they are waited for to do concerns this path.
            began: When this process began to wait, by `time.monotonic`.
            silent_s: How long a process may send no heartbeat.
        """
        asked = list(indices)
        if asked == [0]:
            beats = self._peek("alive")
            notices = self._peek("left")
        else:
            beats = self._store.by_process("templax/alive")
            notices = self._store.by_process("templax/left")
        absent: dict[int, str] = {}
        for index in asked:
            why = self._read_notice(index, notices.get(index), path, began)
            if why is not None:
                absent[index] = why
                continue
            if self._is_lost(index, beats.get(index), began, silent_s):
                absent[index] = f"did not answer within {silent_s:g} s"
        return absent

    def _read_notice(self, index: int, data: bytes | None, path: str, began: float) -> str | None:
        """Why a process is not waited for, if it has left.

        A process that left a run may come back. So a notice is heard once, after which the process
        is waited for as any other.
        """
        if data is None or self._heard.get(index) == data:
            return None
        notice = msgspec.msgpack.decode(data, type=Notice)
        if notice.path not in ("", path) or time.monotonic() - began < notice.after_s:
            return None
        if notice.path:
            self._heard[index] = data
        return notice.why

    def _peek(self, what: str) -> dict[int, bytes]:
        value = self._store.peek(f"templax/{what}/0")
        return {} if value is None else {0: value}

    def _is_lost(self, index: int, beat: bytes | None, began: float, silent_s: float) -> bool:
        now = time.monotonic()
        last, since = self._seen.get(index, (b"", now))
        if beat is not None and beat != last:
            self._seen[index] = beat, now
            self._lost.discard(index)
            return False
        if index in self._lost:  # it is not waited for again
            return True
        # Two looks in this call at least: the whole machine may have been asleep before it.
        since = max(since, began - silent_s + min(2 * HEARTBEAT_S, silent_s / 2))
        if last and now - since > silent_s:
            self._lost.add(index)
            return True
        return False

    def has_begun(self, index: int) -> bool:
        """Whether a process has ever sent a heartbeat, as far as this one has looked."""
        return index in self._seen

    def _leave_at_exit(self) -> None:
        error = getattr(sys, "last_value", None)
        cause = "" if error is None else f" by {''.join(traceback.format_exception_only(error))}"
        self.announce_leaving(f"left: its program ended{cause}".rstrip())
        # Python ends daemon threads once they come back from C++, which aborts the process.
        self._ended.set()
        if self._thread.is_alive():  # not in a process that was forked
            self._thread.join(LAST_S)

    def _catch_sigterm(self) -> None:
        """Makes this process tell the others when SIGTERM kills it.

        Does nothing if the program has its own handler, or if JAX catches the signal for its
        preemption service: SIGTERM does not kill the process then.
        """
        in_main = threading.current_thread() is threading.main_thread()
        unhandled = in_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        if self._store.catches_sigterm or not unhandled:
            return

        def leave(number: int, frame: FrameType | None) -> None:
            del frame
            # Not in this thread, which may hold a lock of the store's client.
            told = threading.Thread(target=self.announce_leaving, args=("left: SIGTERM",))
            told.start()
            told.join(1.0)
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

        signal.signal(signal.SIGTERM, leave)
