"""The chunks of zarr arrays in a database as columns, for plans that look at a few of many."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from ..._catalog.chunk_columns import ChunkColumns
from ..._catalog.entry import Chunk, Extent
from ..._codecs.blosc import NUMCODECS
from ..._codecs.decode import find_missing
from ..._core.boxes import Box, Shape
from ...errors import CheckpointError
from ...storage.source import Source
from .chunks import check_length, make_chunk
from .container import ArrayLocator, Container
from .metadata import Array, array_prefix

_MIN_CHUNKS = 16
"""Arrays of fewer chunks are left to `ArrayLocator`."""


class ColumnLocator:
    """Locates the arrays of a database for one call of `locate_columns`.

    Whatever is out of the ordinary, such as an absent chunk, a value in the index or a length that
    is impossible, is left to `ArrayLocator`, which knows what it means.

    Args:
        source: Where the container is.
        container: A database.
        arrays: Locates the chunks of other arrays.
    """

    def __init__(self, source: Source, container: Container, arrays: ArrayLocator):
        self._source, self._objects, self._arrays = source, container.objects, arrays
        self._keys: dict[int, list[str]] = {}
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []
        self._sizes: list[int] = []

    def locate(self, array: Array, name: str) -> Sequence[Chunk]:
        """The chunks of an array; see `ArrayLocator.locate`."""
        columns = self._make_columns(array, name)
        return self._arrays.locate(array, name) if columns is None else columns

    def _make_columns(self, array: Array, name: str) -> ChunkColumns | None:
        plain = array.placed and array.unsupported is None and array.sharding is None
        count = math.prod(array.grid)
        if not plain or not _MIN_CHUNKS <= count <= len(self._objects):
            return None
        if not NUMCODECS.isdisjoint(array.codecs) or find_missing(array.codecs) is not None:
            return None
        prefix, objects = array_prefix(name, files=False), self._objects
        keys = self._keys.get(id(array))
        if keys is None:  # most arrays share their metadata with others
            cells = itertools.product(*map(range, array.grid))
            keys = self._keys[id(array)] = [array.key(cell) for cell in cells]
        found = [objects.get(prefix + key) for key in keys]
        extents = [extent for extent in found if extent is not None and extent.inline is None]
        if len(extents) != count:
            return None
        start = np.array([extent.start for extent in extents], np.int64)
        stop = np.array([extent.stop for extent in extents], np.int64)
        if not self._are_possible(array, extents, stop - start):
            return None
        file = self._number([extent.key for extent in extents])
        if (stop > np.array(self._sizes, np.int64)[file]).any():
            return None

        def make(at: int) -> Chunk:
            cell = np.unravel_index(at, array.grid)
            box = _find_box(tuple(map(int, cell)), array.chunk_shape)
            return make_chunk(objects[prefix + keys[at]], box, array, array)

        how = array.codecs, array.order, array.dtype
        layout = "zarr", array.shape, array.chunk_shape, how
        return ChunkColumns(self._names, file, start, stop, layout, make)

    def _are_possible(self, array: Array, extents: Sequence[Extent], sizes: np.ndarray) -> bool:
        """Whether chunks of equal boxes can have these lengths: the least and the greatest."""
        nbytes = math.prod(array.chunk_shape) * array.dtype.itemsize
        try:
            for at in {int(sizes.argmin()), int(sizes.argmax())}:
                check_length(extents[at], nbytes, array.codecs)
        except CheckpointError:
            return False
        return True

    def _number(self, names: Sequence[str]) -> np.ndarray:
        """The numbers of files; a missing one has no bytes."""
        for name in set(names).difference(self._numbers):
            info = self._source.stat(name)
            self._numbers[name] = len(self._names)
            self._names.append(name)
            self._sizes.append(0 if info is None or info.is_dir else info.size)
        return np.array([self._numbers[name] for name in names], np.int64)


def _find_box(cell: Shape, chunk: Shape) -> Box:
    return tuple([(i * c, i * c + c) for i, c in zip(cell, chunk, strict=True)])
