"""Orbax's v1 `path`: the paths that handlers are called with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ....unmapped import make_getattr
from ..options import default_path_class

if TYPE_CHECKING:
    from . import step

    Path = Any
    PathLike = Any

__all__ = ["Path", "PathAwaitingCreation", "PathLike", "step"]


@runtime_checkable
class PathAwaitingCreation(Protocol):
    """A directory that a handler saves to, which may not exist yet."""

    def __truediv__(self, other: Any) -> PathAwaitingCreation:
        """A path below it."""
        ...

    @property
    def path(self) -> Any:
        """The path itself."""
        ...

    async def await_creation(self) -> Any:
        """The path, once it exists."""
        ...


_load = make_getattr("experimental.v1.path.", {"step": "experimental.v1.path.step"})


def __getattr__(name: str) -> Any:
    if name == "Path":  # importing etils takes time
        return default_path_class()
    return default_path_class() | str if name == "PathLike" else _load(name)
