"""The protocol for writing a checkpoint: files that become visible all at once."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from .source import Source


@runtime_checkable
class SinkFile(Protocol):
    """One file or object of a `Sink`, open for writing."""

    @property
    def size(self) -> int:
        """Bytes up to the end of the last one written. Gaps that were never written are zeros."""
        ...

    def write(self, data: bytes | bytearray | memoryview, offset: int | None = None) -> None:
        """Writes all of `data` at `offset`, or at the end of the file if `offset` is None.

        Several threads may write at the same time if each passes an `offset` and their ranges do
        not overlap.

        Args:
            data: Any object with a C-contiguous buffer. No reference to it is kept.
            offset: Position of the first byte, in bytes.

        Raises:
            SaveError: The store refused the write, or the save has already ended.
        """
        ...

    def sync(self) -> None:
        """Makes what was written so far durable. `close` and `commit` do this, too.

        Raises:
            SaveError: The store refused; the save is abandoned.
        """
        ...

    def close(self) -> None:
        """Finishes the file. No thread may be writing to it. Idempotent.

        Raises:
            SaveError: See `sync`.
        """
        ...


@runtime_checkable
class StreamedFile(SinkFile, Protocol):
    """A file that is sent in order while it is written, and so needs to know what will come."""

    def expect(self, nbytes: int, memory: int) -> None:
        """Announces about how many bytes will be written. Called before the first write.

        Args:
            nbytes: The approximate number of bytes.
            memory: Bytes that may wait in memory to be sent.
        """
        ...

    def settle(self, offset: int) -> None:
        """Announces that nothing more will be written before `offset`: gaps there are zeros."""
        ...


@runtime_checkable
class Sink(Protocol):
    """Files that become visible all at once, when `commit` is called, or never. Used only once.

    A store that can move a whole directory in one step does so in `commit`. Any other, such as an
    object store, writes a marker last, without which no reader treats the rest as a checkpoint.
    Until then, whatever was at `path` stays as it is. Any failure abandons the save:
    what was written is removed, and every later call raises.
    """

    path: str
    """Final location of the checkpoint. Only used in messages."""

    not_removed: tuple[str, ...]
    """Paths that could not be removed in the end: the replaced checkpoint, or what was written."""

    def create(self, key: str) -> SinkFile:
        """Creates a new, empty file at `key`, a path below `path` separated by `/`.

        Raises:
            SaveError: The store refused, or the save has already ended.
            UsageError: `key` points outside `path`.
        """
        ...

    def put(self, key: str, data: bytes | bytearray | memoryview) -> None:
        """Creates, writes, syncs and closes a small file.

        Raises:
            SaveError, UsageError: See `create`.
        """
        ...

    def commit(self) -> None:
        """Makes all files visible and durable. Called once, after everything is written.

        Raises:
            AlreadyExists: Something that must not be replaced appeared at `path` during the save.
            SaveError: The store refused.
        """
        ...

    def discard(self) -> None:
        """Removes all that was written, unless it was committed. Never raises; idempotent."""
        ...


@runtime_checkable
class SharedSink(Sink, Protocol):
    """A sink to which several processes add files. Each has one of its own; process 0 commits."""

    directory: str
    """What the other processes need to make their sinks, besides `path`."""

    committed: bool
    """Whether the checkpoint is at `path`, durably."""


@runtime_checkable
class PreviewedSink(Sink, Protocol):
    """A sink whose files can be read before the commit."""

    def preview(self) -> Source:
        """The checkpoint as it will be. Nothing may be written after this call.

        Raises:
            SaveError: The store refused.
        """
        ...
