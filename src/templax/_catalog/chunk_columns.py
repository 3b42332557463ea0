"""The chunks of a leaf as columns: a plan for many hosts looks at a few of a million."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import overload

import numpy as np

from .catalog import Catalog
from .entry import Chunk, LeafEntry


class ChunkColumns(Sequence[Chunk]):
    """Chunks that lie in files. Each is made when it is asked for.

    Attributes:
        files: Names of files; leaves may share the list, and add to it.
        file: Which of these each chunk lies in.
        start, stop: Its bytes there.
        layout: Equal for leaves whose chunks differ at most in where they are stored, in their
            checksums and, if compressed, in their stored size.

    Args:
        files, file, start, stop, layout: See the attributes.
        make: Makes the chunk with an index.
    """

    def __init__(
        self,
        files: Sequence[str],
        file: np.ndarray,
        start: np.ndarray,
        stop: np.ndarray,
        layout: Hashable,
        make: Callable[[int], Chunk],
    ):
        self.files, self.file, self.start, self.stop = files, file, start, stop
        self.layout, self._make = layout, make

    def __len__(self) -> int:
        return len(self.file)

    @overload
    def __getitem__(self, index: int) -> Chunk: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Chunk]: ...

    def __getitem__(self, index: int | slice) -> Chunk | Sequence[Chunk]:
        numbers = range(len(self))[index]
        return self._make(numbers) if isinstance(numbers, int) else [*map(self._make, numbers)]


def locate_columns(catalog: Catalog, entries: Iterable[LeafEntry]) -> Mapping[str, Sequence[Chunk]]:
    """Like `Catalog.locate`; the chunks of a leaf are `ChunkColumns` if its locator can say so.

    Raises:
        Corrupted, Unsupported: See `Catalog.locate`.
    """
    locate = getattr(catalog.locator, "locate_columns", None)
    return catalog.locate(entries) if locate is None else locate(entries)
