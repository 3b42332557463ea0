"""What the files of arrays hold besides values of leaves, for `account_bytes`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping

from ..._catalog.entry import Extent
from ..._catalog.regions import Region
from ..file_names import FILES
from .metadata import Array


def describe_arrays(
    objects: Mapping[str, Extent], in_database: bool, arrays: Iterable[tuple[Array, str]]
) -> Iterator[Region]:
    """The metadata of arrays, the indexes in their shards, and values that no leaf names.

    Args:
        objects: Key → extent of each file or value.
        in_database: Whether they are values in a database.
        arrays: Each array with the prefix of its keys.
    """
    left = 2 * len(objects) + (1 << 10)
    for array, prefix in arrays:
        for file in FILES:
            yield from _describe_object(objects, prefix + file, "metadata of arrays")
        if array.sharding is None:
            continue
        left -= math.prod(array.grid)
        if left < 0:  # far more chunks than there are values; the rest shows up as gaps
            return
        for cell in itertools.product(*map(range, array.grid)):
            yield from _describe_object(objects, prefix + array.key(cell), "indexes of shards")
    if in_database:
        for extent in objects.values():
            if extent.inline is None:
                what = "a value that no leaf refers to"
                yield Region(extent.key, extent.start, extent.stop, "gap", what)


def _describe_object(objects: Mapping[str, Extent], key: str, what: str) -> Iterator[Region]:
    extent = objects.get(key)
    if extent is not None and extent.inline is None:
        yield Region(extent.key, extent.start, extent.stop, "index", what)
