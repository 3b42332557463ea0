"""Opens one pytree saved by Orbax, of any generation since 0.2, as a catalog.

`leaf_names` finds the leaves; shapes and dtypes come from each array's own zarr metadata, which is
in files or in an OCDBT database.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ..._catalog.catalog import Catalog, record_damage
from ..._catalog.entry import Chunk, Extent, LeafEntry
from ..._core.gc_pause import pause_gc
from ..._core.names import Path, join_path
from ...errors import CheckpointError, Corrupted, NotFound, SourceError, Uncommitted
from ...storage.signatures import diagnose_lfs_pointer, is_lfs_pointer, make_lfs_error
from ...storage.source import Source
from ..flax.msgpack import Value, locate_value
from ..ocdbt.read import MANIFEST, read_database
from ..zarr.budget import ChunkBudget
from ..zarr.chunks import locate_arrays
from ..zarr.metadata import FILES, MAX_FILE, Array, array_prefix, parse_metadata
from .checksum_index import INDEX_FILE
from .directory import DATABASE_DIRECTORIES, LEGACY, TREE, is_committed
from .indexed_item import open_indexed_item
from .leaf_names import (
    NamedLeaf,
    TreeMetadata,
    count_keys,
    iter_legacy_leaves,
    iter_metadata_leaves,
)
from .regions import describe_item
from .sidecars import Sidecars, read_json, read_sidecars

_POINTER_BYTES = 256


@dataclass(frozen=True, slots=True)
class _Container:
    """The arrays of an item.

    Attributes:
        objects: Key → extent of each file or value.
        index: File that lists them; None if they are files themselves.
        unread: Key → problem of each file or directory that could not be listed. An array, or a
            part of one, may be there.
    """

    objects: Mapping[str, Extent]
    index: str | None
    unread: Mapping[str, CheckpointError | SourceError] = field(default_factory=dict)

    def check_listing(self, name: str, damages: list[Corrupted] | None = None) -> None:
        """Raises, or adds to `damages`, the problem with any part of an array that was not listed.

        An absent chunk may mean the fill value. A chunk that exists but could not be listed would
        silently be replaced by it.
        """
        prefix = array_prefix(name, files=True)
        for key, problem in self.unread.items():
            if key.startswith(prefix) or prefix.startswith(f"{key}/"):
                if isinstance(problem, SourceError):
                    raise problem
                record_damage(Corrupted(problem.what, leaf=name, file=key), damages, problem)


def open_item(
    source: Source, *, metadata: Mapping[str, Any] | None = None, uncommitted: str | None = None
) -> Catalog:
    """The catalog of an item directory.

    Args:
        source: The item directory.
        metadata: Facts known from the directories around it; go into `Catalog.metadata`.
        uncommitted: Goes into `Catalog.uncommitted`.

    Raises:
        Corrupted: A metadata file or index is unreadable, or a leaf has no array.
        Unsupported: A dtype, codec or kind of leaf that templax does not read.
        Uncommitted: The databases of the processes were never merged, so there is no index.
        UnknownFormat: A metadata file is a Git LFS pointer.
    """
    about = dict(metadata or {})
    present = {info.key for info in source.children()}
    if INDEX_FILE in present:
        return open_indexed_item(source, about, uncommitted)
    empties: dict[Path, str] = {}
    tree: TreeMetadata | None = None
    if TREE in present:
        tree = read_json(source, TREE, TreeMetadata, count_keys)
        named = list(iter_metadata_leaves(source, tree, empties))
        evidence = [TREE]
        if any(isinstance(n.value, Value) for n in named):
            evidence.append(LEGACY)
    elif LEGACY in present:
        named = list(iter_legacy_leaves(source, empties))
        evidence = [LEGACY]
    else:
        named, evidence = [], []
    container = _Container({}, None)
    if tree is None or any(n.value is None for n in named):
        container = _open_container(source, present, tree)
        if container.index is not None:
            evidence.append(container.index)
    if not evidence or evidence == [MANIFEST]:
        _check_all_listed(source, container)
        named = [NamedLeaf(tuple(name.split(".")), "array") for name in _array_names(container)]
        evidence.append("the keys of its arrays, as `_METADATA` is missing")
    sidecars = read_sidecars(source, present)
    with pause_gc():
        entries = _build_entries(source, named, container, sidecars)
    if tree is not None:
        about["use_ocdbt"] = container.index is not None
        about["use_zarr3"] = bool(tree.use_zarr3)
        if tree.custom_metadata is not None:
            about["custom_metadata"] = tree.custom_metadata
    # Orbax since 0.11 writes every chunk and records that it did. Before, an absent chunk meant the
    # fill value.
    all_written = tree is not None and tree.store_array_data_equal_to_fill_value
    return Catalog(
        url=source.url,
        format="orbax",
        evidence=" and ".join(f"`{e}`" if " " not in e else e for e in evidence),
        entries=entries,
        source=source,
        locator=functools.partial(_locate, source, container, "error" if all_written else "fill"),
        metadata=about,
        empties=empties,
        uncommitted=uncommitted,
        regions=functools.partial(
            describe_item, source, container.objects, container.index is not None, entries
        ),
    )


def _open_container(source: Source, present: set[str], tree: TreeMetadata | None) -> _Container:
    use_ocdbt = tree.use_ocdbt if tree is not None else None
    processes = sorted(name for name in present if name.startswith("ocdbt.process_"))
    split = sorted(present & {f"{name}/" for name in DATABASE_DIRECTORIES})
    if use_ocdbt is None:
        use_ocdbt = MANIFEST in present or bool(processes or split)
    if not use_ocdbt:
        return _list_files(source)
    if MANIFEST in present:
        return _Container(read_database(source), MANIFEST)
    if processes and is_committed(source):
        raise Corrupted(
            f"The save was committed, but `{MANIFEST}`, the index of its arrays, is missing",
            file=MANIFEST,
        )
    if processes:
        raise Uncommitted(
            f"{source.url} was never finished: the databases of its processes "
            f"(`{processes[0].rstrip('/')}`) were not merged into a `{MANIFEST}`"
        )
    raise Corrupted("Expected the index of the arrays, found none", file=MANIFEST)


def _check_all_listed(source: Source, container: _Container) -> None:
    """Raises if the listing may lack arrays. No other file names them."""
    for key, problem in container.unread.items():
        if not isinstance(problem, SourceError):
            continue
        places = [key] if key.endswith(FILES) else [f"{key}/{file}" for file in FILES]
        if problem.errno or any(source.at(place).stat("") is not None for place in places):
            raise problem


def _array_names(container: _Container) -> list[str]:
    names: dict[str, None] = {}
    for key in container.objects:
        name, slash, last = key.rpartition("/")
        # Among plain files, only those directly below: deeper ones may belong to other checkpoints.
        here = container.index is not None or "/" not in name
        if slash and here and last in FILES:
            names[name] = None
    return list(names)


def _build_entries(
    source: Source, named: list[NamedLeaf], container: _Container, sidecars: Sidecars
) -> tuple[LeafEntry, ...]:
    parsed: dict[tuple[str, bytes], Array] = {}
    entries: list[LeafEntry] = []
    for leaf in named:
        name = join_path(leaf.path)
        kind, impl = leaf.kind, None
        value = None
        if isinstance(leaf.value, str):
            handle, shape, dtype, value = None, (), np.dtype(str), leaf.value
        elif leaf.value is not None:
            handle, shape, dtype = leaf.value, leaf.value.shape, leaf.value.dtype
        else:
            handle = _read_array_metadata(source, name, container, parsed)
            shape, dtype = handle.shape, handle.dtype
            impl = sidecars.key_impls.get(name)
            if impl is not None and shape and dtype == np.uint32:
                kind = "key"
            else:
                impl = None
        sharding = sidecars.shardings.get(name)
        entries.append(
            LeafEntry(name, leaf.path, shape, dtype, kind, impl, value, sharding, handle)
        )
    return tuple(entries)


def _read_array_metadata(
    source: Source,
    name: str,
    container: _Container,
    parsed: dict[tuple[str, bytes], Array],
) -> Array:
    """The metadata of a leaf's array.

    Layers of a model often have equal metadata, so equal bytes are parsed once (`parsed`).
    """
    for file in FILES:
        inside = array_prefix(name, files=container.index is None)
        extent = container.objects.get(inside + file)
        if extent is None:
            continue
        try:
            data = _read_extent(source, extent)
            array = parsed.get((file, data))
            if array is None:
                if is_lfs_pointer(data):
                    raise make_lfs_error(extent.key)
                array = parsed[file, data] = parse_metadata(data, file)
            return array
        except NotFound as error:
            raise Corrupted(
                "Expected a data file, found none", leaf=name, file=extent.key
            ) from error
        except CheckpointError as error:
            raise error.locate(leaf=name, file=extent.key) from error
    if container.index is not None:
        raise Corrupted(f"Expected an array, `{container.index}` has none", leaf=name)
    container.check_listing(name)
    chunk = next((key for key in container.objects if key.startswith(f"{name}/")), None)
    if chunk is None:
        raise Corrupted("Expected a directory with an array, found none", leaf=name, file=name)
    raise missing_dot_file_error(name, chunk)


def missing_dot_file_error(name: str, chunk: str) -> Corrupted:
    """The error for chunks without the `.zarray` that describes them: some tools skip dot files."""
    return Corrupted(
        f"Expected `.zarray` beside `{chunk}`, found none",
        leaf=name,
        file=f"{name}/.zarray",
        hint="copy the checkpoint again, with the files whose names start with a dot",
    )


def _read_extent(source: Source, extent: Extent) -> bytes:
    if extent.inline is not None:
        return bytes(extent.inline)
    if extent.nbytes > MAX_FILE:
        raise Corrupted(f"Expected at most {MAX_FILE} bytes, got {extent.nbytes}")
    return bytes(source.read(extent.key, extent.start, extent.stop))


@pause_gc()
def _locate(
    source: Source,
    container: _Container,
    absent: Literal["error", "fill"],
    entries: Iterable[LeafEntry],
    damages: list[Corrupted] | None = None,
) -> dict[str, tuple[Chunk, ...]]:
    """The locator of the catalog.

    Unless `damages` is given, it checks that the chunks lie within existing files.
    """
    sizes: dict[str, int] = {}
    located: dict[str, tuple[Chunk, ...]] = {}
    budget = ChunkBudget(container.objects)
    for entry in entries:
        handle = entry.handle
        if isinstance(handle, Value):
            chunks = locate_value(handle, LEGACY, inline=True)
        elif isinstance(handle, Array):
            if container.unread:
                container.check_listing(entry.name, damages)
            chunks = locate_arrays(
                handle,
                entry.name,
                container.objects,
                source,
                absent=absent,
                index=container.index,
                damages=damages,
                budget=budget,
            )
            if container.index is not None and damages is None:
                _check_data_files(source, entry.name, chunks, sizes)
            elif (
                container.index is None
                and not sizes
                and chunks
                and chunks[0].extent.nbytes <= _POINTER_BYTES
            ):
                key = chunks[0].extent.key
                sizes[key] = chunks[0].extent.nbytes  # Git LFS replaces all files or none
                if (pointer := diagnose_lfs_pointer(source, key)) is not None:
                    raise pointer
        else:
            chunks = ()
        located[entry.name] = chunks
    return located


def _check_data_files(
    source: Source, name: str, chunks: tuple[Chunk, ...], sizes: dict[str, int]
) -> None:
    for chunk in chunks:
        extent = chunk.extent
        if extent.inline is not None:
            continue
        size = sizes.get(extent.key)
        if size is None:
            info = source.stat(extent.key)
            if info is None or info.is_dir:
                raise Corrupted("Expected a data file, found none", leaf=name, file=extent.key)
            size = sizes[extent.key] = info.size
        if extent.stop > size:
            raise diagnose_lfs_pointer(source, extent.key) or Corrupted(
                f"Expected at least {extent.stop} bytes, the file has {size}",
                leaf=name,
                file=extent.key,
                start=extent.start,
                stop=extent.stop,
            )


@pause_gc()
def _list_files(source: Source) -> _Container:
    """Lists the files below `source`, each as one extent."""
    objects: dict[str, Extent] = {}
    unread: dict[str, CheckpointError | SourceError] = {}
    for info in source.walk():
        if info.problem is None:
            objects[info.key] = Extent(info.key, 0, info.size)
        else:
            unread[info.key] = info.problem
    return _Container(objects, None, unread)
