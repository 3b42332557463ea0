"""What bytes are read from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


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
            Corrupted: The object is shorter than `stop`; nothing was allocated.
            SourceError: The store failed, or the object changed since it was first read.
        """
        ...

    def view(self, key: str, start: int, stop: int) -> memoryview | None:
        """Bytes of an object as a private, writable mapping; None where `maps` is False.

        The store's bytes stay as they are whatever is written to it. But what others do to the
        file shows through: rewritten in place, the bytes change; cut, touching them kills the
        process.

        Raises:
            NotFound, Corrupted, SourceError: As `read`.
        """
        ...

    def at(self, key: str) -> Source:
        """The same store rooted at `key`, relative to this root. `".."` is the parent."""
        ...
