"""JAX. The handlers whose items templax itself writes, as parts of one save."""

from __future__ import annotations

import abc
import os
from collections.abc import Mapping
from typing import Any, ClassVar

import templax as tx

from ...._save.contents import Content
from ...._save.part import save_part
from ..future import Future
from ..saver import PathLike
from .calls import Use, take_args
from .protocol import AsyncCheckpointHandler


class BuiltInHandler(AsyncCheckpointHandler):
    """A handler of templax.

    A checkpointer saves what `make_contents` returns. Called on its own, `save` writes it into a
    directory as it is, without the files that mark a checkpoint as finished.

    Attributes:
        name: The name that checkpoints record, which is that of Orbax's handler.
    """

    name: ClassVar[str]

    @abc.abstractmethod
    def make_contents(self, args: Any) -> Mapping[str, Content]:
        """What args describe: name → content; "" is the name of the item itself.

        Args:
            args: Those that are registered with the handler, or others with the same attributes.
        """

    def save(self, directory: PathLike, *args: Any, **kwargs: Any) -> None:
        """Writes an item into a directory.

        Args:
            directory: The directory. It is created if need be.
            *args, **kwargs: `args=`, or the older spelling: the arguments of that class.
        """
        contents = self.make_contents(self.take_args("save", args, kwargs))
        save_part(os.fspath(directory), contents, wait=True)

    async def async_save(self, directory: PathLike, *args: Any, **kwargs: Any) -> list[Future]:
        """Begins to write an item into a directory; see `save`.

        Returns:
            One future, whose `result` returns when everything is written.
        """
        contents = self.make_contents(self.take_args("save", args, kwargs))
        return [_PartFuture(save_part(os.fspath(directory), contents, wait=False))]

    def take_args(self, use: Use, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See `take_args`: a subclass may have no registered args of its own."""
        return take_args(find_built_in(self), use, args, kwargs)

    @classmethod
    def typestr(cls) -> str:
        """The name that checkpoints record: that of Orbax's handler, or of a subclass."""
        return vars(cls).get("name") or super().typestr()


class _PartFuture:
    """The future of a `save_part` in progress."""

    def __init__(self, saved: tx.Saved) -> None:
        self._saved = saved

    def result(self, timeout: float | None = None) -> None:
        self._saved.wait(timeout)


def find_built_in(handler: BuiltInHandler) -> type[BuiltInHandler]:
    """The class of templax that a handler is, or derives from."""
    return next(cls for cls in type(handler).__mro__ if "name" in vars(cls))


def is_replaced(handler: Any, *methods: str) -> bool:
    """Whether a handler is not of templax, or overrides one of these methods."""
    if not isinstance(handler, BuiltInHandler):
        return True
    own = find_built_in(handler)
    return any(getattr(type(handler), name) is not getattr(own, name) for name in methods)


def make_args_error(expected: str, args: object) -> tx.UsageError:
    """Makes the error about args that a handler can't use."""
    return tx.UsageError(f"Expected {expected}, got {type(args).__name__}")
