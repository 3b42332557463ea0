"""Opens directories of files of one kind: several under an index, or the only one.

Hugging Face's libraries split a model that exceeds a size: `model-00001-of-00002.safetensors` and
so on, with `model.safetensors.index.json`, whose `weight_map` names the file of each tensor. Files
of PyTorch are split alike.
"""

from __future__ import annotations

import functools
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import structs

from .._catalog.catalog import Catalog
from .._catalog.entry import Chunk, LeafEntry
from .._catalog.regions import Region
from .._core.gc_pause import pause_gc
from .._core.json_text import decode_json
from .._core.text import list_examples
from ..errors import CheckpointError, Corrupted, NotFound, SourceError
from ..storage.signatures import read_head, read_metadata
from ..storage.source import Source
from .protocol import Format

INDEX_SUFFIX = ".index.json"
"""What the name of an index ends in, after the suffix of the files."""


class Index(msgspec.Struct):
    """Which file of a set has which tensor, and what is said of all."""

    weight_map: dict[str, str]
    metadata: dict[str, Any] = {}


class FileSet:
    """A directory with one index of files, or with a single such file; or such an index.

    Subclasses are formats.

    Attributes:
        name: Name of the format of a set.
        suffix: What the names of the files end in. That of the index is longer by
            `INDEX_SUFFIX`.
        formats: The formats that a file may have.
        others: Names of files that end in the suffix, but belong to no set.
    """

    name: str
    suffix: str
    formats: tuple[Format, ...]
    others: frozenset[str] = frozenset()

    def detect(self, source: Source) -> str | None:
        found = self._find(source)
        return None if found is None else f"`{found[1]}`"

    @pause_gc()
    def open(self, source: Source) -> Catalog:
        """Opens the files. Leaves are in the order of the files, and as in each.

        Raises:
            Corrupted: The index or a file is unreadable; a file that the index names does not
                exist, or lacks a tensor; or two files have a tensor that the index does not name.
            Unsupported: A dtype, or anything else, that templax does not read; the error names it.
        """
        found = self._find(source)
        if found is None:
            raise NotFound(f"Expected files `*{self.suffix}`, found none", file=source.url)
        root, name = found
        index, files = self._list_files(root, name)
        catalogs: dict[str, Catalog] = {}
        entries: list[LeafEntry] = []
        places: dict[str, str] = {}  # name of a leaf → its file
        unread: dict[str, str] = {}
        for file in files:
            part = catalogs[file] = self._open_file(root, file, name)
            # Of several leaves of a name, the one in the file that the index names for it counts.
            for entry in part.entries:
                if index.weight_map.get(entry.name, file) == file:
                    if places.setdefault(entry.name, file) != file:
                        raise _refuse_second(entry.name, (file, places[entry.name]), name)
                    entries.append(entry)
            for leaf, why in part.unread.items():
                if index.weight_map.get(leaf, file) == file:
                    unread.setdefault(leaf, why)
        for leaf in unread.keys() & places.keys():
            other = next(file for file, part in catalogs.items() if leaf in part.unread)
            raise _refuse_second(leaf, (other, places[leaf]), name)
        absent = [each for each in index.weight_map if each not in places and each not in unread]
        if absent:
            raise Corrupted(
                f"Expected the tensors of the index in its files, {len(absent)} are missing:"
                f" {list_examples(absent[:4], len(absent))}",
                leaf=absent[0],
                file=index.weight_map[absent[0]],
            )
        parts = list(catalogs.values())
        return Catalog(
            url=source.url,
            format=self.name,
            evidence=f"`{name}`",
            entries=tuple(entries),
            source=root,
            locator=functools.partial(_locate, catalogs, places),
            metadata=_join_metadata([index.metadata, *(part.metadata for part in parts)]),
            unread=unread,
            empties={path: what for part in parts for path, what in part.empties.items()},
            audit=functools.partial(_audit_all, catalogs)
            if any(part.audit is not None for part in parts)
            else None,
            audits_values=all(part.audits_values for part in parts),
            fingerprints=functools.partial(_join_fingerprints, catalogs, places)
            if all(part.fingerprints is not None for part in parts)
            else None,
            regions=functools.partial(_describe_files, name, catalogs),
        )

    def is_only(self, source: Source) -> bool:
        """Whether a directory holds the files of one set, or one file, and nothing else."""
        found = self._find(source)
        if found is None:
            return False
        _, files = self._list_files(*found)
        return {child.key for child in source.children()} == {found[1], *files}

    def find_index_problem(self, source: Source) -> Corrupted | None:
        """Why the only index of a directory can't be used; None if it can, or if there is none."""
        names = [child.key for child in source.children() if not child.is_dir]
        indexes = [name for name in names if name.endswith(self.suffix + INDEX_SUFFIX)]
        if len(indexes) != 1:
            return None
        try:
            _read_index(source, indexes[0])
        except Corrupted as error:
            return error
        return None

    def _find(self, source: Source) -> tuple[Source, str] | None:
        """The directory, and in it the index or the only file."""
        info = source.stat("")
        if info is None:
            return None
        ending = self.suffix + INDEX_SUFFIX
        if not info.is_dir:
            name = posixpath.basename(source.url.rstrip("/"))
            is_index = name.endswith(ending) and read_head(source, "", info.size, 1)[:1] == b"{"
            return (source.at(".."), name) if is_index else None
        names = [child.key for child in source.children() if not child.is_dir]
        indexes = [name for name in names if name.endswith(ending)]
        files = [name for name in names if name.endswith(self.suffix) and name not in self.others]
        if len(indexes) == 1 and _names_all(source, indexes[0], files):
            return source, indexes[0]
        if not indexes and len(files) == 1 and self._is_file(source, files[0]):
            return source, files[0]
        return None

    def _list_files(self, root: Source, name: str) -> tuple[Index, list[str]]:
        """The index that `_find` found, or an empty one for a single file; and the files."""
        if name.endswith(self.suffix):
            return Index({}), [name]
        index = _read_index(root, name)
        return index, sorted(set(index.weight_map.values()))

    def _is_file(self, source: Source, name: str) -> bool:
        with suppress(CheckpointError, SourceError):
            return any(format.detect(source.at(name)) is not None for format in self.formats)
        return False

    def _open_file(self, root: Source, file: str, name: str) -> Catalog:
        place, info = root.at(file), root.stat(file)  # of the directory: refuses a link out of it
        if info is None or info.is_dir:
            raise Corrupted(f"Expected the file that `{name}` names, found none", file=file)
        formats = (format for format in self.formats if format.detect(place) is not None)
        try:
            # What no format recognises is opened with the first, whose error says what is wrong.
            return next(formats, self.formats[0]).open(place)
        except CheckpointError as error:
            raise error.locate(file=file) from error


