"""JAX. How handlers are called: with args, or with the arguments of older code."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any, Literal

import templax as tx

from ...._restore.together import read_together
from ...._save.contents import ForeignItem
from ....formats.orbax.directory import uncommitted_reason
from ....storage.open import open_source
from ..args import adopt_args
from ..checkpoint_args import CheckpointArgs, find_args_types, handler_name, is_args
from ..future import Future, cancel_future, list_futures, run_coroutine
from ..saver import PathLike
from .protocol import as_path

Use = Literal["save", "restore"]


class PlainArgs(CheckpointArgs):
    """The arguments of a handler that has no registered args."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs


def take_args(handler: Any, use: Use, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The args among the arguments of a call, or those that these arguments make.

    Args:
        handler: The handler that is called.
        use: What the call does.
        args, kwargs: Its arguments.
    """
    given = [each for each in (*args, *kwargs.values()) if is_args(each)]
    if given:
        return adopt_args(given[0])
    types = find_args_types(handler)
    if types is None:
        return PlainArgs(*args, **kwargs)
    if "args" in kwargs and kwargs["args"] is None:
        kwargs = {name: value for name, value in kwargs.items() if name != "args"}
    return types[use == "restore"](*args, **kwargs)


def _call(method: Any, path: Any, args: Any) -> Any:
    if isinstance(args, PlainArgs):
        return method(path, *args.args, **args.kwargs)
    return method(path, args=args)


class HandledItem(ForeignItem):
    """An item that a custom handler writes.

    Args:
        handler: The handler.
        args: What it gets.
        background: Whether it may continue to write after `begin`.
        timeout: For how many seconds from then on; None is without limit.
    """

    def __init__(self, handler: Any, args: Any, *, background: bool, timeout: float | None) -> None:
        self.handler = handler_name(handler)
        self._handler, self._args = handler, args
        self._background = background and hasattr(handler, "async_save")
        self._futures: list[Future] = []
        self._timeout = timeout
        self._end: float | None = None

    def begin(self, directory: str) -> None:
        """Calls `async_save`, or `save`."""
        path = as_path(directory)
        if self._background:
            began = _call(self._handler.async_save, path, self._args)
            self._futures = list_futures(run_coroutine(began))
            self._end = None if self._timeout is None else time.monotonic() + self._timeout
        else:
            _call(self._handler.save, path, self._args)

    def wait(self) -> None:
        """Waits for all futures.

        Raises:
            TimeoutError: They have not ended in time.
        """
        for future in self._futures:
            future.result(timeout=self._find_time_left())

    def _find_time_left(self) -> float | None:
        return None if self._end is None else max(self._end - time.monotonic(), 0.0)

    def finalize(self, directory: str) -> None:
        """Calls `finalize`, if the handler has it."""
        finalize = getattr(self._handler, "finalize", None)
        if callable(finalize):
            finalize(as_path(directory))

    def stop(self) -> None:
        """Cancels the futures, and waits until they have ended, or their time is over."""
        futures, self._futures = self._futures, []
        for future in futures:
            with contextlib.suppress(Exception):
                cancel_future(future)
        for future in futures:
            with contextlib.suppress(BaseException):
                future.result(timeout=self._find_time_left())


def close_handler(handler: Any) -> None:
    """Closes a handler, if it can be."""
    close = getattr(handler, "close", None)
    if callable(close):
        close()


def call_restore(handler: Any, directory: PathLike, args: Any) -> Any:
    """Has a custom handler restore an item, on all processes of the job.

    Args:
        handler: The handler.
        directory: The directory of the item.
        args: What it gets.

    Raises:
        NotFound: There is nothing at the path.
        Uncommitted: The save never finished.
    """
    path = os.fspath(directory)

    def restore() -> Any:
        check_finished(path)
        return _call(handler.restore, as_path(path), args)

    return read_together(path, restore)


def check_finished(path: str) -> None:
    """Refuses a directory that does not exist, or whose save never finished."""
    source = open_source(path)
    if source.stat("") is None and next(source.children(), None) is None:
        raise tx.NotFound("Expected a checkpoint, found nothing", file=path)
    reason = uncommitted_reason(source)
    if reason is not None:
        raise tx.Uncommitted(f"{source.url} is not a committed checkpoint: {reason}")
