"""What a checkpoint is written to."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class SinkFile(Protocol):
    """One file or object of a `Sink`, while it is written."""

    @property
    def size(self) -> int:
        """Bytes from the first to the last one written; what lies between and was not is zeros."""
        ...

    def write(self, data: bytes | bytearray | memoryview, offset: int | None = None) -> None:
        """Writes all of `data` at `offset`, or behind the last byte written so far.

        Threads may write at once to places that don't overlap, if they give `offset`.

        Args:
            data: Anything with a C-contiguous buffer. Not kept.
            offset: Where its first byte goes.

        Raises:
            SaveError: The store refuses, or the save was given up before.
        """
        ...

    def sync(self) -> None:
        """What was written so far is kept whatever happens. `close` and `commit` see to it, too.

        Raises:
            SaveError: The store refuses; the save is given up.
        """
        ...

    def close(self) -> None:
        """Nothing more will be written. No thread may be writing. Idempotent.

        Raises:
            SaveError: See `sync`.
        """
        ...


@runtime_checkable
class Sink(Protocol):
    """Files that become visible all at once, with `commit`, or never. Used once.

    Where a store moves a whole directory in one step, `commit` does; where it can't, as object
    stores, it writes the marker last without which no reader takes the rest for a checkpoint.
    Until then what was at `path` stays as it is. Whatever fails gives the save up: what was written
    is removed, and every later call raises.
    """

    path: str
    """Final place, as far as messages need it."""

    left: tuple[str, ...]
    """What could not be removed in the end: what was replaced, or what had been written."""

    def create(self, key: str) -> SinkFile:
        """A new, empty file at `key`, with `/`, below `path`.

        Raises:
            SaveError: The store refuses, or the save was given up before.
            UsageError: A key that leads elsewhere.
        """
        ...

    def put(self, key: str, data: bytes | bytearray | memoryview) -> None:
        """A whole small file: created, written, synced and closed.

        Raises:
            SaveError, UsageError: See `create`.
        """
        ...

    def commit(self) -> None:
        """Makes everything visible, and to stay. Called once, when all is written.

        Raises:
            AlreadyExists: Something appeared at `path` meanwhile that must not be replaced.
            SaveError: The store refuses.
        """
        ...

    def discard(self) -> None:
        """Removes all that was written, unless it was committed. Never raises; idempotent."""
        ...
