"""The event loop on which all requests to object stores run, in one thread of the process."""

from __future__ import annotations

import asyncio
import atexit
import functools
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, TypeVar

from ..errors import SourceError
from .request_group import RequestGroup, current_group

T = TypeVar("T")

_lock = threading.Lock()

_EXIT_S = 2.0
"""Seconds that the end of the process waits for requests to end."""

_running: tuple[int, asyncio.AbstractEventLoop, threading.Thread] | None = None
"""The process that started the loop, the loop, and its thread, which a forked child lacks."""


def run_request(request: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine on the loop and waits for it; Ctrl-C ends it at once.

    Raises:
        SourceError: The group of the calling thread was cancelled, obstore panicked, or this
            process was forked from one that had made requests.
    """
    return begin_request(request)()


def begin_request(request: Coroutine[Any, Any, T]) -> Callable[[], T]:
    """Starts a coroutine on the loop; the function that it returns waits for it.

    Raises:
        SourceError: See `run_request`; the function raises it, too.
    """
    group = current_group()
    future = start_request(request)
    if group is not None:
        group.add(future)
    return functools.partial(_finish_request, future, group)


def _finish_request(future: Future[T], group: RequestGroup | None) -> T:
    try:
        return future.result()
    except CancelledError:
        raise SourceError("The request was cancelled because another one failed") from None
    except Exception as error:
        if type(error).__name__ != "RustPanic":  # its module can't be imported
            raise
        raise SourceError(
            "obstore stopped at an error of its own, which it has printed; hint: check the name of"
            " the bucket and the settings of the store, such as its endpoint"
        ) from error
    finally:
        future.cancel()  # does nothing if it is done
        if group is not None:
            group.discard(future)


def start_request(request: Coroutine[Any, Any, T]) -> Future[T]:
    """Starts a coroutine on the loop, without waiting for it.

    Raises:
        SourceError: This process was forked from one that had made requests.
    """
    try:
        loop = _get_loop()
    except SourceError:
        request.close()
        raise
    return asyncio.run_coroutine_threadsafe(request, loop)


def _get_loop() -> asyncio.AbstractEventLoop:
    global _running
    if _running is not None and _running[0] != os.getpid():
        raise SourceError(
            "can't use an object store in a process that was forked from one that had used it: the"
            " threads that make the requests, obstore's too, are not there; hint: start processes"
            ' by the methods "spawn" or "forkserver" of multiprocessing'
        )
    with _lock:
        if _running is None:
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=loop.run_forever, name="templax-requests", daemon=True)
            thread.start()
            if _running is None:
                atexit.register(_stop_at_exit)
            _running = os.getpid(), loop, thread
        return _running[1]


def _stop_at_exit() -> None:
    """Ends what is left of requests, and the loop.

    A thread of obstore that calls back into an interpreter that is shutting down aborts the
    process. Saves in the background have ended by now: their threads are waited for earlier.
    """
    global _running
    with _lock:
        if _running is None or _running[0] != os.getpid():
            return
        (_, loop, thread), _running = _running, None

    async def cancel_all() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    with suppress(TimeoutError):
        asyncio.run_coroutine_threadsafe(cancel_all(), loop).result(_EXIT_S)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(_EXIT_S)
