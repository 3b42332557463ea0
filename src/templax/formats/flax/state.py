"""The catalog of a state dict, whose arrays are in its file or in directories beside it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..._catalog.catalog import Catalog
from ..._catalog.entry import Chunk, LeafEntry
from ..._catalog.regions import Region
from ..._core.gc_pause import pause_gc
from ..._core.names import Path, join_path
from ...errors import Corrupted
from ...storage.source import Source
from .msgpack import Empty, Leaf, Value, locate_value
from .specs import Spec

if TYPE_CHECKING:
    from .outside import OutsideArrays


def make_catalog(
    source: Source,
    file: str,
    leaves: Mapping[Path, Leaf],
    *,
    url: str,
    format: str,
    evidence: str,
    metadata: Mapping[str, Any],
    unread: Mapping[str, str],
    uncommitted: str | None,
) -> Catalog:
    """The catalog of a state dict.

    Args:
        source: The directory of the file; or the file itself, if no leaf is a `Spec`.
        file: The file, a key of the source.
        leaves: What `read_msgpack` found in it. Values have their place in the file.
        url, format, evidence, metadata, unread, uncommitted: Go into the catalog.

    Raises:
        Corrupted: An array is missing, its metadata is unreadable, or not what the file says; or
            two leaves refer to the same array.
        Unsupported: Its metadata has something that templax does not read.
    """
    outside: OutsideArrays | None = None
    entries: list[LeafEntry] = []
    empties: dict[Path, str] = {}
    with pause_gc():
        for path, leaf in leaves.items():
            if isinstance(leaf, Empty):
                empties[path] = leaf.name
                continue
            name = join_path(path)
            if isinstance(leaf, Value):
                entry = LeafEntry(name, path, leaf.shape, leaf.dtype, leaf.kind, handle=leaf)
            elif isinstance(leaf, Spec):
                if outside is None:
                    from .outside import OutsideArrays  # few files have any

                    outside = OutsideArrays(source)
                array = outside.read(name, leaf)
                problem = array.array.unsupported
                entry = LeafEntry(
                    name, path, array.shape, array.dtype, handle=array, undecodable=problem
                )
            else:
                entry = LeafEntry(name, path, (), np.dtype(str), "string", value=leaf)
            entries.append(entry)
    return Catalog(
        url=url,
        format=format,
        evidence=evidence,
        entries=tuple(entries),
        source=source,
        locator=functools.partial(_locate, file, outside),
        metadata=metadata,
        empties=empties,
        unread=unread,
        uncommitted=uncommitted,
        regions=functools.partial(_describe_files, file, outside),
    )


def _describe_files(file: str, outside: OutsideArrays | None) -> Iterator[Region]:
    """The bytes that hold no values: around those in the file, and the metadata of the arrays."""
    yield Region(file, 0, None, "index", "msgpack around the arrays")
    if outside is not None:
        yield from outside.describe()


@pause_gc()
def _locate(
    file: str,
    outside: OutsideArrays | None,
    entries: Iterable[LeafEntry],
    damages: list[Corrupted] | None = None,
) -> dict[str, tuple[Chunk, ...]]:
    locate_array = None if outside is None else outside.make_locator(damages)
    located: dict[str, tuple[Chunk, ...]] = {}
    for entry in entries:
        handle = entry.handle
        if isinstance(handle, Value):
            located[entry.name] = locate_value(handle, file, inline=False)
        elif handle is not None and locate_array is not None:
            located[entry.name] = locate_array(entry)
        else:
            located[entry.name] = ()
    return located
