"""A checkpoint in an object store, as it will be after its small files are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .memory import Memory
from .object_store import ObjectSource
from .source import ObjectInfo, StoreCost, join_key


class StagedObjects:
    """Small files that are still in memory, and data files that the store already has.

    Args:
        small: Key → content.
        data: Key → size.
        source: The store, rooted at the checkpoint.
        root: The directory in the checkpoint at which this source is rooted.
    """

    maps = False

    def __init__(
        self,
        small: Mapping[str, bytes],
        data: Mapping[str, int],
        source: ObjectSource,
        root: str = "",
    ):
        self._small, self._data, self._source, self._root = small, data, source, root
        # Only used for the names of data files, not for their contents.
        self._names = Memory({**small, **dict.fromkeys(data, b"")}, root)
        self.url = f"{source.url}/{root}".rstrip("/")

    @property
    def cost(self) -> StoreCost:
        return self._source.cost

    def children(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return map(self._with_size, self._names.children(prefix))

    def walk(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return map(self._with_size, self._names.walk(prefix))

    def stat(self, key: str) -> ObjectInfo | None:
        found = self._names.stat(key)
        return None if found is None else self._with_size(found)

    def _with_size(self, info: ObjectInfo) -> ObjectInfo:
        size = self._data.get(self._root + info.key, info.size)
        return ObjectInfo(info.key, size)

    def read(
        self, key: str, start: int = 0, stop: int | None = None, out: memoryview | None = None
    ) -> memoryview:
        if self._root + key in self._data:
            return self._source.read(self._root + key, start, stop, out)
        return self._names.read(key, start, stop, out)

    def view(self, key: str, start: int, stop: int) -> None:
        return None

    def at(self, key: str) -> StagedObjects:
        root = join_key(self._root.rstrip("/"), key)
        return StagedObjects(self._small, self._data, self._source, f"{root}/" if root else "")
