"""The leaves that an item's metadata names, before their arrays are looked up.

Names come from `key_metadata` of `_METADATA`, or from the msgpack file `checkpoint` of Orbax before
0.4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from ..._catalog.entry import Kind
from ..._core.names import Path, join_path
from ...errors import CheckpointError, Corrupted, NotFound, Unsupported
from ...storage.signatures import read_metadata
from ...storage.source import Source
from ..flax.msgpack import PLACEHOLDER, Empty, Leaf, Value, read_msgpack
from .directory import LEGACY, TREE
from .sidecars import read_json
from .strings import STRINGS, find_string

_EMPTY_TYPES = ("None", "Dict", "List", "Tuple", "NamedTuple")


class _Key(msgspec.Struct, gc=False):
    key: str | int
    key_type: int


class _Value(msgspec.Struct, gc=False):
    value_type: str
    skip_deserialize: bool = False


class _Parameter(msgspec.Struct, gc=False):
    key_metadata: list[_Key]
    value_metadata: _Value


class TreeMetadata(msgspec.Struct):
    """The content of `_METADATA`."""

    tree_metadata: dict[str, _Parameter]
    use_ocdbt: bool | None = None
    use_zarr3: bool | None = None
    store_array_data_equal_to_fill_value: bool | None = None
    custom_metadata: Any = None


def count_keys(tree: TreeMetadata) -> Mapping[str, int]:
    """How often the keys that describe leaves must occur in `_METADATA`, for `read_json`."""
    if tree.custom_metadata is not None:
        return {"key": -1}  # a caller's metadata may have any keys: check all of them
    n = len(tree.tree_metadata)
    levels = sum([len(parameter.key_metadata) for parameter in tree.tree_metadata.values()])
    return {"key_metadata": n, "key": levels, "value_type": n}


def read_metadata_of_item(source: Source) -> Any:
    """The JSON that was saved with one item, unlike that of the whole checkpoint; or None.

    Raises:
        Corrupted: The file is damaged.
    """
    if source.stat(TREE) is None:
        return None
    return read_json(source, TREE, TreeMetadata, count_keys).custom_metadata


def read_numpy_paths(source: Source) -> set[tuple[str, ...]]:
    """The key paths, indices as text, of the leaves that `_METADATA` says were saved from NumPy.

    Raises:
        Corrupted: The file is damaged.
    """
    if source.stat(TREE) is None:
        return set()
    parameters = read_json(source, TREE, TreeMetadata, count_keys).tree_metadata.values()
    return {
        tuple([str(each.key) for each in parameter.key_metadata])
        for parameter in parameters
        if parameter.value_metadata.value_type == "np.ndarray"
    }


class NamedLeaf(msgspec.Struct, frozen=True, gc=False):
    """A leaf whose array has not been looked up yet.

    Attributes:
        path: Elements of the key path.
        kind: "array" also for typed keys, which only other files tell from arrays.
        value: The leaf's value, if a metadata file contains it.
    """

    path: Path
    kind: Kind
    value: Value | str | None = None


def iter_metadata_leaves(
    source: Source, tree: TreeMetadata, empties: dict[Path, str]
) -> Iterator[NamedLeaf]:
    """The leaves that `_METADATA` lists. Empty nodes are added to `empties`.

    Raises:
        Corrupted: A value or string that another file must contain is missing there.
    """
    strings: Mapping[str, Any] | None = None
    legacy: Mapping[str, Leaf] | None = None
    for parameter in tree.tree_metadata.values():
        path = tuple(map(_parse_key, parameter.key_metadata))
        value = parameter.value_metadata
        type, skip = value.value_type, value.skip_deserialize
        if type in _EMPTY_TYPES:
            empties[path] = type
        elif skip:
            # Orbax before 0.6 with `aggregate=True` stores the value in the file `checkpoint`.
            if legacy is None:
                legacy = _index_by_name(read_legacy_file(source))
            leaf = legacy.get(join_path(path))
            if not isinstance(leaf, Value):
                raise Corrupted("Expected a value, found none", leaf=join_path(path), file=LEGACY)
            yield NamedLeaf(path, "scalar" if type == "scalar" else leaf.kind, leaf)
        elif type == "string":
            if strings is None:
                strings = _read_strings(source)
            text = find_string(strings, join_path(path))
            if text is None:
                raise Corrupted("Expected a string, found none", leaf=join_path(path), file=STRINGS)
            yield NamedLeaf(path, "string", text)
        else:
            yield NamedLeaf(path, "scalar" if type == "scalar" else "array")


def _parse_key(key: _Key) -> str | int:
    # key_type 1 is an index of a list or tuple. At most 18 digits keep the number below 2**63.
    text = key.key
    if key.key_type == 1 and (isinstance(text, int) or (text.isascii() and text.isdigit())):
        return int(text[:18]) if isinstance(text, str) else text
    return str(text)


def _read_strings(source: Source) -> dict[str, Any]:
    try:
        return read_json(source, STRINGS, dict[str, Any])
    except NotFound:
        return {}


def read_legacy_file(source: Source) -> dict[Path, Leaf]:
    """The leaves and placeholders of the msgpack file `checkpoint`."""
    try:
        return read_msgpack(read_metadata(source, LEGACY))
    except NotFound as error:
        raise Corrupted("Expected the file that holds values, found none", file=LEGACY) from error
    except CheckpointError as error:
        raise error.locate(file=LEGACY) from error


def _index_by_name(leaves: Mapping[Path, Leaf]) -> dict[str, Leaf]:
    return {join_path(path): leaf for path, leaf in leaves.items()}


def iter_legacy_leaves(
    leaves: Mapping[Path, Value | Empty | str], empties: dict[Path, str]
) -> Iterator[NamedLeaf]:
    """The leaves of the file `checkpoint`. Empty nodes are added to `empties`.

    Raises:
        Unsupported: A placeholder with another name than its leaf.
    """
    for path, leaf in leaves.items():
        if isinstance(leaf, Empty):
            empties[path] = leaf.name
        elif isinstance(leaf, Value):
            yield NamedLeaf(path, leaf.kind, leaf)
        elif leaf.startswith(PLACEHOLDER):
            if leaf != PLACEHOLDER + join_path(path):
                raise Unsupported(
                    f"templax reads placeholders named as their leaf, got `{leaf[:200]}`",
                    leaf=join_path(path),
                    file=LEGACY,
                )
            yield NamedLeaf(path, "array")
        else:
            yield NamedLeaf(path, "string", leaf)
