"""Whether and when to retry a failed request."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import Protocol

from ..errors import NotFound, SourceError, TemplaxError
from .request_errors import ObjectChanged, classify_error, describe_error

_log = logging.getLogger("templax")

_BACKOFF_S, _MAX_BACKOFF_S = 0.1, 10.0

_MAX_RENEWED = 3
"""How often expired credentials are looked up again for one request."""


class Retried(Protocol):
    """What makes the requests; implemented by `Requests`."""

    url: str
    timeout_s: float

    def note_retry(self) -> None:
        """Counts a request that is made again."""
        ...

    def renew(self) -> None:
        """Looks the credentials up again."""
        ...

    def describe_change(self, path: str) -> str:
        """The message for an object that changed since it was first seen."""
        ...


class Retries:
    """How often one request has failed, and whether and when to retry it.

    Args:
        requests: The store.
        path: The object or directory concerned.
        action: What the request does to it.
    """

    def __init__(self, requests: Retried, path: str, action: str = "read"):
        self._requests, self._path, self._action = requests, path, action
        self._failed = self._renewed = 0
        self._asked = self._progress = time.monotonic()
        self._pause = _BACKOFF_S

    def note_start(self) -> None:
        """Leaves the time out in which the request had to wait for others to end."""
        self._progress += time.monotonic() - self._asked

    def note_progress(self) -> None:
        """Starts the timeout and the pauses again, because bytes have arrived."""
        self._progress, self._pause = time.monotonic(), _BACKOFF_S

    async def wait(self, error: Exception) -> None:
        """Waits until the request may be retried; raises its final error if it must not be."""
        if isinstance(error, TemplaxError):
            raise error
        requests, path = self._requests, self._path
        where, kind, reason = f"{requests.url}/{path}", classify_error(error), describe_error(error)
        if kind == "missing":
            raise NotFound("Expected an object, found none", file=where) from error
        if kind in ("changed", "exists"):
            raise ObjectChanged(requests.describe_change(path)) from error
        if kind == "ranges":
            raise SourceError(
                f"can't read `{where}`: the server sends whole files only, not ranges of bytes; "
                "hint: download it, or use a server that supports range requests"
            ) from error
        self._failed += 1
        waited = time.monotonic() - self._progress
        if kind == "expired" and self._renewed < _MAX_RENEWED:
            self._renewed += 1
            requests.renew()
        elif kind != "transient" or waited + self._pause > requests.timeout_s:
            times = f"; tried {self._failed} times in {waited:.0f} s" if self._failed > 1 else ""
            raise SourceError(f"can't {self._action} `{where}`: {reason}{times}") from error
        requests.note_retry()
        _log.info("trying `%s` again after %s", where, reason)
        await asyncio.sleep(self._pause * random.uniform(0.5, 1))
        self._pause = min(2 * self._pause, _MAX_BACKOFF_S)
        self._asked = time.monotonic()
