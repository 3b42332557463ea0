"""A source over a dict: the reference implementation of `Source`, also used by tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ..errors import Corrupted, NotFound
from .source import ObjectInfo, join_key


class Memory:
    """A source over `{key: bytes}`. The mapping is not copied.

    Example:
        >>> source = Memory({"a/b": b"hello"})
        >>> bytes(source.read("a/b", 1, 4))
        b'ell'
        >>> [info.key for info in source.children()]
        ['a/']
    """

    maps = True

    def __init__(self, objects: Mapping[str, bytes], root: str = ""):
        self.url = f"memory://{root.rstrip('/')}"
        self._objects = objects
        self._root = root

    def children(self, prefix: str = "") -> Iterator[ObjectInfo]:
        full = self._root + prefix
        seen = set()
        for key in sorted(self._objects):
            if key.startswith(full):
                head, slash, _ = key[len(full) :].partition("/")
                if head + slash not in seen:
                    seen.add(head + slash)
                    yield ObjectInfo(prefix + head + slash, 0 if slash else len(self._objects[key]))

    def walk(self, prefix: str = "") -> Iterator[ObjectInfo]:
        full = self._root + prefix
        for key in sorted(self._objects):
            if key.startswith(full):
                yield ObjectInfo(key[len(self._root) :], len(self._objects[key]))

    def stat(self, key: str) -> ObjectInfo | None:
        if self._root + key in self._objects:
            return ObjectInfo(key, len(self._objects[self._root + key]))
        below = self._root + (f"{key.rstrip('/')}/" if key else "")
        if any(k.startswith(below) for k in self._objects):
            return ObjectInfo(f"{key.rstrip('/')}/", 0)
        return None

    def read(
        self, key: str, start: int = 0, stop: int | None = None, out: memoryview | None = None
    ) -> memoryview:
        try:
            data = self._objects[self._root + key]
        except KeyError:
            raise NotFound("Expected an object, found none", file=key) from None
        stop = len(data) if stop is None else stop
        if not 0 <= start <= stop <= len(data):
            raise Corrupted(
                f"Expected at least {stop} bytes, the file has {len(data)}",
                file=key,
                start=start,
                stop=stop,
            )
        if out is None:
            return memoryview(data)[start:stop]
        out.cast("B")[:] = memoryview(data)[start:stop]
        return out

    def view(self, key: str, start: int, stop: int) -> memoryview:
        aligned = np.empty(stop - start + 64, np.uint8)
        first = -aligned.ctypes.data % 64
        return self.read(key, start, stop, memoryview(aligned)[first : first + stop - start])

    def at(self, key: str) -> Memory:
        root = join_key(self._root.rstrip("/"), key)
        return Memory(self._objects, f"{root}/" if root else "")
