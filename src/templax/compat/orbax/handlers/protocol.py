"""The classes that handlers derive from."""

from __future__ import annotations

import abc
from typing import Any

from ..saver import PathLike


class CheckpointHandler(abc.ABC):
    """The base of handlers, which save items of one kind into a directory and restore them.

    A checkpointer or manager calls `save` with a directory that becomes part of the checkpoint when
    that is committed, and `restore` with the same directory afterwards. In a job of several
    processes every process is called; `finalize` is called on process 0 only.
    """

    @abc.abstractmethod
    def save(self, directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Writes an item.

        Args:
            directory: An existing directory, as a `pathlib.Path`, or an `etils.epath.Path` where
                that package is installed.
            *args, **kwargs: `args=` of the class that is registered for it. A handler without
                registered args gets what the checkpointer's `save` was called with.
        """

    @abc.abstractmethod
    def restore(self, directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Reads an item; the arguments are those of `save`."""

    def metadata(self, directory: Any) -> Any:
        """What the checkpointer's `metadata` tells of an item; by default None."""
        return None

    def finalize(self, directory: Any) -> None:
        """Called once all processes have written their files, before the commit."""
        return

    def close(self) -> None:
        """Called when the checkpointer or manager is closed."""
        return

    @classmethod
    def typestr(cls) -> str:
        """The name of the handler that checkpoints record."""
        return f"{cls.__module__}.{cls.__qualname__}"


class AsyncCheckpointHandler(CheckpointHandler):
    """A handler that continues to write in the background."""

    @abc.abstractmethod
    async def async_save(self, directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Begins to write an item; when this returns, its values may change.

        Returns:
            A list of futures, which the save waits for before it commits; or None.
        """


def as_path(directory: PathLike) -> Any:
    """The path that a handler is called with: an `etils.epath.Path` if installed, as with Orbax."""
    try:
        from etils import epath  # pyright: ignore[reportMissingImports, reportUnknownVariableType]
    except ImportError:
        from pathlib import Path

        return Path(directory)
    return epath.Path(directory)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