def _names_all(source: Source, index: str, files: list[str]) -> bool:
    """Whether an index can be read, and names all of these files."""
    with suppress(CheckpointError, SourceError):
        named = set(_read_index(source, index).weight_map.values())
        return bool(named) and named.issuperset(files)
    return False


def _refuse_second(leaf: str, files: tuple[str, str], index: str) -> Corrupted:
    """The error for a leaf that two files have, and the index does not name."""
    first, second = files
    what = f"Expected one tensor of a name, found it in `{first}` and `{second}`"
    return Corrupted(what, leaf=leaf, file=index)


def _read_index(root: Source, name: str) -> Index:
    try:
        text = read_metadata(root, name)
        index = msgspec.json.decode(text, type=Index)
        decode_json(text)  # refuses a key that occurs twice
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Corrupted(f"The index is unreadable: {error}", file=name) from error
    for tensor, file in index.weight_map.items():
        if "\0" in file or any(part in ("", ".", "..") for part in file.split("/")):
            raise Corrupted(
                f"Expected a file of this directory, got `{file[:200]}`", leaf=tensor, file=name
            )
    return index


def _join_metadata(abouts: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """What the index and the files say. Of values that differ between files, all, in a list."""
    joined: dict[str, list[Any]] = {}
    for each in abouts:
        for key, value in each.items():
            values = joined.setdefault(key, [])
            if value not in values:
                values.append(value)
    return {key: values[0] if len(values) == 1 else values for key, values in joined.items()}


def _join_fingerprints(
    catalogs: Mapping[str, Catalog], places: Mapping[str, str]
) -> dict[str, int]:
    parts = {file: each.fingerprints() for file, each in catalogs.items() if each.fingerprints}
    return {name: parts[file][name] for name, file in places.items()}


def _describe_files(name: str, catalogs: Mapping[str, Catalog]) -> Iterator[Region]:
    """The bytes that hold no values: the index, and what the files say of themselves."""
    if name not in catalogs:
        yield Region(name, 0, None, "index", "index of the set")
    for file, catalog in catalogs.items():
        for region in catalog.regions() if catalog.regions is not None else ():
            yield structs.replace(region, file=file)


def _audit_all(catalogs: Mapping[str, Catalog]) -> Iterator[Corrupted]:
    for file, catalog in catalogs.items():
        for damage in catalog.audit() if catalog.audit is not None else ():
            yield _name_file(damage, file)


def _name_file(damage: Corrupted, file: str) -> Corrupted:
    named = damage.locate(file=file)
    return named if isinstance(named, Corrupted) else damage


@pause_gc()
def _locate(
    catalogs: Mapping[str, Catalog],
    places: Mapping[str, str],
    entries: Iterable[LeafEntry],
    damages: list[Corrupted] | None = None,
) -> dict[str, tuple[Chunk, ...]]:
    located: dict[str, tuple[Chunk, ...]] = {}
    inside: dict[str, list[LeafEntry]] = {}
    for entry in entries:
        located[entry.name] = ()
        inside.setdefault(places[entry.name], []).append(entry)
    for file, own in inside.items():
        found: list[Corrupted] = []
        try:
            chunks = catalogs[file].locate(own, None if damages is None else found)
        except CheckpointError as error:
            raise error.locate(file=file) from error
        if damages is not None:
            damages += [_name_file(damage, file) for damage in found]
        for name, each in chunks.items():
            located[name] = tuple([_move_chunk(chunk, file) for chunk in each])
    return located


def _move_chunk(chunk: Chunk, file: str) -> Chunk:
    """A chunk of a file, as a chunk of the directory that the file is in."""
    return structs.replace(chunk, extent=structs.replace(chunk.extent, key=file))
