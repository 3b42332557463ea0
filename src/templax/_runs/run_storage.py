"""The directory of a run on a disk or in a store: what a manager needs besides saves and reads."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from ..errors import UsageError
from ..storage.local import Local
from ..storage.open import find_remote, is_source, open_source
from ..storage.source import Source
from .local_run import LocalRun

if TYPE_CHECKING:
    from ..storage.stores import Store


class RunStorage(Protocol):
    """A directory of steps. It need not exist."""

    @property
    def url(self) -> str:
        """Its absolute path, or its URL."""
        ...

    @property
    def storage(self) -> Store | None:
        """How to reach its object store; None for a local directory."""
        ...

    def look(self) -> Source:
        """The directory as it is now: to see later changes, look again.

        Raises:
            UsageError, SourceError: Something else is there, or it can't be read.
        """
        ...

    def join(self, name: str) -> str:
        """The path or URL of a name in the directory."""
        ...

    def acquire(self) -> None:
        """Takes the right to save to the run, unless this object already has it.

        Raises:
            SaveError: Another process has it; or nothing can be saved there.
        """
        ...

    def release(self) -> None:
        """Gives up the right to save. Does nothing if this object does not have it."""
        ...

    def hold_for_reading(self, name: str) -> AbstractContextManager[bool]:
        """Keeps a step from being deleted while it is read, if the storage can.

        Yields:
            Whether the step still exists, as far as known: False if it was deleted meanwhile.
        """
        ...

    def find_abandoned(self, names: Collection[str], *, watch: bool = True) -> set[str]:
        """Finds those of several unfinished saves to which no process writes any more.

        Args:
            names: The names of their directories.
            watch: Whether to take the time to find out. If False, only those that are known at once
                to be abandoned are returned.
        """
        ...

    def remove_leftovers(self, names: Collection[str]) -> None:
        """Removes what was certainly left by killed saves of templax.

        Args:
            names: The directories of steps that are not committed.

        Raises:
            SaveError: Some could not be removed.
        """
        ...

    def delete(self, name: str) -> bool:
        """Deletes a step in such an order that a part of it never counts as a step.

        Returns:
            Whether the step is gone: False if a process is reading it.

        Raises:
            SaveError: The storage refused.
        """
        ...

    def remove_leftover(self, name: str) -> None:
        """Removes what a killed save left under a name.

        Raises:
            SaveError: A process is using it, the storage refused, or others have put something
                there that the save did not write.
        """
        ...


def open_run(url: str | os.PathLike[str] | Source, storage: Store | None = None) -> RunStorage:
    """The directory of a run at a path or URL.

    Args:
        url: As for `open_source`.
        storage: How to reach an object store; by default as the environment says.

    Raises:
        MissingPackage, SourceError, UsageError: See `open_source`.
    """
    remote = None if is_source(url) else find_remote(url, storage)
    if remote is not None:
        from ..storage.object_run import ObjectRun  # needs asyncio, which takes 20 ms to import

        store, place = remote
        return ObjectRun(store, place.rstrip("/"))
    source = open_source(url, storage)
    if not isinstance(source, Local):
        raise UsageError(f"Expected a path, got {type(url).__name__}")
    # Made absolute now, so that a later chdir does not change the directory that is saved to.
    return LocalRun(os.path.abspath(source.url))
