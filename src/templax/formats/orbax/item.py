"""One saved pytree of Orbax → a catalog. Every generation since 0.2 ends here.

Names come from `key_metadata` of `_METADATA`, or from the msgpack file `checkpoint` of Orbax before
0.4; shapes and dtypes from each array's own zarr metadata, in files or in an OCDBT database.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np

from ..._catalog.catalog import Catalog, record_damage
from ..._catalog.entry import Chunk, Extent, Kind, LeafEntry
from ..._core.boxes import full_box
from ..._core.gc_pause import pause_gc
from ..._core.names import Path, join_path
from ...errors import CheckpointError, Corrupted, NotFound, Uncommitted, Unsupported
from ...storage.signatures import is_lfs_pointer, lfs_pointer, pointer_instead, read_metadata
from ...storage.source import Source
from ..flax.msgpack import PLACEHOLDER, Empty, Leaf, Value, read_msgpack
from ..ocdbt.read import MANIFEST, read_database
from ..zarr.chunks import locate_arrays
from ..zarr.metadata import FILES, MAX_FILE, Array, array_prefix, parse_metadata
from .checksum_index import INDEX_FILE
from .directory import LEGACY, TREE, is_committed
from .indexed_item import open_indexed_item
from .sidecars import Notes, read_json, read_notes

_EMPTY_TYPES = ("None", "Dict", "List", "Tuple", "NamedTuple")

_STRINGS = "_strings.json"

_POINTER_BYTES = 256

_MAX_FILLED = 1 << 20
"""Absent chunks that one call may stand in for: each costs memory, and no byte of the file."""


class _Key(msgspec.Struct, gc=False):
    key: str | int
    key_type: int


class _Value(msgspec.Struct, gc=False):
    value_type: str
    skip_deserialize: bool = False


class _Parameter(msgspec.Struct, gc=False):
    key_metadata: list[_Key]
    value_metadata: _Value


class _TreeMetadata(msgspec.Struct):
    tree_metadata: dict[str, _Parameter]
    use_ocdbt: bool | None = None
    use_zarr3: bool | None = None
    store_array_data_equal_to_fill_value: bool | None = None
    custom_metadata: Any = None


@dataclass(frozen=True, slots=True)
class _Container:
    """Where arrays are: key → extent, and the file that lists them (None: they are files)."""

    objects: Mapping[str, Extent]
    index: str | None


class _Named(msgspec.Struct, frozen=True, gc=False):
    """A leaf before its array is looked up. `value` is set where the structure file holds it."""

    path: Path
    kind: Kind
    value: Value | str | None = None


def open_item(
    source: Source, *, metadata: Mapping[str, Any] | None = None, uncommitted: str | None = None
) -> Catalog:
    """The catalog of an item directory.

    Args:
        source: The item directory.
        metadata: What is known of it from outside; goes into `Catalog.metadata`.
        uncommitted: Goes into `Catalog.uncommitted`.

    Raises:
        Corrupted: A metadata file or index is unreadable, or a leaf has no array.
        Unsupported: A dtype, codec or kind of leaf that templax does not read.
        Uncommitted: The databases of the processes were never merged: there is no index.
        UnknownFormat: A metadata file is a Git LFS pointer.
    """
    about = dict(metadata or {})
    present = {info.key for info in source.children()}
    if INDEX_FILE in present:
        return open_indexed_item(source, about, uncommitted)
    empties: dict[Path, str] = {}
    tree: _TreeMetadata | None = None
    if TREE in present:
        tree = read_json(source, TREE, _TreeMetadata)
        named = list(_from_metadata(source, tree, empties))
        evidence = [TREE]
        if any(isinstance(n.value, Value) for n in named):
            evidence.append(LEGACY)
    elif LEGACY in present:
        named = list(_from_legacy(_read_legacy(source), empties))
        evidence = [LEGACY]
    else:
        named, evidence = [], []
    container = _Container({}, None)
    if tree is None or any(n.value is None for n in named):
        container = _open_container(source, present, tree)
        if container.index is not None:
            evidence.append(container.index)
    if not evidence or evidence == [MANIFEST]:
        named = [_Named(tuple(name.split(".")), "array") for name in _array_names(container)]
        evidence.append("the keys of its arrays, as `_METADATA` is missing")
    notes = read_notes(source, present)
    with pause_gc():
        entries = _entries(source, named, container, notes)
    if tree is not None:
        about["use_ocdbt"] = container.index is not None
        about["use_zarr3"] = bool(tree.use_zarr3)
        if tree.custom_metadata is not None:
            about["custom_metadata"] = tree.custom_metadata
    # Since 0.11 every chunk is written, which is recorded; before, an absent one meant fill value.
    lost = tree is not None and tree.store_array_data_equal_to_fill_value
    return Catalog(
        url=source.url,
        format="orbax",
        evidence=" and ".join(f"`{e}`" if " " not in e else e for e in evidence),
        entries=entries,
        source=source,
        locator=functools.partial(_locate, source, container, "error" if lost else "fill"),
        metadata=about,
        empties=empties,
        uncommitted=uncommitted,
    )


def _from_metadata(
    source: Source, tree: _TreeMetadata, empties: dict[Path, str]
) -> Iterator[_Named]:
    strings: Mapping[str, str] | None = None
    legacy: Mapping[str, Leaf] | None = None
    for parameter in tree.tree_metadata.values():
        path = tuple(_element(key) for key in parameter.key_metadata)
        type, skip = parameter.value_metadata.value_type, parameter.value_metadata.skip_deserialize
        if type in _EMPTY_TYPES:
            empties[path] = type
        elif skip:
            # Saved before 0.6 with `aggregate=True`: the value is in the structure file.
            if legacy is None:
                legacy = _by_name(_read_legacy(source))
            leaf = legacy.get(join_path(path))
            if not isinstance(leaf, Value):
                raise Corrupted("Expected a value, found none", leaf=join_path(path), file=LEGACY)
            yield _Named(path, "scalar" if type == "scalar" else leaf.kind, leaf)
        elif type == "string":
            if strings is None:
                strings = _read_strings(source)
            if join_path(path) not in strings:
                raise Corrupted(
                    "Expected a string, found none", leaf=join_path(path), file=_STRINGS
                )
            yield _Named(path, "string", strings[join_path(path)])
        else:
            yield _Named(path, "scalar" if type == "scalar" else "array")


def _element(key: _Key) -> str | int:
    # key_type 1 is an index of a list or tuple.
    if key.key_type == 1 and (
        isinstance(key.key, int) or (key.key.isascii() and key.key.isdigit())
    ):
        return int(key.key[:18]) if isinstance(key.key, str) else key.key
    return str(key.key)


def _read_strings(source: Source) -> dict[str, str]:
    try:
        return read_json(source, _STRINGS, dict[str, str])
    except NotFound:
        return {}


def _read_legacy(source: Source) -> dict[Path, Leaf]:
    try:
        return read_msgpack(read_metadata(source, LEGACY))
    except NotFound as error:
        raise Corrupted("Expected the file that holds values, found none", file=LEGACY) from error
    except CheckpointError as error:
        raise error.locate(file=LEGACY) from error


def _by_name(leaves: Mapping[Path, Leaf]) -> dict[str, Leaf]:
    return {join_path(path): leaf for path, leaf in leaves.items()}


def _from_legacy(leaves: Mapping[Path, Leaf], empties: dict[Path, str]) -> Iterator[_Named]:
    for path, leaf in leaves.items():
        if path[-2:] == ("kvstore", "driver"):
            raise Unsupported(
                "templax does not read T5X's own checkpoints, whose leaves are TensorStore specs",
                leaf=join_path(path[:-2]),
                file=LEGACY,
            )
        if isinstance(leaf, Empty):
            empties[path] = leaf.name
        elif isinstance(leaf, Value):
            yield _Named(path, leaf.kind, leaf)
        elif leaf.startswith(PLACEHOLDER):
            if leaf != PLACEHOLDER + join_path(path):
                raise Unsupported(
                    f"templax reads placeholders named as their leaf, got `{leaf[:200]}`",
                    leaf=join_path(path),
                    file=LEGACY,
                )
            yield _Named(path, "array")
        else:
            yield _Named(path, "string", leaf)


def _open_container(source: Source, present: set[str], tree: _TreeMetadata | None) -> _Container:
    use_ocdbt = tree.use_ocdbt if tree is not None else None
    processes = sorted(name for name in present if name.startswith("ocdbt.process_"))
    if use_ocdbt is None:
        use_ocdbt = MANIFEST in present or bool(processes)
    if not use_ocdbt:
        return _Container(list_files(source), None)
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


def _array_names(container: _Container) -> list[str]:
    names: dict[str, None] = {}
    for key in container.objects:
        name, slash, last = key.rpartition("/")
        # Of plain files only those just below: deeper ones may be of other checkpoints.
        here = container.index is not None or "/" not in name
        if slash and here and last in FILES:
            names[name] = None
    return list(names)


def _entries(
    source: Source, named: list[_Named], container: _Container, notes: Notes
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
            handle = _array(source, name, container, parsed)
            shape, dtype = handle.shape, handle.dtype
            impl = notes.key_impls.get(name)
            if impl is not None and shape and dtype == np.uint32:
                kind = "key"
            else:
                impl = None
        sharding = notes.shardings.get(name)
        entries.append(
            LeafEntry(name, leaf.path, shape, dtype, kind, impl, value, sharding, handle)
        )
    return tuple(entries)


def _array(
    source: Source,
    name: str,
    container: _Container,
    parsed: dict[tuple[str, bytes], Array],
) -> Array:
    """The metadata of a leaf's array. Layers look alike: equal bytes are parsed once."""
    for file in FILES:
        inside = array_prefix(name, files=container.index is None)
        extent = container.objects.get(inside + file)
        if extent is None:
            continue
        try:
            data = _bytes_of(source, extent)
            array = parsed.get((file, data))
            if array is None:
                if is_lfs_pointer(data):
                    raise lfs_pointer(extent.key)
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
    chunk = next((key for key in container.objects if key.startswith(f"{name}/")), None)
    if chunk is None:
        raise Corrupted("Expected a directory with an array, found none", leaf=name, file=name)
    raise lost_dot_files(name, chunk)


