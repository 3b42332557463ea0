"""The handles of operations in the background."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import templax as tx

_T = TypeVar("_T")


class AsyncResponse(Generic[_T]):
    """The handle of a save, load or deletion in the background.

    Args:
        future: Gets the result of the operation.

    Example:
        >>> import os, tempfile, numpy as np
        >>> from templax.compat.orbax import v1 as ocp
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> response = ocp.save_async(path, {"w": np.ones(3, np.float32)})
        >>> response.result()
    """

    def __init__(self, future: Future[_T]) -> None:
        self._future = future

    def result(self, timeout: float | None = None) -> _T:
        """What the operation returns, once it has ended.

        Args:
            timeout: Seconds after which to stop waiting; the operation itself continues.

        Raises:
            TimeoutError: It is still in progress.
            SaveError: The save failed.
        """
        return self._future.result(timeout)

    def on_complete(self, callback: Callable[[_T], None]) -> None:
        """Calls a function with the result once the operation succeeds; never if it fails.

        The call comes from the thread of the operation, or at once if that has ended already.
        """

        def call(future: Future[_T]) -> None:
            if future.exception() is None:
                callback(future.result())

        self._future.add_done_callback(call)


class SaveResponse(AsyncResponse[_T]):
    """The handle of a save.

    Args:
        result: What it returns once the checkpoint is committed.

    Attributes:
        saved: What `templax.save` returns; set once the save has begun.
    """

    saved: tx.Saved

    def __init__(self, result: _T) -> None:
        super().__init__(Future())
        self._result = result

    def complete(self) -> None:
        """Calls the functions that `on_complete` was given: the checkpoint is committed."""
        self._future.set_result(self._result)

    def result(self, timeout: float | None = None) -> _T:
        """See `AsyncResponse`."""
        self.saved.wait(timeout)
        return self._result


def run_in_thread(work: Callable[[], _T]) -> AsyncResponse[_T]:
    """Runs a function in a thread, in the caller's context. The program waits for it at exit."""
    pool = ThreadPoolExecutor(1)
    context: Any = contextvars.copy_context()
    future: Future[_T] = pool.submit(context.run, work)
    pool.shutdown(wait=False)
    return AsyncResponse(future)
