"""Opens one pytree saved by Orbax, of any generation since 0.2, as a catalog.

`leaf_names` finds the leaves; shapes and dtypes come from each array's own zarr metadata, which is
in files or in an OCDBT database.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np

from ..._catalog.catalog import Catalog
from ..._catalog.entry import Chunk, LeafEntry
from ..._core.boxes import Shape
from ..._core.gc_pause import pause_gc
from ..._core.names import Path, join_path, join_paths
from ..._core.text import list_names
from ...errors import CheckpointError, Corrupted, Uncommitted
from ...storage.source import Source
from ..file_names import FILES, MANIFEST
from ..flax.msgpack import Leaf, Value, locate_value
from ..flax.specs import FORMAT, Spec
from ..flax.state import make_catalog
from ..ocdbt.read import read_database
from ..zarr.columns import ColumnLocator
from ..zarr.container import (
    ArrayLocator,
    Container,
    list_files,
    missing_dot_file_error,
    read_arrays,
)
from ..zarr.metadata import Array
from .directory import DATABASE_DIRECTORIES, LEGACY, TREE, is_committed
from .extra_content import OWN_DIRECTORIES, OWN_FILES
from .leaf_names import (
    NamedLeaf,
    TreeMetadata,
    count_keys,
    iter_legacy_leaves,
    iter_metadata_leaves,
    read_legacy_file,
)
from .regions import describe_item
from .sidecars import Sidecars, read_json, read_sidecars

_ARRAY_FILES = tuple(f"/{file}" for file in FILES)

_MAX_LISTED = 8
"""Most files that the metadata names as not read."""

_DEEPER = (
    f"without `{TREE}`, templax reads only the arrays directly in the directory of a checkpoint"
)


def open_item(
    source: Source, present: set[str], metadata: Mapping[str, Any], uncommitted: str | None
) -> Catalog:
    """The catalog of an item directory without an index of templax.

    Args:
        source: The item directory.
        present: Names of its children; directories end in `/`.
        metadata: Facts known from the directories around it; go into `Catalog.metadata`.
        uncommitted: Goes into `Catalog.uncommitted`.

    Raises:
        Corrupted: A metadata file or index is unreadable, or a leaf has no array.
        Unsupported: A dtype, codec or kind of leaf that templax does not read.
        Uncommitted: The databases of the processes were never merged, so there is no index.
        UnknownFormat: A metadata file is a Git LFS pointer.
    """
    about = dict(metadata)
    empties: dict[Path, str] = {}
    unread: dict[str, str] = {}
    tree: TreeMetadata | None = None
    if TREE in present:
        tree = read_json(source, TREE, TreeMetadata, count_keys)
        named = list(iter_metadata_leaves(source, tree, empties))
        evidence = [TREE]
        if any(isinstance(n.value, Value) for n in named):
            evidence.append(LEGACY)
    elif LEGACY in present:
        leaves = read_legacy_file(source)
        known = {path: leaf for path, leaf in leaves.items() if not isinstance(leaf, Spec)}
        if len(known) < len(leaves):
            return _open_specs(source, leaves, about, uncommitted)
        named = list(iter_legacy_leaves(known, empties))
        evidence = [LEGACY]
    else:
        named, evidence = [], []
    container = Container({}, None)
    if tree is None or any(n.value is None for n in named):
        container = _open_container(source, present, tree)
        if container.index is not None:
            evidence.append(container.index)
    if not evidence or evidence == [MANIFEST]:
        container.check_all_listed(source)
        found = _array_names(container)
        named = [NamedLeaf(tuple(name.split(".")), "array") for name in found]
        deeper = _list_deeper(container, found)
        others = [] if container.index is not None else _list_others(present, [*found, *deeper])
        unread = {join_path(tuple(key.split("/"))): _DEEPER for key in deeper}
        if others:
            listed = f"{len(others)}: {list_names(others, _MAX_LISTED)}"
            about["not read"] = {"other files": listed}
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
        locator=_Locator(source, container, "error" if all_written else "fill"),
        metadata=about,
        empties=empties,
        unread=unread,
        uncommitted=uncommitted,
        regions=functools.partial(
            describe_item, source, container.objects, container.index is not None, entries
        ),
        chunk_shapes=functools.partial(_list_chunk_shapes, entries),
    )


def _list_chunk_shapes(entries: Iterable[LeafEntry]) -> dict[str, Shape]:
    arrays = [(entry.name, entry.handle) for entry in entries if isinstance(entry.handle, Array)]
    return {name: array.chunk_shape for name, array in arrays}


def _open_specs(
    source: Source, leaves: Mapping[Path, Leaf], about: dict[str, Any], uncommitted: str | None
) -> Catalog:
    """The catalog of a checkpoint of T5X, whose layout is that of the first versions of Orbax."""
    try:
        return make_catalog(
            source,
            LEGACY,
            leaves,
            url=source.url,
            format=FORMAT,
            evidence=f"the TensorStore specs in `{LEGACY}`",
            metadata=about,
            unread={},
            uncommitted=uncommitted,
        )
    except CheckpointError as error:
        raise error.locate(file=LEGACY) from error


def _open_container(source: Source, present: set[str], tree: TreeMetadata | None) -> Container:
    use_ocdbt = tree.use_ocdbt if tree is not None else None
    processes = sorted(name for name in present if name.startswith("ocdbt.process_"))
    split = sorted(present & {f"{name}/" for name in DATABASE_DIRECTORIES})
    if use_ocdbt is None:
        use_ocdbt = MANIFEST in present or bool(processes or split)
    if not use_ocdbt:
        return list_files(source)
    if MANIFEST in present:
        return Container(read_database(source), MANIFEST)
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


def _array_names(container: Container) -> list[str]:
    names: dict[str, None] = {}
    for key in container.objects:
        name, slash, last = key.rpartition("/")
        # Among plain files, only those directly below: deeper ones may belong to other checkpoints.
        here = container.index is not None or "/" not in name
        if slash and here and last in FILES:
            names[name] = None
    return list(names)


def _list_deeper(container: Container, names: Collection[str]) -> list[str]:
    """The arrays that `_array_names` leaves out."""
    heads = {key.rpartition("/")[0] for key in container.objects if key.endswith(_ARRAY_FILES)}
    return sorted(heads.difference(names) - {""})


def _list_others(present: set[str], arrays: Sequence[str]) -> list[str]:
    """What is in a directory beside arrays and the files of Orbax."""
    own = {*OWN_FILES, *OWN_DIRECTORIES, *(name.partition("/")[0] for name in arrays)}
    return sorted({name.rstrip("/") for name in present} - own)


def _build_entries(
    source: Source, named: list[NamedLeaf], container: Container, sidecars: Sidecars
) -> tuple[LeafEntry, ...]:
    names = join_paths([leaf.path for leaf in named])
    pairs = list(zip(named, names, strict=True))
    stored = [name for leaf, name in pairs if leaf.value is None]
    arrays = iter(read_arrays(source, stored, container))
    entries: list[LeafEntry] = []
    impls, shardings = sidecars.key_impls, sidecars.shardings
    for leaf, name in pairs:
        kind, impl = leaf.kind, None
        value, handle = None, leaf.value
        if handle is None:
            handle = next(arrays)
            if handle is None:
                raise _missing_array_error(name, container)
            shape, dtype = handle.shape, handle.dtype
            impl = impls.get(name) if impls else None
            if impl is not None and shape and dtype == np.uint32:
                kind = "key"
            else:
                impl = None
        elif isinstance(handle, str):
            handle, shape, dtype, value = None, (), np.dtype(str), handle
        else:
            shape, dtype = handle.shape, handle.dtype
        sharding = shardings.get(name) if shardings else None
        problem = handle.unsupported if isinstance(handle, Array) else None
        entry = LeafEntry(
            name, leaf.path, shape, dtype, kind, impl, value, sharding, handle, undecodable=problem
        )
        entries.append(entry)
    return tuple(entries)


def _missing_array_error(name: str, container: Container) -> Corrupted:
    if container.index is not None:
        return Corrupted(f"Expected an array, `{container.index}` has none", leaf=name)
    container.check_listing(name)
    chunk = next((key for key in container.objects if key.startswith(f"{name}/")), None)
    if chunk is None:
        return Corrupted("Expected a directory with an array, found none", leaf=name, file=name)
    return missing_dot_file_error(name, chunk)


class _Locator:
    """The locator of the catalog.

    Args:
        source, container, absent: See `ArrayLocator`.
    """

    def __init__(self, source: Source, container: Container, absent: Literal["error", "fill"]):
        self._source, self._container = source, container
        self._absent: Literal["error", "fill"] = absent

    @pause_gc()
    def __call__(
        self, entries: Iterable[LeafEntry], damages: list[Corrupted] | None = None
    ) -> dict[str, tuple[Chunk, ...]]:
        arrays = ArrayLocator(self._source, self._container, self._absent, damages)
        return {entry.name: _locate(entry, arrays.locate) for entry in entries}

    @pause_gc()
    def locate_columns(self, entries: Iterable[LeafEntry]) -> dict[str, Sequence[Chunk]]:
        """See `_catalog.chunk_columns`."""
        arrays = ArrayLocator(self._source, self._container, self._absent, None)
        if self._container.index is None:
            return {entry.name: _locate(entry, arrays.locate) for entry in entries}
        columns = ColumnLocator(self._source, self._container, arrays)
        return {entry.name: _locate(entry, columns.locate) for entry in entries}


_Chunks = TypeVar("_Chunks", bound=Sequence[Chunk])


def _locate(
    entry: LeafEntry, locate_array: Callable[[Array, str], _Chunks]
) -> _Chunks | tuple[Chunk, ...]:
    """The chunks of a leaf, given what locates those of an array."""
    handle = entry.handle
    if isinstance(handle, Value):
        return locate_value(handle, LEGACY, inline=True)
    return locate_array(handle, entry.name) if isinstance(handle, Array) else ()
