"""An item that a handler of Orbax's v1 API saves, inside templax's atomic save."""

from __future__ import annotations

import contextvars
import inspect
from collections.abc import Awaitable
from typing import Any

from ....._save.contents import ForeignItem
from ...future import run_coroutine
from .checkpointable import await_result, typestr
from .context import Context


class StagedDirectory:
    """The directory that a handler writes to; a `PathAwaitingCreation` that exists already."""

    def __init__(self, path: Any) -> None:
        self._path = path

    def __truediv__(self, other: Any) -> StagedDirectory:
        return StagedDirectory(self._path / other)

    @property
    def path(self) -> Any:
        """The path, which moves when the save is committed."""
        return self._path

    async def await_creation(self) -> Any:
        """The path."""
        return self._path


class HandlerItem(ForeignItem):
    """What a handler saves under a name.

    Args:
        handler: A `CheckpointableHandler`.
        checkpointable: What it saves.
        context: The context of the save.
    """

    def __init__(self, handler: Any, checkpointable: Any, context: Context) -> None:
        self.handler = typestr(type(handler))
        self._call, self._checkpointable = handler.save, checkpointable
        self._path_class = context.file.path_class
        self._writing: Awaitable[None] | None = None
        self._context = contextvars.copy_context()

    def begin(self, directory: str) -> None:
        """See `ForeignItem`."""
        self._context = contextvars.copy_context()
        staged = StagedDirectory(self._path_class(directory))
        self._writing = run_coroutine(self._call(staged, self._checkpointable))
        del self._checkpointable

    def wait(self) -> None:
        """See `ForeignItem`."""
        assert self._writing is not None
        self._context.run(run_coroutine, await_result(self._writing))

    def finalize(self, directory: str) -> None:
        """See `ForeignItem`: handlers have nothing to do then."""

    def stop(self) -> None:
        """See `ForeignItem`."""
        if inspect.iscoroutine(self._writing):
            try:
                self._writing.close()
            except (RuntimeError, ValueError):
                return  # it is running, in the thread that saves
