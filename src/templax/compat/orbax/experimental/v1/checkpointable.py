"""Checkpointables of Orbax's v1 API: their names, and the protocols of their handlers."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

STATE = "state"
"""The name of a tree that is saved alone."""

AUTO = "AUTO"
"""Stands for the tree of a checkpoint, whatever its name is."""

RESERVED = frozenset(("metrics", AUTO))
"""The names that a caller's checkpointables can't have."""

Checkpointable = Any
AbstractCheckpointable = Any

_T = TypeVar("_T")
_Concrete = TypeVar("_Concrete")
_Abstract = TypeVar("_Abstract")


@runtime_checkable
class StatefulCheckpointable(Protocol):
    """An object that saves and loads itself."""

    async def save(self, directory: Any) -> Awaitable[None]:
        """Saves itself; see `CheckpointableHandler.save`."""
        ...

    async def load(self, directory: Any) -> Awaitable[None]:
        """Loads the state that was saved to a directory; see `CheckpointableHandler.load`."""
        ...


class CheckpointableHandler(Protocol, Generic[_Concrete, _Abstract]):
    """Saves and loads checkpointables of a kind, by files of its own. Every process calls it.

    The caller waits for the method itself; what it returns is awaited in the background.

    Example:
        >>> import asyncio, os, tempfile
        >>> from templax.compat.orbax import v1 as ocp
        >>> class Text(ocp.CheckpointableHandler[str, None]):
        ...     async def save(self, directory, checkpointable):
        ...         return self._write(directory, checkpointable)
        ...     async def _write(self, directory, text):
        ...         ((await directory.await_creation()) / "text").write_text(text)
        ...     async def load(self, directory, abstract_checkpointable=None):
        ...         return self._read(directory)
        ...     async def _read(self, directory):
        ...         return (directory / "text").read_text()
        ...     def is_handleable(self, checkpointable):
        ...         return isinstance(checkpointable, str)
        ...     def is_abstract_handleable(self, abstract):
        ...         return abstract is None
        >>> context = ocp.Context()
        >>> context.checkpointables.registry = ocp.handlers.local_registry().add(Text)
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> with context:
        ...     ocp.save_checkpointables(path, {"note": "first try"})
        ...     ocp.load_checkpointables(path)
        {'note': 'first try'}
    """

    async def save(self, directory: Any, checkpointable: _Concrete) -> Awaitable[None]:
        """Saves a checkpointable.

        Args:
            directory: A `PathAwaitingCreation`.
            checkpointable: What is saved.
        """
        ...

    async def load(
        self, directory: Any, abstract_checkpointable: _Abstract | None = None
    ) -> Awaitable[_Concrete]:
        """Loads a checkpointable.

        Args:
            directory: The path of the directory that `save` wrote to.
            abstract_checkpointable: What the caller wants, or None.
        """
        ...

    async def metadata(self, directory: Any) -> _Abstract:
        """What was saved to a directory, as an abstract checkpointable."""
        ...

    def is_handleable(self, checkpointable: Any) -> bool:
        """Whether it saves such an object."""
        ...

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        """Whether it loads what an abstract checkpointable asks for."""
        ...


def typestr(handler_type: type[Any]) -> str:
    """The name of a handler in the metadata of a checkpoint."""
    own: str | None = vars(handler_type).get("orbax_name")
    return own or f"{handler_type.__module__}.{handler_type.__qualname__}"


async def await_result(awaitable: Awaitable[_T]) -> _T:
    """Makes a coroutine of an awaitable, for `run_coroutine`."""
    return await awaitable
