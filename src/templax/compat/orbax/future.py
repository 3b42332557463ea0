"""Orbax's `future`: what `async_save` of a handler returns, and a save waits for."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol, TypeVar, runtime_checkable

from .unmapped import make_getattr

_T = TypeVar("_T")


@runtime_checkable
class Future(Protocol):
    """An operation in progress that can be waited for."""

    def result(self, timeout: float | None = None) -> Any:
        """Returns what it made, once it has ended.

        Args:
            timeout: Seconds after which to raise a `TimeoutError`.
        """
        ...


class NoopFuture:
    """A future that has already ended."""

    def result(self, timeout: float | None = None) -> Any:
        """Returns None at once."""

    def cancel(self) -> None:
        """Does nothing: it has ended."""


class ChainedFuture:
    """Several futures as one.

    Args:
        futures: The futures.
        cb: Called by `result` once all have ended.

    Example:
        >>> from templax.compat.orbax import future
        >>> future.ChainedFuture([future.NoopFuture()], lambda: print("written")).result()
        written
    """

    def __init__(self, futures: Sequence[Future], cb: Callable[[], None]) -> None:
        self._futures, self._cb = futures, cb

    def result(self, timeout: float | None = None) -> Any:
        """Waits for all of them, and calls `cb`.

        Raises:
            TimeoutError: They have not ended after `timeout` seconds.
        """
        end = None if timeout is None else time.monotonic() + timeout
        for number, each in enumerate(self._futures):
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(
                    f"{number} of {len(self._futures)} futures ended within {timeout} s"
                )
            each.result(timeout=left)
        self._cb()

    def cancel(self) -> None:
        """Cancels all of them."""
        for each in self._futures:
            cancel_future(each)


class CommitFutureAwaitingContractedSignals:
    """A coroutine that runs in a thread of its own, and is started at once.

    Orbax's waits for signals first, such as that a directory was made. Here the directory of an
    item exists before its handler is called, so there are none to wait for.

    Args:
        coro: The coroutine.
        name: The name of the thread.
        send_signals, timeout_secs, operation_id: No effect: they concern such signals.

    Example:
        >>> import asyncio
        >>> from templax.compat.orbax import future
        >>> work = asyncio.to_thread(sum, [1, 2])
        >>> future.CommitFutureAwaitingContractedSignals(work).result()
        3
    """

    def __init__(
        self,
        coro: Coroutine[Any, Any, Any],
        *,
        name: str | None = None,
        send_signals: Sequence[Any] | None = None,
        timeout_secs: int | None = None,
        operation_id: str | None = None,
    ) -> None:
        del send_signals, timeout_secs, operation_id
        self.name = name
        self._coro = coro
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancelled = False
        pool = ThreadPoolExecutor(1, thread_name_prefix=name or "templax-commit")
        context = contextvars.copy_context()
        self._future = pool.submit(context.run, asyncio.run, self._await())
        pool.shutdown(wait=False)

    async def _await(self) -> Any:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        if self._cancelled:
            self._coro.close()
            raise asyncio.CancelledError
        return await self._coro

    def result(self, timeout: float | None = None) -> Any:
        """Returns what the coroutine returned, or raises what it raised.

        Raises:
            TimeoutError: It has not ended after `timeout` seconds.
        """
        try:
            return self._future.result(timeout)
        except asyncio.CancelledError as error:
            raise CancelledError from error

    def cancel(self) -> None:
        """Cancels the coroutine, unless it has ended."""
        self._cancelled = True
        if self._loop is not None and self._task is not None:
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._task.cancel)


def run_coroutine(coro: Coroutine[Any, Any, _T]) -> _T:
    """Runs a coroutine to its end, even inside a running event loop, such as that of a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coro)
    with ThreadPoolExecutor(1) as pool:
        context: Any = contextvars.copy_context()
        return pool.submit(context.run, asyncio.run, coro).result()


def list_futures(found: object) -> list[Future]:
    """The futures in what `async_save` returned: None, one, or nested lists of them."""
    if found is None:
        return []
    if isinstance(found, Iterable):
        return [future for each in found for future in list_futures(each)]
    assert isinstance(found, Future)
    return [found]


def cancel_future(future: Future) -> None:
    """Cancels a future, if it can be."""
    cancel = getattr(future, "cancel", None)
    if callable(cancel):
        cancel()


__getattr__ = make_getattr("future.")
