"""The catalog of a state dict, whose arrays are in its file or in directories beside it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
import numpy as np

from ..._catalog.catalog import Catalog
from ..._catalog.entry import Chunk, Extent, LeafEntry
from ..._catalog.regions import Region
from ..._core.boxes import format_shape
from ..._core.dtypes import name_of
from ..._core.gc_pause import pause_gc
from ..._core.names import Path, join_path
from ...errors import CheckpointError, Corrupted, SourceError
from ...storage.source import Source
from ..zarr.container import (
    ArrayLocator,
    Container,
    Parsed,
    list_files,
    missing_dot_file_error,
    read_array,
)
from ..zarr.metadata import FILES, Array, array_prefix
from .msgpack import Empty, Leaf, Value, locate_value
from .specs import Spec


class _Outside(msgspec.Struct, frozen=True, gc=False):
    """An array in a directory of its own, whose keys begin with `prefix`."""

    array: Array
    prefix: str


def make_catalog(
    source: Source,
    file: str,
    leaves: Mapping[Path, Leaf],
    *,
    url: str,
    format: str,
    evidence: str,
    metadata: Mapping[str, Any],
    uncommitted: str | None,
) -> Catalog:
    """The catalog of a state dict.

    Args:
        source: The directory of the file; or the file itself, if no leaf is a `Spec`.
        file: The file, a key of the source.
        leaves: What `read_msgpack` found in it. Values have their place in the file.
        url, format, evidence, metadata, uncommitted: Go into the catalog.

    Raises:
        Corrupted: An array is missing, its metadata is unreadable, or not what the file says; or
            two leaves refer to the same array.
        Unsupported: Its metadata has something that templax does not read.
    """
    objects: dict[str, Extent] = {}
    unread: dict[str, CheckpointError | SourceError] = {}
    container, parsed = Container(objects, None, unread), Parsed()
    entries: list[LeafEntry] = []
    empties: dict[Path, str] = {}
    places = set[str]()
    with pause_gc():
        for path, leaf in leaves.items():
            if isinstance(leaf, Empty):
                empties[path] = leaf.name
                continue
            name = join_path(path)
            if isinstance(leaf, Value):
                entry = LeafEntry(name, path, leaf.shape, leaf.dtype, leaf.kind, handle=leaf)
            elif isinstance(leaf, Spec):
                if leaf.place in places:  # it would be read again and again
                    what = f"Expected one leaf for each array, got two for `{leaf.place[:200]}`"
                    raise Corrupted(what, leaf=name)
                places.add(leaf.place)
                prefix = array_prefix(leaf.place, files=True)
                found = list_files(source, prefix)  # and nothing else in the directory
                objects.update(found.objects)
                unread.update(found.unread)
                array = _read_outside(source, name, leaf, prefix, container, parsed)
                outside = _Outside(array, prefix)
                entry = LeafEntry(name, path, array.shape, array.dtype, handle=outside)
            else:
                entry = LeafEntry(name, path, (), np.dtype(str), "string", value=leaf)
            entries.append(entry)
    return Catalog(
        url=url,
        format=format,
        evidence=evidence,
        entries=tuple(entries),
        source=source,
        locator=functools.partial(_locate, source, file, container),
        metadata=metadata,
        empties=empties,
        uncommitted=uncommitted,
        regions=functools.partial(_describe_files, file, objects, entries),
    )


def _describe_files(
    file: str, objects: Mapping[str, Extent], entries: Iterable[LeafEntry]
) -> Iterator[Region]:
    """The bytes that hold no values: around those in the file, and the metadata of the arrays."""
    yield Region(file, 0, None, "index", "msgpack around the arrays")
    for entry in entries:
        if isinstance(entry.handle, _Outside):
            for each in FILES:
                extent = objects.get(entry.handle.prefix + each)
                if extent is not None:
                    yield Region(
                        extent.key, extent.start, extent.stop, "index", "metadata of arrays"
                    )


def _read_outside(
    source: Source, name: str, spec: Spec, prefix: str, container: Container, parsed: Parsed
) -> Array:
    """The metadata of an array outside of the file, which must be as the file says."""
    array = read_array(source, name, container, parsed, prefix)
    if array is None:
        container.check_listing(name, prefix)
        raise _missing_array_error(name, spec.place, prefix, container)
    dtype = name_of(array.dtype)
    if spec.shape not in (None, array.shape) or spec.dtype not in (None, dtype):
        want = f"{spec.dtype or dtype}{format_shape(spec.shape or array.shape)}"
        raise Corrupted(
            f"Expected {want}, as the file says, found an array {dtype}{format_shape(array.shape)}",
            leaf=name,
            file=spec.place,
        )
    return array


def _missing_array_error(
    name: str, place: str, prefix: str, container: Container
) -> CheckpointError:
    chunk = next((key for key in container.objects if key.startswith(prefix)), None)
    if chunk is None:
        return Corrupted("Expected a directory with an array, found none", leaf=name, file=place)
    error = missing_dot_file_error(place, chunk)
    return Corrupted(error.what, leaf=name, file=error.file, hint=error.hint)


@pause_gc()
def _locate(
    source: Source,
    file: str,
    container: Container,
    entries: Iterable[LeafEntry],
    damages: list[Corrupted] | None = None,
) -> dict[str, tuple[Chunk, ...]]:
    # Whether all chunks were written is not recorded. An absent one is lost, unless the array has a
    # fill value; those of T5X and Flax have none.
    arrays = ArrayLocator(source, container, "fill", damages)
    located: dict[str, tuple[Chunk, ...]] = {}
    for entry in entries:
        handle = entry.handle
        if isinstance(handle, _Outside):
            located[entry.name] = arrays.locate(handle.array, entry.name, handle.prefix)
        elif isinstance(handle, Value):
            located[entry.name] = locate_value(handle, file, inline=False)
        else:
            located[entry.name] = ()
    return located
