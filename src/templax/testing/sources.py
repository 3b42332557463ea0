"""A source that records reads and fails on purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ..storage.source import ObjectInfo, Source, StoreCost, find_cost

Fault = Callable[[str, int, int], None]
"""Called with the key, start and stop of each read; raises an exception to make the read fail."""


@dataclass
class Watched:
    """A source that records reads, and can make them fail.

    Attributes:
        source: The source to read from.
        fault: Called before each read with key, start and stop, in bytes; None for no faults. To
            behave as a store does, it raises an error of `Source.read`. Several threads may call it
            at the same time.
        reads: Key, start and stop of each read so far. Keys are relative to the outermost root.
            Listings, `stat` and `view` are not recorded.
        root: The root of this source relative to the outermost one: `""`, or ends in `/`.

    Example:
        >>> from templax.storage import Memory
        >>> from templax.testing import Watched
        >>> watched = Watched(Memory({"a": b"hello"}))
        >>> bytes(watched.read("a", 1, 3))
        b'el'
        >>> watched.reads
        [('a', 1, 3)]

        Make every read fail:

        >>> from templax.errors import SourceError
        >>> def fail(key, start, stop):
        ...     raise SourceError(f"no answer for {key}")
        >>> Watched(Memory({"a": b"hello"}), fail).read("a")
        Traceback (most recent call last):
        templax.errors.SourceError: no answer for a
    """

    source: Source
    fault: Fault | None = None
    reads: list[tuple[str, int, int]] = field(default_factory=list)
    root: str = ""

    @property
    def url(self) -> str:
        return self.source.url

    @property
    def cost(self) -> StoreCost | None:
        return find_cost(self.source)

    def children(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self.source.children(prefix)

    def walk(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self.source.walk(prefix)

    def stat(self, key: str) -> ObjectInfo | None:
        return self.source.stat(key)

    def read(
        self, key: str, start: int = 0, stop: int | None = None, out: memoryview | None = None
    ) -> memoryview:
        if stop is None:
            info = self.source.stat(key)
            stop = info.size if info is not None else start
        self.reads.append((self.root + key, start, stop))
        if self.fault is not None:
            self.fault(self.root + key, start, stop)
        return self.source.read(key, start, stop, out)

    @property
    def maps(self) -> bool:
        return self.source.maps

    def view(self, key: str, start: int, stop: int) -> memoryview | None:
        return self.source.view(key, start, stop)

    def at(self, key: str) -> Watched:
        root = "" if key == ".." else f"{self.root}{key.rstrip('/')}/"
        return Watched(self.source.at(key), self.fault, self.reads, root)
