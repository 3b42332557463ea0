"""Where bytes are, and where they go: a protocol for each, one file per kind of store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable
from urllib.parse import unquote

__all__ = [
    "Local",
    "Memory",
    "ObjectInfo",
    "Sink",
    "SinkFile",
    "Source",
    "Staging",
    "open_source",
    "open_staging",
]


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object of a source.

    Attributes:
        key: Path below the source's root, with `/`; of a directory it ends in `/`.
        size: Bytes. 0 for a directory.
        version: Changes whenever the bytes do (as far as the store can tell).
        modified: When that was last, in Unix seconds; None if the store does not say, and for a
            directory in a listing.
    """

    key: str
    size: int
    version: object = None
    modified: float | None = None

    @property
    def is_dir(self) -> bool:
        return self.key.endswith("/")


@runtime_checkable
class Source(Protocol):
    """Read-only bytes under names. Thread-safe and blocking.

    All reads through one source (and through those that `at` made from it) see one version of each
    object: a change between two reads raises `SourceError`.
    """

    url: str

    @property
    def maps(self) -> bool:
        """Whether `view` serves: it never does where a page fault is a request to a network."""
        ...

    def children(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Objects and directories directly below `prefix` ("" or ending in `/`), sorted by key.

        Keys are relative to the root, so they start with `prefix`. Nothing, if there is no such
        directory.
        """
        ...

    def walk(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every object below `prefix`, at any depth, without the directories."""
        ...

    def stat(self, key: str) -> ObjectInfo | None:
        """The object or directory at `key`, or None if there is none. `""` is the root."""
        ...

    def read(
        self, key: str, start: int = 0, stop: int | None = None, out: memoryview | None = None
    ) -> memoryview:
        """Bytes `start` to `stop` (None: the end) of an object.

        Args:
            key: The object.
            start: First byte.
            stop: Byte after the last; more than the object has is an error.
            out: Writable, C-contiguous, exactly as long as what is read; filled and returned.

        Raises:
            NotFound: No such object.
            Damaged: The object is shorter than `stop`; nothing was allocated.
            SourceError: The store failed, or the object changed since it was first read.
        """
        ...

    def view(self, key: str, start: int, stop: int) -> memoryview | None:
        """Bytes of an object as a private, writable mapping; None where `maps` is False.

        The store's bytes stay as they are whatever is written to it. But what others do to the
        file shows through: rewritten in place, the bytes change; cut, touching them kills the
        process.

        Raises:
            NotFound, Damaged, SourceError: As `read`.
        """
        ...

    def at(self, key: str) -> Source:
        """The same store rooted at `key`, relative to this root. `".."` is the parent."""
        ...


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
            SaveError: As of `sync`.
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
            SaveError, UsageError: As of `create`.
        """
        ...

    def commit(self) -> None:
        """Makes everything visible, and to stay. Called once, when all is written.

        Raises:
            Exists: Something came to `path` meanwhile that must not be replaced.
            SaveError: The store refuses.
        """
        ...

    def discard(self) -> None:
        """Removes all that was written, unless it was committed. Never raises; idempotent."""
        ...


from ._local import Local  # noqa: E402  (the protocols above are what they implement)
from ._memory import Memory  # noqa: E402
from ._staging import Staging  # noqa: E402


def open_source(url: str | os.PathLike[str] | Source) -> Source:
    """The source of a path or URL; a source is returned as it is.

    Args:
        url: A local path (relative or absolute, `~` is expanded), a `file://` URL, or a `Source`.

    Raises:
        SourceError: A scheme or host that no source serves.
        UsageError: The empty path: an unset variable must not mean the current directory.
    """
    if isinstance(url, Source) and not isinstance(url, (str, os.PathLike)):
        return url
    return Local(_local_path(url, "reads", "copy the checkpoint to a local directory"))


def open_staging(url: str | os.PathLike[str] | Sink, *, overwrite: bool) -> Sink:
    """Where a checkpoint is written that will be at a path or URL; a sink is returned as it is.

    Args:
        url: As for `open_source`, or a `Sink`.
        overwrite: Whether what is there may be replaced.

    Raises:
        Exists: Something is there, and `overwrite` is False.
        SaveError: What is there can't be replaced, or nothing can be written there.
        SourceError: A scheme or host that no sink serves.
        UsageError: The empty path: an unset variable must not mean the current directory.
    """
    if isinstance(url, Sink) and not isinstance(url, (str, os.PathLike)):
        return url
    hint = "save to a local directory, then copy that"
    return Staging(_local_path(url, "writes", hint), overwrite=overwrite)


def _local_path(url: str | os.PathLike[str], does: str, hint: str) -> str:
    """The path that a path or a `file://` URL names.

    Args:
        url: What a user gave.
        does: What is done to files there, for the messages: "reads".
        hint: What to do about another scheme.
    """
    from .._errors import SourceError, UsageError

    path = os.fspath(url)
    if not isinstance(path, str) or "\0" in path:
        raise UsageError(f"Expected a path (str), got {path!r}")
    scheme, colon, rest = path.partition("://")
    if colon and scheme.lower() == "file":
        host, _, path = rest.partition("/")
        if host not in ("", "localhost"):
            raise SourceError(f"templax {does} local files, not those of host `{host}`")
        path = unquote(f"/{path}") if path else ""
        colon = ""
    if not path:
        raise UsageError(f'Expected a path, got "{os.fspath(url)}"')
    if colon:
        raise SourceError(
            f"templax {does} local files; `{scheme}://` is not served by this version; hint: {hint}"
        )
    return path
