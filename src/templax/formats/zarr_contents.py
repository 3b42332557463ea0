"""Reads the trees of zarr arrays that `zarr_tree` recognises.

Such a tree is a group of zarr 2 (`.zgroup`) or 3 (`zarr.json`) with what is below it, a single
array, or an OCDBT database with such keys.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .._catalog.catalog import Catalog, explain_refusal
from .._catalog.entry import Chunk, Extent, LeafEntry
from .._catalog.regions import Region
from .._core.gc_pause import pause_gc
from .._core.names import MAX_DEPTH, Path, join_path
from .._core.text import list_names
from ..errors import CheckpointError, Corrupted, UnknownFormat, Unsupported
from ..storage.signatures import MAX_METADATA
from ..storage.source import Source
from .file_names import GROUP, MANIFEST, ROOTS
from .ocdbt.read import read_database
from .ocdbt.regions import describe_database
from .zarr.container import ArrayLocator, Container, list_files, missing_dot_file_error, read_extent
from .zarr.metadata import MAX_FILE, Array, parse_metadata
from .zarr.nodes import (
    ATTRIBUTES,
    CONSOLIDATED,
    NODE,
    check_group,
    is_same_array,
    list_consolidated,
    parse_attributes,
    parse_node,
)
from .zarr.regions import describe_arrays

_METADATA = frozenset((*ROOTS, ATTRIBUTES, CONSOLIDATED))

_MAX_LISTED = 8
"""Most names in one entry of the metadata."""


class _Handle(NamedTuple):
    """What a leaf is located by: its metadata, and what its keys begin with."""

    array: Array
    prefix: str


@pause_gc()
def open_tree(
    source: Source, format: str, evidence: str, files: Container | None = None
) -> Catalog:
    """The catalog of a tree; see `ZarrTree.open`.

    Args:
        source: The directory.
        format, evidence: See `Catalog`.
        files: The files in it, if they have been listed and are no database.
    """
    if files is None and source.stat(MANIFEST) is not None:
        container = Container(read_database(source), MANIFEST)
    else:
        container = list_files(source) if files is None else files
        container.check_all_listed(source)
    tree = _Tree(source, container)
    tree.read()
    if container.index is not None and not tree.nodes:
        keys = f": {list_names(tree.keys)}" if tree.keys else ""
        raise UnknownFormat(
            f"{source.url} is an OCDBT database without zarr arrays, of {len(tree.keys)} keys{keys}"
        )
    return Catalog(
        url=source.url,
        format=format,
        evidence=evidence,
        entries=tuple(tree.entries),
        source=source,
        locator=functools.partial(_locate, source, container),
        metadata=tree.describe(),
        empties=tree.find_empties(),
        unread=tree.not_read,
        regions=functools.partial(_describe_tree, source, container, tuple(tree.entries)),
    )


def _describe_tree(
    source: Source, container: Container, entries: tuple[LeafEntry, ...]
) -> Iterator[Region]:
    """The bytes of a tree that hold no values of leaves."""
    in_database = container.index is not None
    if in_database:
        files = [info.key for info in source.walk() if info.problem is None]
        yield from describe_database(source, files)
    for key, extent in container.objects.items():
        if extent.inline is None and key.rpartition("/")[2] in _METADATA:
            yield Region(extent.key, extent.start, extent.stop, "index", "metadata of arrays")
    arrays = [(entry.handle.array, entry.handle.prefix) for entry in entries]
    yield from describe_arrays(container.objects, in_database, arrays)


@dataclass
class _Tree:
    """The nodes of a container.

    Attributes:
        source: Where it is.
        container: What it holds.
        keys: All keys, sorted.
        nodes: What the keys of each node begin with → its metadata file, in order.
        entries: The arrays that are leaves.
        arrays: What the keys of each array begin with, in order.
        groups: The same for groups.
        attributes: Name of a node → its attributes.
        not_read: Name of an array → why it is not a leaf.
        consolidated: Name of an array → what consolidated metadata says of it.
        stale: Names of arrays of which that is not what their own metadata says.
    """

    source: Source
    container: Container
    keys: list[str] = field(default_factory=list)
    nodes: dict[str, str] = field(default_factory=dict)
    entries: list[LeafEntry] = field(default_factory=list)
    arrays: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    attributes: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    not_read: dict[str, str] = field(default_factory=dict)
    consolidated: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    stale: list[str] = field(default_factory=list)

    def read(self) -> None:
        """Reads the metadata of every node.

        Raises:
            Corrupted, Unsupported, UnknownFormat: See `ZarrTree.open`.
        """
        self.keys = sorted(self.container.objects)
        self.nodes = list_nodes(self.keys)
        self._read_consolidated()
        parsed: dict[bytes, Array] = {}
        for prefix, file in self.nodes.items():
            extent = self.container.objects[prefix + file]
            try:
                self._read_node(prefix, file, extent, parsed)
            except CheckpointError as error:
                raise error.locate(file=prefix + file) from error
        self._compare_names()

    def _read_node(
        self, prefix: str, file: str, extent: Extent, parsed: dict[bytes, Array]
    ) -> None:
        name = prefix.removesuffix("/")
        data = read_extent(self.source, extent, MAX_FILE if prefix else MAX_METADATA)
        array = parsed.get(data)
        if array is not None:
            self.arrays.append(prefix)
        else:
            attributes: Mapping[str, Any] = {}
            if file == NODE:
                node = parse_node(data)
                attributes, is_group = node.attributes, node.node_type == "group"
            else:
                is_group = file == GROUP
                about = self.container.objects.get(prefix + ATTRIBUTES)
                if about is not None:
                    attributes = self._read_attributes(about)
            if attributes:
                self.attributes[name] = attributes
            if is_group:
                self.groups.append(prefix)
                if file == GROUP:
                    check_group(data)
                return
            self.arrays.append(prefix)
            try:
                array = parse_metadata(data, file)
            except Unsupported as error:
                self.not_read[join_path(_split(name))] = explain_refusal(error)
                return
            if not attributes and f"{prefix}{ATTRIBUTES}" not in self.container.objects:
                parsed[data] = array
        if name in self.consolidated and not is_same_array(data, self.consolidated[name]):
            self.stale.append(name)
        path = _split(name)
        handle = _Handle(array, prefix)
        self.entries.append(
            LeafEntry(
                join_path(path),
                path,
                array.shape,
                array.dtype,
                handle=handle,
                undecodable=array.unsupported,
            )
        )

    def _read_attributes(self, extent: Extent) -> Mapping[str, Any]:
        try:
            return parse_attributes(read_extent(self.source, extent))
        except CheckpointError as error:
            raise error.locate(file=extent.key) from error

    def _read_consolidated(self) -> None:
        for file in (CONSOLIDATED, NODE):
            extent = self.container.objects.get(file)
            if extent is not None:
                try:
                    data = read_extent(self.source, extent, MAX_METADATA)
                    self.consolidated |= list_consolidated(data, file)
                except CheckpointError as error:
                    raise error.locate(file=extent.key) from error

    def _compare_names(self) -> None:
        """Adds arrays that only consolidated metadata names to `stale`.

        Raises:
            Corrupted: One of them has chunks, so that its own metadata was lost.
        """
        for name in self.consolidated:
            prefix = f"{name}/" if name else ""
            if prefix in self.nodes:
                continue
            at = bisect.bisect_left(self.keys, prefix)
            if at < len(self.keys) and self.keys[at].startswith(prefix):
                raise missing_dot_file_error(name, self.keys[at])
            self.stale.append(name)

    def describe(self) -> dict[str, Any]:
        """The metadata of the catalog."""
        about: dict[str, Any] = {}
        if self.attributes:
            about["attributes"] = dict(self.attributes)
        if self.stale:
            about["consolidated metadata"] = (
                "differs from the metadata of these arrays, or names them although they are not"
                f" there: {list_names(self.stale, _MAX_LISTED)}"
            )
        absent = [
            f"{entry.name}: {n} of {total}"
            for entry in self.entries
            for n, total in [self._count_absent(entry.handle)]
            if n > 0
        ]
        if absent:
            about["filled in"] = (
                "chunks that are absent, which means the fill value:"
                f" {list_names(absent, _MAX_LISTED)}"
            )
        others = list_outside(self.keys, self.arrays)
        if others:
            noun = "keys" if self.container.index is not None else "files"
            listed = f"{len(others)}: {list_names(others, _MAX_LISTED)}"
            about["not read"] = {f"other {noun}": listed}
        return about

    def _count_absent(self, handle: _Handle) -> tuple[int, int]:
        """The number of chunks that are absent, at least, and of all chunks."""
        array, prefix = handle
        if 0 in array.shape or not array.placed or array.fill is None:
            return 0, 0
        total = math.prod(array.grid)
        after = prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else "\U0010ffff"
        first, last = (bisect.bisect_left(self.keys, bound) for bound in (prefix, after))
        others = sum(prefix + file in self.container.objects for file in _METADATA)
        return total - (last - first - others), total

    def find_empties(self) -> dict[Path, str]:
        """The groups with nothing below them, as empty dicts."""
        prefixes = sorted(self.nodes)
        following = dict(itertools.pairwise(prefixes))
        empty = [
            prefix
            for prefix in self.groups
            if prefix and not following.get(prefix, "").startswith(prefix)
        ]
        return {_split(prefix.removesuffix("/")): "Dict" for prefix in empty}


def list_nodes(keys: Iterable[str]) -> dict[str, str]:
    """What the keys of each node begin with → its metadata file, in the order of the keys."""
    nodes: dict[str, str] = {}
    for key in keys:
        head, slash, last = key.rpartition("/")
        if last in ROOTS:  # of several files, the first: what zarr 2 says also holds for 3
            nodes.setdefault(head + slash, last)
    return nodes


def list_outside(keys: Iterable[str], arrays: Iterable[str]) -> list[str]:
    """The keys that belong neither to an array nor to metadata.

    Args:
        keys: All keys.
        arrays: What the keys of each array begin with.
    """
    outer: list[str] = []
    for prefix in sorted(arrays):
        if not outer or not prefix.startswith(outer[-1]):
            outer.append(prefix)

    def is_inside(key: str) -> bool:
        at = bisect.bisect_right(outer, key) - 1
        return at >= 0 and key.startswith(outer[at])

    return [key for key in keys if key.rpartition("/")[2] not in _METADATA and not is_inside(key)]


def _split(name: str) -> Path:
    """The key path of a node."""
    if name.count("/") >= MAX_DEPTH or (name.count(".") >= MAX_DEPTH and "/" not in name):
        raise Unsupported(f"templax reads trees of {MAX_DEPTH} levels, got more")
    if not name:
        return ()
    return tuple(name.split("/" if "/" in name else "."))


@pause_gc()
def _locate(
    source: Source,
    container: Container,
    entries: Iterable[LeafEntry],
    damages: list[Corrupted] | None = None,
) -> dict[str, tuple[Chunk, ...]]:
    arrays = ArrayLocator(source, container, "fill", damages)
    return {
        entry.name: arrays.locate(entry.handle.array, entry.name, entry.handle.prefix)
        for entry in entries
    }
