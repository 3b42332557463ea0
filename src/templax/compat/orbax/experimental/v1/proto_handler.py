"""The handler of protocol buffers."""

from __future__ import annotations

import sys
from collections.abc import Awaitable
from typing import Any

from .context import get_context
from .multihost import is_primary_host


class ProtoHandler:
    """Saves a protocol buffer as text, and loads it as a message of the class that is asked for.

    Args:
        filename: The name of the file.

    Example:
        >>> from templax.compat.orbax import v1 as ocp
        >>> ocp.handlers.ProtoHandler().is_handleable({"lr": 0.1})
        False
    """

    orbax_name = "orbax.checkpoint.experimental.v1._src.handlers.proto_handler.ProtoHandler"

    def __init__(self, filename: str = "proto.pbtxt") -> None:
        self._filename = filename

    async def save(self, directory: Any, checkpointable: Any) -> Awaitable[None]:
        """See `CheckpointableHandler`. The message is encoded before this returns."""
        from google.protobuf import text_format

        text = text_format.MessageToString(checkpointable)
        primary = get_context().multiprocessing.primary_host

        async def write() -> None:
            path = await directory.await_creation()
            if is_primary_host(primary):
                (path / self._filename).write_text(text)

        return write()

    async def load(self, directory: Any, abstract_checkpointable: Any = None) -> Awaitable[Any]:
        """Loads a message.

        Args:
            directory: See `CheckpointableHandler`.
            abstract_checkpointable: The class of the message.

        Raises:
            ValueError: No class was given.
        """
        if abstract_checkpointable is None:
            raise ValueError("abstract_checkpointable must be provided to restore as a Proto.")
        return self._read(directory, abstract_checkpointable)

    async def _read(self, directory: Any, message_type: Any) -> Any:
        from google.protobuf import text_format

        return text_format.Parse((directory / self._filename).read_text(), message_type())

    async def metadata(self, directory: Any) -> Any:
        """Raises `NotImplementedError`: the text does not name its class."""
        raise NotImplementedError("A protocol buffer has no metadata")

    def is_handleable(self, checkpointable: Any) -> bool:
        """See `CheckpointableHandler`."""
        return _is_message_type(type(checkpointable))

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        """See `CheckpointableHandler`."""
        return isinstance(abstract_checkpointable, type) and _is_message_type(
            abstract_checkpointable
        )


def _is_message_type(kind: type[Any]) -> bool:
    # A program that has a message has imported this module.
    module = sys.modules.get("google.protobuf.message")
    return module is not None and issubclass(kind, module.Message)
