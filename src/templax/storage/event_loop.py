"""The event loop on which all requests to object stores run, in one thread of the process."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from ..errors import SourceError
from .request_group import current_group

T = TypeVar("T")

_lock = threading.Lock()

_running: tuple[int, asyncio.AbstractEventLoop] | None = None
"""The process that started the loop, and the loop: a forked child has none of its threads."""


def run_request(request: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine on the loop and waits for it; Ctrl-C ends it at once.

    Raises:
        SourceError: The group of the calling thread was cancelled.
    """
    group = current_group()
    future = asyncio.run_coroutine_threadsafe(request, _get_loop())
    if group is not None:
        group.add(future)
    try:
        return future.result()
    except CancelledError:
        raise SourceError("The request was cancelled because another one failed") from None
    finally:
        future.cancel()  # does nothing if it is done
        if group is not None:
            group.discard(future)


def start_request(request: Coroutine[Any, Any, T]) -> Future[T]:
    """Starts a coroutine on the loop, without waiting for it."""
    return asyncio.run_coroutine_threadsafe(request, _get_loop())


def _get_loop() -> asyncio.AbstractEventLoop:
    global _running
    with _lock:
        if _running is None or _running[0] != os.getpid():
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="templax-requests", daemon=True).start()
            _running = os.getpid(), loop
        return _running[1]
