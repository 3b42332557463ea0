"""The event loop on which all requests to object stores run, in one thread of the process."""

from __future__ import annotations

import asyncio
import atexit
import functools
import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, TypeVar
from weakref import WeakSet

from ..errors import SourceError
from .request_group import RequestGroup, current_group

T = TypeVar("T")

_lock = threading.Lock()

_EXIT_S = 2.0
"""Seconds that the end of the process waits for requests to end, and then for obstore's threads."""

_COLLECT_S = 0.1
"""Seconds after which garbage is collected meanwhile, as it may hold what is waited for."""


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that knows which of its futures exist.

    obstore makes one for each request. Its thread that answers the request holds the future for as
    long as it has anything to do with this interpreter, which is longer than until the answer is
    there: it wakes this loop and then wants the interpreter's lock once more.
    """

    def __init__(self) -> None:
        super().__init__()
        self.futures: WeakSet[asyncio.Future[Any]] = WeakSet()

    def create_future(self) -> asyncio.Future[Any]:
        future = super().create_future()
        self.futures.add(future)
        return future


_running: tuple[int, _Loop, threading.Thread] | None = None
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


def _get_loop() -> _Loop:
    global _running
    if _running is not None and _running[0] != os.getpid():
        raise SourceError(
            "can't use an object store in a process that was forked from one that had used it: the"
            " threads that make the requests, obstore's too, are not there; hint: start processes"
            ' by the methods "spawn" or "forkserver" of multiprocessing'
        )
    with _lock:
        if _running is None:
            loop = _Loop()
            thread = threading.Thread(target=loop.run_forever, name="templax-requests", daemon=True)
            thread.start()
            if _running is None:
                atexit.register(_stop_at_exit)
            _running = os.getpid(), loop, thread
        return _running[1]


def _stop_at_exit() -> None:
    """Ends what is left of requests, waits for obstore's threads, and ends the loop.

    Python ends a thread that wants the lock of an interpreter that is shutting down, and with a
    thread of obstore, it aborts the process. Saves in the background have ended by now: their
    threads are waited for earlier.
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
    _await_native_threads(loop)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(_EXIT_S)


def _await_native_threads(loop: _Loop) -> None:
    """Waits until no thread of obstore holds a future of the loop, or for `_EXIT_S`."""
    begin, collected = time.monotonic(), False
    while loop.futures and (waited := time.monotonic() - begin) < _EXIT_S:
        if waited > _COLLECT_S and not collected:
            collected = gc.collect() >= 0
        # What obstore's threads let go of without the lock goes when obstore is called again.
        if "obstore.store" in sys.modules:
            sys.modules["obstore.store"].MemoryStore()
        time.sleep(0.002)
