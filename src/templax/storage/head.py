"""A source that reads the beginning of its file only once, for all formats that look at it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .source import ObjectInfo, Source, StoreCost, find_cost, list_ahead, read_ahead

_HEAD = 1 << 12
"""Bytes of the beginning that are kept: what most formats need to recognise a file."""


class KeptHead:
    """Wraps another source, and asks only once about its root and for its first bytes.

    Formats try to recognise a file one after the other. In an object store, each read is a request.

    Args:
        source: The other source.
    """

    def __init__(self, source: Source):
        self._source, self.url = source, source.url
        self._info = source.stat("")
        self._head: memoryview | None = None

    @property
    def maps(self) -> bool:
        return self._source.maps

    @property
    def cost(self) -> StoreCost | None:
        return find_cost(self._source)

    def children(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self._source.children(prefix)

    def walk(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self._source.walk(prefix)

    def stat(self, key: str) -> ObjectInfo | None:
        return self._info if key == "" else self._source.stat(key)

    def read(
        self, key: str, start: int = 0, stop: int | None = None, out: memoryview | None = None
    ) -> memoryview:
        size = 0 if self._info is None or self._info.is_dir else self._info.size
        if key or out is not None or stop is None or not start <= stop <= min(size, _HEAD):
            return self._source.read(key, start, stop, out)
        if self._head is None:
            self._head = self._source.read("", 0, min(size, _HEAD))
        return self._head[start:stop]

    def view(self, key: str, start: int, stop: int) -> memoryview | None:
        return self._source.view(key, start, stop)

    def list_ahead(self) -> None:
        """See `LoadsAhead`."""
        list_ahead(self._source)

    def read_ahead(self, keys: Iterable[str]) -> None:
        """See `LoadsAhead`."""
        read_ahead(self._source, keys)

    def at(self, key: str) -> Source:
        return self._source.at(key)
