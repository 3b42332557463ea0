"""Where bytes are: one protocol, one file per kind of store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable
from urllib.parse import unquote

__all__ = ["Local", "Memory", "ObjectInfo", "Source", "open_source"]


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object of a source.

    Attributes:
        key: Path below the source's root, with `/`; of a directory it ends in `/`.
        size: Bytes. 0 for a directory.
        version: Changes whenever the bytes do (as far as the store can tell).
    """

    key: str
    size: int
    version: object = None

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


from ._local import Local  # noqa: E402  (the protocol above is what they implement)
from ._memory import Memory  # noqa: E402


def open_source(url: str | os.PathLike[str] | Source) -> Source:
    """The source of a path or URL; a source is returned as it is.

    Args:
        url: A local path (relative or absolute, `~` is expanded), a `file://` URL, or a `Source`.

    Raises:
        SourceError: A scheme or host that no source serves.
        UsageError: The empty path: an unset variable must not mean the current directory.
    """
    from .._errors import SourceError, UsageError

    if isinstance(url, Source) and not isinstance(url, (str, os.PathLike)):
        return url
    path = os.fspath(url)
    if not isinstance(path, str) or "\0" in path:
        raise UsageError(f"Expected a path (str), got {path!r}")
    scheme, colon, rest = path.partition("://")
    if colon and scheme.lower() == "file":
        host, _, path = rest.partition("/")
        if host not in ("", "localhost"):
            raise SourceError(f"templax reads local files, not those of host `{host}`")
        path = unquote(f"/{path}") if path else ""
        colon = ""
    if not path:
        raise UsageError(f'Expected a path, got "{os.fspath(url)}"')
    if not colon:
        return Local(path)
    raise SourceError(
        f"templax reads local files; `{scheme}://` is not served by this version; "
        f"hint: copy the checkpoint to a local directory"
    )
