"""What the files of an item hold besides the values of its leaves, for `account_bytes`."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from ..._catalog.entry import Extent, LeafEntry
from ..._catalog.regions import Region
from ...errors import CheckpointError
from ...storage.source import Source
from ..file_names import FILES, MANIFEST
from ..flax.msgpack import Value
from ..ocdbt.read import list_old_places, read_database
from ..zarr.metadata import Array, array_prefix
from .directory import LEGACY, MARKS, TREE, V1_MARK
from .sidecars import ARRAY_METADATAS, SHARDING
from .step_metadata import STEP_METADATA
from .strings import STRINGS

_METADATA = "metadata of the item"

_KNOWN = frozenset((TREE, STEP_METADATA, SHARDING, STRINGS, V1_MARK, *MARKS)) - {LEGACY, MANIFEST}
"""Files of metadata that an item may have."""

_PROCESS = re.compile(r"(ocdbt\.process_[^/]*/)manifest\.ocdbt")

_MANIFEST = re.compile(r"([^/]+/)?manifest\.(ocdbt|[0-9a-f]{16})")

_MAX_PROCESSES = 1 << 10
"""Most databases of single processes whose indexes are read."""


def describe_item(
    source: Source, objects: Mapping[str, Extent], in_database: bool, entries: Iterable[LeafEntry]
) -> Iterator[Region]:
    """The bytes of an item that hold no values of leaves.

    Args:
        source: The item.
        objects: Key → extent of each file or value of the arrays.
        in_database: Whether they are values in a database.
        entries: The leaves.
    """
    entries = list(entries)
    files = list(objects)
    if in_database or not files:
        files = [info.key for info in source.walk() if info.problem is None]
    yield from describe_metadata(files)
    yield from _describe_legacy(entries)
    if in_database:
        yield from describe_database(source, files)
    arrays = [
        (entry.handle, array_prefix(entry.name, files=not in_database))
        for entry in entries
        if isinstance(entry.handle, Array)
    ]
    yield from describe_arrays(objects, in_database, arrays)


def describe_metadata(files: Iterable[str]) -> Iterator[Region]:
    """The files of metadata among the files of an item."""
    for file in files:
        if file in _KNOWN or (file.startswith(ARRAY_METADATAS) and file.count("/") == 1):
            yield Region(file, 0, None, "index", _METADATA)


def describe_database(source: Source, files: Iterable[str]) -> Iterator[Region]:
    """The manifests and nodes of the database of an item, and of those of single processes."""
    prefixes = [""]
    for file in files:
        parts = _MANIFEST.fullmatch(file)
        if parts is not None:
            yield Region(file, 0, None, "index", "manifests of OCDBT")
        if (found := _PROCESS.fullmatch(file)) is not None:
            prefixes.append(found[1])
    for prefix in prefixes[: 1 + _MAX_PROCESSES]:
        nodes: list[Extent] = []
        with suppress(CheckpointError):  # those of processes are not needed to read the leaves
            read_database(source, prefix, nodes)
        what = "index nodes of OCDBT" if not prefix else "index nodes of single processes"
        for node in nodes:
            yield Region(node.key, node.start, node.stop, "index", what)
        with suppress(CheckpointError):
            for place in list_old_places(source, prefix, nodes):
                yield Region(place.key, place.start, place.stop, "gap", "only in older versions")


def _describe_legacy(entries: Iterable[LeafEntry]) -> Iterator[Region]:
    """The msgpack file of Orbax before 0.6, and the values of leaves that are in it."""
    yield Region(LEGACY, 0, None, "index", _METADATA)
    for entry in entries:
        if isinstance(entry.handle, Value):
            for piece in entry.handle.pieces:
                if piece.stop:
                    yield Region(LEGACY, piece.start, piece.stop, "leaf", entry.name)


def describe_arrays(
    objects: Mapping[str, Extent], in_database: bool, arrays: Iterable[tuple[Array, str]]
) -> Iterator[Region]:
    """The metadata of arrays, the indexes in their shards, and values that no leaf names.

    Args:
        objects, in_database: See `describe_item`.
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
