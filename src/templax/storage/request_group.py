"""Ends all requests to object stores that one call waits for. No asyncio at import."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any

_current: ContextVar[RequestGroup | None] = ContextVar("request_group", default=None)
"""The group of a thread, and of the requests that it starts, which run in another one."""


class RequestGroup:
    """The requests that the threads of one call wait for, so that all can be cancelled at once.

    Without it, a call that fails or is interrupted would wait for the slowest answer.

    Args:
        answer_bytes: Bytes of answers that all of these requests together may hold before they are
            copied to their place; None for no limit.
    """

    def __init__(self, answer_bytes: int | None = None) -> None:
        self.answer_bytes = answer_bytes
        self._lock = threading.Lock()
        self._pending: set[Future[Any]] = set()
        self._cancelled = False

    def join(self) -> None:
        """Adds all later requests of the calling thread to this group."""
        _current.set(self)

    def add(self, request: Future[Any]) -> None:
        with self._lock:
            self._pending.add(request)
            cancelled = self._cancelled
        if cancelled:
            request.cancel()

    def discard(self, request: Future[Any]) -> None:
        with self._lock:
            self._pending.discard(request)

    def cancel(self) -> None:
        """Cancels all requests: the reads that wait for them raise `SourceError`."""
        with self._lock:
            self._cancelled = True
            pending = list(self._pending)
        for request in pending:
            request.cancel()


def current_group() -> RequestGroup | None:
    """The group that the calling thread has joined, or the one that started this request."""
    return _current.get()