def lost_dot_files(name: str, chunk: str) -> Corrupted:
    """The error for chunks without the `.zarray` that describes them."""
    return Corrupted(
        f"Expected `.zarray` beside `{chunk}`, found none",
        leaf=name,
        file=f"{name}/.zarray",
        hint="copy the checkpoint again, with the files whose names start with a dot",
    )


def _bytes_of(source: Source, extent: Extent) -> bytes:
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
    """The locator of a catalog: chunks of some leaves, each within a file that is really there."""
    sizes: dict[str, int] = {}
    located: dict[str, tuple[Chunk, ...]] = {}
    filled = 0
    for entry in entries:
        handle = entry.handle
        if isinstance(handle, Value):
            extent = Extent(LEGACY, handle.start, handle.stop, handle.data)
            chunks = (Chunk(extent, full_box(entry.shape)),) if len(handle.data) else ()
        elif isinstance(handle, Array):
            chunks = locate_arrays(
                handle,
                entry.name,
                container.objects,
                source,
                absent=absent,
                index=container.index,
                damages=damages,
            )
            if absent == "fill":
                filled += sum(chunk.codecs == ("fill",) for chunk in chunks)
                if filled > _MAX_FILLED:
                    what = f"Expected at most {_MAX_FILLED} absent chunks, got more"
                    record_damage(Corrupted(what, leaf=entry.name), damages)
                    chunks = ()
            if container.index is not None and damages is None:
                _check_files(source, entry.name, chunks, sizes)
            elif (
                container.index is None
                and not sizes
                and chunks
                and chunks[0].extent.nbytes <= _POINTER_BYTES
            ):
                key = chunks[0].extent.key
                sizes[key] = chunks[0].extent.nbytes  # Git LFS leaves all files or none
                if (pointer := pointer_instead(source, key)) is not None:
                    raise pointer
        else:
            chunks = ()
        located[entry.name] = chunks
    return located


def _check_files(
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
            raise pointer_instead(source, extent.key) or Corrupted(
                f"Expected at least {extent.stop} bytes, the file has {size}",
                leaf=name,
                file=extent.key,
                start=extent.start,
                stop=extent.stop,
            )


def list_files(source: Source, prefix: str = "") -> Mapping[str, Extent]:
    """Every file below `array_prefix` ("" or ending in `/`), under its name relative to `array_prefix`."""
    return {info.key[len(prefix) :]: Extent(info.key, 0, info.size) for info in source.walk(prefix)}
