"""Opens the directories of `torch.distributed.checkpoint`, written by any number of processes.

`.metadata` is a pickle that says, for each tensor, its shape, dtype and chunks, and for each chunk
a byte range of a `.distcp` file, in which it is a file of `torch.save` of its own. Whatever is not
a tensor is such a range too.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import numpy as np
from msgspec import structs

from ..._catalog.catalog import Catalog, record_damage
from ..._catalog.entry import Chunk, Extent, LeafEntry
from ..._catalog.regions import Region
from ..._catalog.strided import move_chunk
from ..._core.boxes import Box, Shape, contains, full_box, intersect, size_of
from ..._core.gc_pause import pause_gc
from ..._core.names import Path, join_path
from ...errors import CheckpointError, Corrupted, Unsupported
from ...storage.signatures import SAFETENSORS, read_head, read_metadata, recognise
from ...storage.source import Source
from .extents import Pieces
from .objects import BrokenText, OtherKey, Record, Refused, Tensor, dtype_of, refuse_key
from .refusals import make_refusal
from .section import Section
from .tree import Tree
from .unpickler import Pickle, read_pickle
from .zip_file import Archive, read_archive

METADATA = ".metadata"

_MODULE = b"torch.distributed.checkpoint.metadata"

_CLASSES = f"{_MODULE.decode()}."

_MAX_OBJECT = 1 << 20
"""Most bytes of an object that is not a tensor and is read when the checkpoint is opened."""

_MAX_COMPARED = 512
"""Most chunks of a tensor that are compared one by one because they form no grid."""


class _Place(msgspec.Struct, frozen=True, gc=False):
    """A byte range of a file of the checkpoint."""

    file: str
    start: int
    stop: int


class _Shard(msgspec.Struct, frozen=True, gc=False):
    """A chunk of a tensor, and where the file of `torch.save` that holds it is."""

    box: Box
    place: _Place


class DistributedCheckpoint:
    """A directory of `torch.distributed.checkpoint`."""

    name = "dcp"

    def detect(self, source: Source) -> str | None:
        info = source.stat(METADATA)
        if info is None or info.is_dir:
            return None
        found = _MODULE in read_head(source, METADATA, info.size)
        return f"`{METADATA}` of torch.distributed.checkpoint" if found else None

    @pause_gc()
    def open(self, source: Source) -> Catalog:
        """Opens a directory. Leaves are in the order of the metadata, and keys are split at dots.

        Objects other than tensors are read now. Those that can't be, and tensors of dtypes that
        templax does not read, are listed in `unread` of the catalog.

        Raises:
            Corrupted: The metadata is unreadable, contradicts itself, or names a file outside of
                the directory.
            Unsupported: It holds tensors, but none that templax reads; or the metadata has
                something else that it does not read, such as chunks that were compressed. The error
                names it.
        """
        data = bytes(read_metadata(source, METADATA))
        try:
            pickle = read_pickle(data)
            _check_serialization(source)
            return _make_catalog(source, pickle, len(data))
        except CheckpointError as error:
            raise error.locate(file=METADATA) from error


def _check_serialization(source: Source) -> None:
    """Refuses a directory whose chunks are not files of `torch.save`, but of safetensors."""
    files = (info for info in source.children() if info.key.endswith(".distcp"))
    for info in itertools.islice(files, 1):
        if recognise(read_head(source, info.key, info.size), info.size) == SAFETENSORS:
            raise Unsupported(
                "templax reads no chunks that were serialised as safetensors",
                file=info.key,
                hint="save with `SerializationFormat.TORCH_SAVE`, which is the default",
            )


def _make_catalog(source: Source, pickle: Pickle, nbytes: int) -> Catalog:
    fields = _read_fields(pickle.value, "Metadata")
    stored = _read_dict(fields, "state_dict_metadata")
    paths = fields.get("planner_data")
    places = _read_places(_read_dict(fields, "storage_data"))
    files = _Files(source, {place.file for place in places.values()})
    total = sum(files.sizes.values())
    tree = Tree(nbytes + total, nbytes + total)
    for name, about in stored.items():
        if isinstance(name, OtherKey) and isinstance(name.value, BrokenText):
            tree.refuse(tuple(name.value.shown.split(".")), refuse_key(name))
            continue
        if type(name) is not str:
            raise Corrupted("Expected names of text in the metadata, got another value")
        path = _find_path(name, paths)
        if isinstance(about, Record) and about.name == f"{_CLASSES}BytesStorageMetadata":
            place = places.get((name, None))
            if place is None:
                raise Corrupted("Expected a place of this object in the metadata", leaf=name)
            reason = _add_object(tree, files, place, path)
            if reason is not None:
                tree.not_read[join_path(path)] = reason
        else:
            try:
                found = _read_tensor(name, about, places)
                if isinstance(found, Refused):
                    tree.add(found, path)
                else:
                    tree.add_array(path, *found)
            except CheckpointError as error:
                raise error.locate(leaf=name) from None
    if tree.refusal is not None and not tree.entries:
        raise tree.refusal
    pickle.require_listed(tree.refused)
    return Catalog(
        url=source.url,
        format=DistributedCheckpoint.name,
        evidence=f"`{METADATA}` of torch.distributed.checkpoint",
        entries=tuple(tree.entries),
        source=source,
        locator=functools.partial(_locate, source),
        metadata=tree.metadata,
        empties=tree.empties,
        unread=tree.not_read,
        regions=functools.partial(_describe_files, tuple(places.values())),
    )


def _describe_files(places: Iterable[_Place]) -> Iterator[Region]:
    """The bytes that are not of tensors: the metadata, and what is around them in their places."""
    yield Region(METADATA, 0, None, "index", "metadata")
    for place in places:
        what = "files of torch.save around the tensors"
        yield Region(place.file, place.start, place.stop, "index", what)


def _read_fields(value: Any, name: str) -> dict[str, Any]:
    """The fields of an object of a class of the metadata."""
    value = value.value if isinstance(value, OtherKey) else value
    if isinstance(value, Refused):
        raise make_refusal(value.name)
    is_record = isinstance(value, Record) and value.name.rpartition(".")[2] == name
    if not is_record or type(value.state) is not dict:
        raise Corrupted(f"Expected a `{name}` in the metadata, got another value")
    return value.state


def _read_dict(fields: dict[str, Any], name: str) -> dict[Any, Any]:
    value = fields.get(name)
    if isinstance(value, Refused):
        raise make_refusal(value.name)
    if type(value) is not dict:
        raise Corrupted(f"Expected a dict `{name}` in the metadata, got another value")
    return value


def _read_sizes(value: Any) -> Shape:
    if type(value) is not tuple or any(type(n) is not int or n < 0 for n in value):
        raise Corrupted("Expected a size of whole numbers in the metadata, got another value")
    return value


def _find_path(name: str, paths: Any) -> Path:
    """The key path of a leaf: the metadata has it if a nested tree was saved."""
    found = paths.get(name) if type(paths) is dict else None
    keys = found if type(found) is tuple and found else (name,)
    path: list[str | int] = []
    for key in keys:
        if type(key) is int and key >= 0:
            path.append(key)
        elif type(key) is str:
            path += key.split(".")
        else:
            raise Corrupted("Expected a path of text and indices in the metadata", leaf=name)
    return tuple(path)


def _read_places(stored: dict[Any, Any]) -> dict[tuple[str, Shape | None], _Place]:
    """Name and offset of each chunk (None for an object) → where it is."""
    places: dict[tuple[str, Shape | None], _Place] = {}
    for index, info in stored.items():
        about = _read_fields(index, "MetadataIndex")
        where = _read_fields(info, "_StorageInfo")
        name, offset = about.get("fqn"), about.get("offset")
        name = name.shown if isinstance(name, BrokenText) else name
        file, start, length = (where.get(key) for key in ("relative_path", "offset", "length"))
        if type(name) is not str or type(file) is not str:
            raise Corrupted("Expected names of text in the metadata, got another value")
        if not file or file.startswith("/") or {"\0", "\\"} & {*file} or ".." in file.split("/"):
            raise Corrupted(f"Expected a file of this directory, got `{file[:200]}`", leaf=name)
        if where.get("transform_descriptors"):
            raise Unsupported("templax reads no chunks that were compressed", leaf=name)
        start, length = _read_sizes((start, length))
        key = (name, None if offset is None else _read_sizes(offset))
        if places.setdefault(key, place := _Place(file, start, start + length)) is not place:
            raise Corrupted("Expected one place of each chunk in the metadata", leaf=name)
    end: dict[str, int] = defaultdict(int)
    for (name, _), place in sorted(places.items(), key=lambda p: (p[1].start, p[1].stop)):
        if place.start < end[place.file]:
            raise Corrupted(f"Expected chunks of `{place.file}` that do not overlap", leaf=name)
        end[place.file] = place.stop
    return places


class _Files:
    """The files of a checkpoint, each of which holds many files of `torch.save`.

    Args:
        source: The directory.
        files: Their names.

    Attributes:
        sizes: Of those that exist.
        pickles: See `read_archive`.
    """

    def __init__(self, source: Source, files: Iterable[str]):
        infos = {file: source.stat(file) for file in sorted(files)}
        self.sizes = {f: i.size for f, i in infos.items() if i is not None and not i.is_dir}
        self.pickles: dict[bytes, Pickle] = {}
        self._source = source
        self._mapped: dict[str, memoryview | None] = {}

    def read_archive(self, place: _Place) -> Archive:
        """Reads the file of `torch.save` at a place.

        Raises:
            Corrupted: The file ends before it.
            Corrupted, Unsupported: See `zip_file.read_archive`.
        """
        file, size = place.file, self.sizes.get(place.file)
        if size is None or place.stop > size:
            found = "none" if size is None else f"one of {size}"
            raise Corrupted(f"Expected a file of {place.stop} bytes, found {found}", file=file)
        if file not in self._mapped:
            maps = self._source.maps and size > 0
            self._mapped[file] = self._source.view(file, 0, size) if maps else None
        mapped = self._mapped[file]
        section = Section(self._source, file, place.start, place.stop, mapped)
        return read_archive(section, self.pickles)


def _read_tensor(
    name: str, about: Any, places: dict[tuple[str, Shape | None], _Place]
) -> tuple[Shape, np.dtype, tuple[_Shard, ...]] | Refused:
    """The shape, dtype and chunks of a tensor; or its dtype or layout that is not read."""
    fields = _read_fields(about, "TensorStorageMetadata")
    shape, chunks = _read_sizes(fields.get("size")), fields.get("chunks")
    properties = fields.get("properties")
    if isinstance(properties, Refused):
        raise make_refusal(properties.name)
    described = properties.state if isinstance(properties, Record) else None
    if type(described) is not tuple or len(described) < 2 or type(chunks) is not list:
        raise Corrupted("Expected properties and chunks of a tensor in the metadata")
    for each in described[:2]:
        if isinstance(each, Refused):
            return each
    dtype = dtype_of(described[0])
    if dtype is None:
        raise Corrupted("Expected a dtype in the metadata, got another value")
    shards: list[_Shard] = []
    for chunk in chunks:
        where = _read_fields(chunk, "ChunkStorageMetadata")
        offsets, sizes = _read_sizes(where.get("offsets")), _read_sizes(where.get("sizes"))
        if len(offsets) != len(shape) or len(sizes) != len(shape):
            raise Corrupted(f"Expected chunks of {len(shape)} dimensions, got another one")
        place = places.get((name, offsets))
        if place is None:
            raise Corrupted(f"Expected a place of the chunk at {offsets}, found none")
        box = tuple((at, at + n) for at, n in zip(offsets, sizes, strict=True))
        if size_of(box):
            shards.append(_Shard(box, place))
    _check_tiling([shard.box for shard in shards], shape)
    return shape, dtype, tuple(shards)


def _check_tiling(boxes: list[Box], shape: Shape) -> None:
    """Checks that boxes cover an array once."""
    everything = full_box(shape)
    if sum(map(size_of, boxes)) != size_of(everything):
        raise Corrupted(f"Expected chunks that cover {shape} once, got others")
    axes = [sorted({box[i] for box in boxes}) for i in range(len(shape))]
    in_order = all(a[1] == b[0] for axis in axes for a, b in itertools.pairwise(axis))
    if in_order and len(set(boxes)) == len(boxes) == math.prod(map(len, axes)):
        return  # a grid
    if len(boxes) > _MAX_COMPARED:
        raise Unsupported(f"templax reads at most {_MAX_COMPARED} chunks that form no grid")
    apart = all(intersect(a, b) is None for i, a in enumerate(boxes) for b in boxes[:i])
    if not apart or not all(contains(everything, box) for box in boxes):
        raise Corrupted(f"Expected chunks that cover {shape} once, got others")


def _add_object(tree: Tree, files: _Files, place: _Place, path: Path) -> str | None:
    """Adds the leaves of an object that is not a tensor. Returns why it can't be, if so."""
    nbytes = place.stop - place.start
    if nbytes > _MAX_OBJECT:
        return f"it has {nbytes} bytes"
    try:
        archive = files.read_archive(place)
        trial, pieces = Tree(nbytes, nbytes), Pieces()
        trial.add(archive.pickle.value, path)
        archive.pickle.require_known()
        for reason in trial.not_read.values():
            return reason
        starts = {key: place.start + start for key, start in archive.starts.items()}
        located = {
            entry.name: pieces.locate(entry.handle, place.file, starts[entry.handle.storage.key])
            for entry in trial.entries
            if isinstance(entry.handle, Tensor)
        }
    except Unsupported as error:
        return error.args[0] if error.args else str(error)
    except Corrupted as error:
        raise error.locate(leaf=join_path(path), file=place.file) from None
    first = len(tree.entries)
    tree.add(archive.pickle.value, path)
    for i, entry in enumerate(tree.entries[first:], first):
        if entry.name in located:
            tree.entries[i] = structs.replace(entry, handle=located[entry.name])
    return None


