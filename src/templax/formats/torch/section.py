"""A part of an object, as a source of its own."""

from __future__ import annotations

from collections.abc import Iterator

from ...errors import Corrupted
from ...storage.source import ObjectInfo, Source


class Section:
    """A source whose root is a byte range of an object.

    Args:
        whole: The source of that object.
        key: The object.
        start, stop: The range.
        mapped: A view of the whole object, if there can be one: reading many sections of it does
            not open it each time.
    """

    def __init__(
        self, whole: Source, key: str, start: int, stop: int, mapped: memoryview | None = None
    ):
        self.url = f"{whole.url}/{key}"
        self._whole, self._key, self._start, self._stop = whole, key, start, stop
        self._mapped = mapped

    @property
    def maps(self) -> bool:
        return self._whole.maps

    def children(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return iter(())

    def walk(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return iter(())

    def stat(self, key: str) -> ObjectInfo | None:
        return None if key else ObjectInfo("", self._stop - self._start)

    def read(
        self, key: str, start: int = 0, stop: int | None = None, out: memoryview | None = None
    ) -> memoryview:
        start, stop = self._place(start, stop)
        if self._mapped is not None and out is None:
            return self._mapped[start:stop]
        return self._whole.read(self._key, start, stop, out)

    def view(self, key: str, start: int, stop: int) -> memoryview | None:
        start, stop = self._place(start, stop)
        if self._mapped is not None:
            return self._mapped[start:stop]
        return self._whole.view(self._key, start, stop)

    def at(self, key: str) -> Source:
        return self._whole.at(self._key).at(key)

    def _place(self, start: int, stop: int | None) -> tuple[int, int]:
        size = self._stop - self._start
        stop = size if stop is None else stop
        if not 0 <= start <= stop <= size:
            raise Corrupted(f"Expected at least {stop} bytes, the section has {size}")
        return self._start + start, self._start + stop
