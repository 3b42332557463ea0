"""Opens directories of safetensors files: several under an index, or the only one.

Hugging Face's libraries split a model that exceeds a size: `model-00001-of-00002.safetensors` and
so on, with `model.safetensors.index.json`, whose `weight_map` names the file of each tensor.
"""

from __future__ import annotations

import functools
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import msgspec

from .._catalog.catalog import Catalog
from .._catalog.entry import LeafEntry
from .._catalog.regions import Region
from .._core.gc_pause import pause_gc
from .._core.json_text import decode_json
from .._core.text import list_examples
from ..errors import CheckpointError, Corrupted, NotFound, SourceError
from ..storage.signatures import read_head, read_metadata
from ..storage.source import Source
from .safetensors import (
    Safetensors,
    combine_sums,
    describe_header,
    locate_tensors,
    read_tensors,
)

INDEX = ".safetensors.index.json"

_SUFFIX = ".safetensors"


class _Index(msgspec.Struct):
    weight_map: dict[str, str]
    metadata: dict[str, Any] = {}


class SafetensorsSet:
    """A directory with one index of safetensors files, or with a single one; or such an index."""

    name = "safetensors"

    def detect(self, source: Source) -> str | None:
        found = _find(source)
        return None if found is None else f"`{found[1]}`"

    @pause_gc()
    def open(self, source: Source) -> Catalog:
        """Opens the files. Leaves are in the order of the files, and of the data in each.

        Raises:
            Corrupted: The index or a file is unreadable; a file that the index names does not
                exist, or lacks a tensor; or two files have a tensor that the index does not name.
            Unsupported: A dtype that templax does not read; the error names it.
        """
        found = _find(source)
        if found is None:
            raise NotFound("Expected safetensors files, found none", file=source.url)
        root, name = found
        if name.endswith(_SUFFIX):
            index, files = _Index({}), [name]
        else:
            index = _read_index(root, name)
            files = sorted(set(index.weight_map.values()))
        entries: dict[str, LeafEntry] = {}
        abouts: list[Mapping[str, Any]] = []
        summed = True
        for file in files:
            tensors, about, has_sums = _read_file(root, file, name)
            abouts.append(about)
            summed = summed and has_sums
            for entry in tensors:
                if index.weight_map.get(entry.name, file) != file:
                    continue  # another file's is the one that the index names
                if entry.name in entries:
                    raise Corrupted(
                        f"Expected one tensor of a name, found it in `{file}` and"
                        f" `{entries[entry.name].handle[0]}`",
                        leaf=entry.name,
                        file=name,
                    )
                entries[entry.name] = entry
        absent = [tensor for tensor in index.weight_map if tensor not in entries]
        if absent:
            raise Corrupted(
                f"Expected the tensors of the index in its files, {len(absent)} are missing:"
                f" {list_examples(absent[:4], len(absent))}",
                leaf=absent[0],
                file=index.weight_map[absent[0]],
            )
        return Catalog(
            url=source.url,
            format=self.name,
            evidence=f"`{name}`",
            entries=tuple(entries.values()),
            source=root,
            locator=locate_tensors,
            metadata=_join_metadata(index.metadata, abouts),
            fingerprints=functools.partial(combine_sums, tuple(entries.values()))
            if summed
            else None,
            regions=functools.partial(_describe_files, root, name, files),
        )


def _describe_files(root: Source, name: str, files: list[str]) -> Iterator[Region]:
    """The bytes that hold no tensors."""
    if name not in files:
        yield Region(name, 0, None, "index", "index of the set")
    for file in files:
        yield from describe_header(root.at(file), file)


def is_only_safetensors(source: Source) -> bool:
    """Whether a directory holds the files of one set, or one file, and nothing else."""
    found = _find(source)
    if found is None:
        return False
    name = found[1]
    files = set() if name.endswith(_SUFFIX) else set(_read_index(*found).weight_map.values())
    return {child.key for child in source.children()} == {name, *files}


def _find(source: Source) -> tuple[Source, str] | None:
    """The directory, and in it the index or the only safetensors file."""
    info = source.stat("")
    if info is None:
        return None
    if not info.is_dir:
        name = posixpath.basename(source.url.rstrip("/"))
        is_index = name.endswith(INDEX) and read_head(source, "", info.size, 1)[:1] == b"{"
        return (source.at(".."), name) if is_index else None
    names = [child.key for child in source.children() if not child.is_dir]
    indexes = [name for name in names if name.endswith(INDEX)]
    files = [name for name in names if name.endswith(_SUFFIX)]
    if len(indexes) == 1 and _names_all(source, indexes[0], files):
        return source, indexes[0]
    if not indexes and len(files) == 1 and _is_file(source, files[0]):
        return source, files[0]
    return None


def _names_all(source: Source, index: str, files: list[str]) -> bool:
    """Whether an index can be read, and names all of these files."""
    with suppress(CheckpointError, SourceError):
        named = set(_read_index(source, index).weight_map.values())
        return bool(named) and named.issuperset(files)
    return False


def _is_file(source: Source, name: str) -> bool:
    with suppress(CheckpointError, SourceError):
        return Safetensors().detect(source.at(name)) is not None
    return False


def _read_index(root: Source, name: str) -> _Index:
    try:
        text = read_metadata(root, name)
        index = msgspec.json.decode(text, type=_Index)
        decode_json(text)  # refuses a key that occurs twice
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Corrupted(f"The index is unreadable: {error}", file=name) from error
    for tensor, file in index.weight_map.items():
        if "\0" in file or any(part in ("", ".", "..") for part in file.split("/")):
            raise Corrupted(
                f"Expected a file of this directory, got `{file[:200]}`", leaf=tensor, file=name
            )
    return index


def _read_file(
    root: Source, file: str, name: str
) -> tuple[tuple[LeafEntry, ...], dict[str, str], bool]:
    place = root.at(file)
    info = place.stat("")
    if info is None or info.is_dir:
        raise Corrupted(f"Expected the file that `{name}` names, found none", file=file)
    try:
        return read_tensors(place, file)
    except CheckpointError as error:
        raise error.locate(file=file) from error


def _join_metadata(
    about: Mapping[str, Any], abouts: Iterable[Mapping[str, Any]]
) -> Mapping[str, Any]:
    """What the index and the files say. Of values that differ between files, all, in a list."""
    joined: dict[str, list[Any]] = {}
    for each in (about, *abouts):
        for key, value in each.items():
            values = joined.setdefault(key, [])
            if value not in values:
                values.append(value)
    return {key: values[0] if len(values) == 1 else values for key, values in joined.items()}
