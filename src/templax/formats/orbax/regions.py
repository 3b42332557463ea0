"""What the files of an item hold besides the values of its leaves, for `account_bytes`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ..._catalog.entry import Extent, LeafEntry
from ..._catalog.regions import Region
from ...storage.source import Source
from ..file_names import MANIFEST
from ..flax.msgpack import Value
from ..ocdbt.regions import describe_database
from ..zarr.metadata import Array, array_prefix
from ..zarr.regions import describe_arrays
from .directory import LEGACY, MARKS, TREE, V1_MARK
from .sidecars import ARRAY_METADATAS, SHARDING
from .step_metadata import STEP_METADATA
from .strings import STRINGS

_METADATA = "metadata of the item"

_KNOWN = frozenset((TREE, STEP_METADATA, SHARDING, STRINGS, V1_MARK, *MARKS)) - {LEGACY, MANIFEST}
"""Files of metadata that an item may have."""


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


def _describe_legacy(entries: Iterable[LeafEntry]) -> Iterator[Region]:
    """The msgpack file of Orbax before 0.6, and the values of leaves that are in it."""
    yield Region(LEGACY, 0, None, "index", _METADATA)
    for entry in entries:
        if isinstance(entry.handle, Value):
            for piece in entry.handle.pieces:
                if piece.stop:
                    yield Region(LEGACY, piece.start, piece.stop, "leaf", entry.name)
