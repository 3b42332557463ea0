"""The handler of objects that save and load themselves."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from .checkpointable import StatefulCheckpointable


class StatefulCheckpointableHandler:
    """Calls `save` and `load` of a `StatefulCheckpointable`."""

    orbax_name = (
        "orbax.checkpoint.experimental.v1._src.handlers.stateful_checkpointable_handler"
        ".StatefulCheckpointableHandler"
    )

    async def save(self, directory: Any, checkpointable: StatefulCheckpointable) -> Awaitable[None]:
        """See `CheckpointableHandler`."""
        return await checkpointable.save(directory)

    async def load(
        self, directory: Any, abstract_checkpointable: StatefulCheckpointable | None = None
    ) -> Awaitable[StatefulCheckpointable]:
        """Loads the saved state into an object, and returns the object.

        Raises:
            ValueError: No object was given.
        """
        if abstract_checkpointable is None:
            raise ValueError(
                "To restore a `StatefulCheckpointable`, you must pass an instance of the object."
            )
        loading = await abstract_checkpointable.load(directory)

        async def finish() -> StatefulCheckpointable:
            await loading
            return abstract_checkpointable

        return finish()

    async def metadata(self, directory: Any) -> Any:
        """Raises `NotImplementedError`: only the object knows its files."""
        raise NotImplementedError(
            "A `StatefulCheckpointable` has no metadata that is read without the object"
        )

    def is_handleable(self, checkpointable: Any) -> bool:
        """See `CheckpointableHandler`."""
        return isinstance(checkpointable, StatefulCheckpointable)

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        """See `CheckpointableHandler`."""
        return isinstance(abstract_checkpointable, StatefulCheckpointable)
