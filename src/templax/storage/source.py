"""The protocol for reading a checkpoint: byte ranges of named objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ..errors import CheckpointError, SourceError

_MIN_GAP, _MAX_GAP = 64 * 1024, 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object or directory of a source.

    Attributes:
        key: Path below the root of the source, separated by `/`. It ends in `/` for a directory.
        size: Bytes. 0 for a directory.
        version: A value that changes whenever the bytes do, as far as the store can tell.
        modified: Time of the last change in Unix seconds. None if the store does not report it,
            and for a directory in a listing.
        problem: The error that reading it would raise, as far as a listing can tell; None if it
            finds none.
    """

    key: str
    size: int
    version: object = None
    modified: float | None = None
    problem: CheckpointError | SourceError | None = None

    @property
    def is_dir(self) -> bool:
        return self.key.endswith("/")


@runtime_checkable
class Source(Protocol):
    """Named objects that can be read but not changed. Thread-safe; all calls block.

    All reads through one source, and through the sources that its `at` returned, see the same
    version of each object: if an object changes between two reads, the second raises `SourceError`.
    """

    url: str

    @property
    def maps(self) -> bool:
        """Whether `view` maps objects. False where a page fault would be a network request."""
        ...

    def children(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yields the objects and directories directly below `prefix`, sorted by key.

        Keys are relative to the root, so they start with `prefix`. Yields nothing if there is no
        such directory. What can't be read does not end a listing: it has a `problem`.

        Args:
            prefix: `""` for the root, or a directory that ends in `/`.
        """
        ...

    def walk(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yields every object below `prefix` at any depth, but no directories.

        What is not listed completely, such as a directory that may not be read or a link that is
        not followed, is yielded like an object, with its `problem` and a key that does not end in
        `/`.
        """
        ...

    def stat(self, key: str) -> ObjectInfo | None:
        """Describes the object or directory at `key`; None if there is none. `""` is the root."""
        ...

    def read(
        self, key: str, start: int = 0, stop: int | None = None, out: memoryview | None = None
    ) -> memoryview:
        """Reads bytes `start` to `stop` of an object.

        Args:
            key: The object to read.
            start: First byte.
            stop: End of the range, exclusive; None for the end of the object. Reading beyond the
                end of the object is an error.
            out: Memory to read into: writable, C-contiguous and exactly as long as the range. It
                is also what is returned. By default new memory is allocated.

        Raises:
            NotFound: There is no such object.
            Corrupted: The object is shorter than `stop`. No memory was allocated.
            SourceError: The store failed, or the object has changed since it was first read.
        """
        ...

    def view(self, key: str, start: int, stop: int) -> memoryview | None:
        """Maps bytes `start` to `stop` of an object; None where `maps` is False.

        The mapping is private and writable: writing to it does not change the stored bytes. Changes
        that other programs make to the file do show through: if it is rewritten in place, the
        mapped bytes change; if it is truncated, touching them kills the process.

        Raises:
            NotFound, Corrupted, SourceError: See `read`.
        """
        ...

    def at(self, key: str) -> Source:
        """Returns the same store rooted at `key`, relative to this root. `".."` is the parent."""
        ...


@runtime_checkable
class LoadsAhead(Protocol):
    """A source where each call is a request, so it helps to announce what is needed next."""

    def list_ahead(self) -> None:
        """See the function `list_ahead`."""
        ...

    def read_ahead(self, keys: Iterable[str]) -> None:
        """See the function `read_ahead`."""
        ...


@runtime_checkable
class BeginsReads(Protocol):
    """A source that can read while the caller does something else."""

    def begin_read(
        self, key: str, start: int, stop: int, out: memoryview
    ) -> Callable[[], memoryview]:
        """See the function `begin_read`."""
        ...


@dataclass(frozen=True, slots=True)
class StoreCost:
    """What a request to a store costs, as far as known.

    Attributes:
        latency_s: Seconds until the first byte of an answer.
        bytes_per_s: Bytes a second of one answer.
        measured: Number of requests on which this was measured; 0 if the figures are assumed.
    """

    latency_s: float = 0.03
    bytes_per_s: float = 50e6
    measured: int = 0

    @property
    def gap_bytes(self) -> int:
        """Largest gap, in bytes, that is faster to read and drop than to make another request."""
        return int(min(max(self.latency_s * self.bytes_per_s, _MIN_GAP), _MAX_GAP))

    def __str__(self) -> str:
        how = f"measured on {self.measured}" if self.measured else "assumed"
        return (
            f"{self.latency_s * 1e3:.0f} ms and {self.bytes_per_s / 1e6:.0f} MB/s a request, {how}"
        )


def find_cost(source: object) -> StoreCost | None:
    """What a request to a source costs; None if the cost is negligible, as on a local disk."""
    cost = getattr(source, "cost", None)
    return cost if isinstance(cost, StoreCost) else None


def list_ahead(source: Source) -> None:
    """Lists a directory of many checkpoints at once, if the store needs fewer requests so."""
    if isinstance(source, LoadsAhead):
        source.list_ahead()


def read_ahead(source: Source, keys: Iterable[str]) -> None:
    """Reads small objects that are needed next in parallel, if that is faster for the store.

    Skips objects that do not exist. Errors are raised by the `read` that asks for the object.
    """
    if isinstance(source, LoadsAhead):
        source.read_ahead(keys)


def begin_read(
    source: Source, key: str, start: int, stop: int, out: memoryview
) -> Callable[[], memoryview]:
    """Begins a read if the source can read meanwhile; the function that it returns ends it.

    Args:
        source: Where to read.
        key, start, stop, out: See `Source.read`. Until the function has returned, or has been
            thrown away and the source has noticed, `out` may still be written to.
    """
    if isinstance(source, BeginsReads):
        return source.begin_read(key, start, stop, out)
    return lambda: source.read(key, start, stop, out)


def join_key(root: str, key: str) -> str:
    """The directory that `Source.at` leads to: a key below a root, in which `..` is the parent.

    >>> join_key("run/100", "../200"), join_key("", ".."), join_key("run", "./100/")
    ('run/200', '', 'run/100')
    """
    parts = root.split("/") if root else []
    for part in key.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def root_size(source: Source) -> int:
    """Size in bytes of the file at the root of a source; 0 if there is a directory, or nothing."""
    info = source.stat("")
    return 0 if info is None or info.is_dir else info.size


def open_ranges(source: Source, key: str, size: int) -> Callable[[int, int], memoryview]:
    """Returns a function that reads small ranges of an object, from a mapping if possible.

    Args:
        source: Where the object is.
        key: The object.
        size: Its size. Ranges end there.
    """
    view = source.view(key, 0, size) if source.maps and size else None
    if view is not None:
        return lambda start, stop: view[start:stop]
    return lambda start, stop: source.read(key, min(start, size), min(stop, size))
