"""Latency and bandwidth as of a network, for connections on loopback."""

import threading
import time

_SLACK_S = 0.002
PIECE_BYTES = 64 * 1024


class Bandwidth:
    """A limit in bytes per second that all who call `take` share.

    Each caller waits until its bytes could have passed after those of all before it. What was not
    used earlier is lost, except for 2 ms, below which sleeping is inexact.
    """

    def __init__(self, bytes_per_second: float) -> None:
        self.bytes_per_second = bytes_per_second
        self._lock = threading.Lock()
        self._free_at = 0.0

    def take(self, count: int) -> None:
        """Waits until `count` bytes have passed."""
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now - _SLACK_S) + count / self.bytes_per_second
            wait = self._free_at - now
        if wait > _SLACK_S:
            time.sleep(wait)
