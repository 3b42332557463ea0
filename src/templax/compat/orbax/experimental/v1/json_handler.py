"""The handlers of JSON values."""

from __future__ import annotations

import json
from collections.abc import Awaitable
from typing import Any

from ....._core.json_text import decode_json, encode_json
from .....errors import Corrupted, NotFound
from .....storage.open import open_source
from .....storage.signatures import read_metadata
from .context import get_context
from .multihost import is_primary_host

_ORBAX = "orbax.checkpoint.experimental.v1._src.handlers.json_handler."


class JsonHandler:
    """Saves a JSON value, and loads it.

    Args:
        filename: The name of the file; by default `data.json`.

    Example:
        >>> from templax.compat.orbax import v1 as ocp
        >>> ocp.handlers.JsonHandler().is_handleable({"lr": 0.1})
        True
    """

    orbax_name = f"{_ORBAX}JsonHandler"

    def __init__(self, filename: str | None = None) -> None:
        self.filename = filename or "data.json"

    async def save(self, directory: Any, checkpointable: Any) -> Awaitable[None]:
        """See `CheckpointableHandler`. The value is encoded before this returns."""
        text, primary = encode_json(checkpointable), get_context().multiprocessing.primary_host

        async def write() -> None:
            path = await directory.await_creation()
            if is_primary_host(primary):
                (path / self.filename).write_text(text)

        return write()

    async def load(self, directory: Any, abstract_checkpointable: None = None) -> Awaitable[Any]:
        """See `CheckpointableHandler`."""
        return self._read(directory)

    async def _read(self, directory: Any) -> Any:
        """The value in the first of the files that Orbax looks for.

        Raises:
            NotFound: There is none of them.
            Corrupted: The file is not JSON.
        """
        source, names = open_source(directory), (self.filename, "data.json", "metadata")
        for name in names:
            if source.stat(name) is not None:
                try:
                    return decode_json(read_metadata(source, name))
                except (ValueError, RecursionError) as error:
                    raise Corrupted(f"The JSON is unreadable: {error}", file=name) from error
        raise NotFound(f"Expected JSON in one of {', '.join(names)}, found none", file=source.url)

    async def metadata(self, directory: Any) -> None:
        """None: the value is its own description."""

    def is_handleable(self, checkpointable: Any) -> bool:
        """See `CheckpointableHandler`."""
        try:
            json.dumps(checkpointable)
        except (TypeError, ValueError, RecursionError):
            return False
        return True

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        """None: the checkpoint tells."""
        return None


class MetricsHandler(JsonHandler):
    """Saves the metrics of a step, which are a JSON value."""

    orbax_name = f"{_ORBAX}MetricsHandler"

    def __init__(self) -> None:
        super().__init__("metrics")