@pause_gc()
def _locate(
    source: Source, entries: Iterable[LeafEntry], damages: list[Corrupted] | None = None
) -> dict[str, tuple[Chunk, ...]]:
    pieces, entries = Pieces(), list(entries)
    parts = itertools.chain.from_iterable(entry.handle or () for entry in entries)
    files = _Files(source, {p.place.file for p in parts if isinstance(p, _Shard)})
    located: dict[str, tuple[Chunk, ...]] = {}
    for entry in entries:
        chunks: list[Chunk] = []
        for part in entry.handle or ():
            if isinstance(part, Chunk):
                chunks.append(part)
                continue
            try:
                chunks += _locate_shard(files, part, entry.dtype, pieces)
            except CheckpointError as error:
                named = error.locate(leaf=entry.name, file=part.place.file)
                if damages is None or not isinstance(error, Unsupported):
                    record_damage(named, damages, error)
                else:  # as a chunk that nothing decodes
                    where = Extent(part.place.file, part.place.start, part.place.stop)
                    chunks.append(Chunk(where, part.box, ("torch.save",)))
        located[entry.name] = tuple(chunks)
    return located


def _locate_shard(files: _Files, shard: _Shard, dtype: np.dtype, pieces: Pieces) -> Iterator[Chunk]:
    archive = files.read_archive(shard.place)
    archive.pickle.require_known()
    tensor = archive.pickle.value
    shape = tuple(stop - start for start, stop in shard.box)
    if not isinstance(tensor, Tensor) or (tensor.shape, tensor.dtype) != (shape, dtype):
        raise Corrupted(f"Expected a tensor of {dtype.name}{shape}, got another value")
    start = shard.place.start + archive.starts[tensor.storage.key]
    for chunk in pieces.locate(tensor, shard.place.file, start):
        yield move_chunk(chunk, tuple(at for at, _ in shard.box))
