"""What a zarr tree says besides its arrays: its groups, attributes and consolidated metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..._core.json_text import decode_json
from ...errors import Corrupted, Unsupported
from ..file_names import GROUP

ATTRIBUTES, CONSOLIDATED = ".zattrs", ".zmetadata"
"""Files of zarr 2 beside `.zarray` and `.zgroup`."""

NODE = "zarr.json"
"""The file of an array or a group of zarr 3, with its attributes."""


class Node(msgspec.Struct):
    """An array or a group of zarr 3, without what says how an array is stored.

    Attributes:
        zarr_format: 3.
        node_type: "array" or "group".
        attributes: What a program keeps about it.
        consolidated_metadata: The nodes below, if it is a group that repeats them.
    """

    zarr_format: int = 0
    node_type: str = ""
    attributes: dict[str, Any] = {}
    consolidated_metadata: dict[str, Any] | None = None


class _Group2(msgspec.Struct):
    zarr_format: int


class _Consolidated(msgspec.Struct):
    metadata: dict[str, Any] = {}


def parse_node(data: bytes) -> Node:
    """Parses `zarr.json`.

    Raises:
        Corrupted: The JSON is invalid, or repeats a key.
        Unsupported: Another version than 3.
    """
    node = _decode(data, NODE, Node)
    if node.zarr_format != 3:
        raise Unsupported(f"templax reads zarr_format 3 in `{NODE}`, got {node.zarr_format}")
    return node


def parse_attributes(data: bytes) -> dict[str, Any]:
    """Parses `.zattrs`.

    Raises:
        Corrupted: The JSON is invalid, or repeats a key.
    """
    return _decode(data, ATTRIBUTES, dict[str, Any])


def check_group(data: bytes) -> None:
    """Checks the version in `.zgroup`.

    Raises:
        Corrupted: The JSON is invalid, or repeats a key.
        Unsupported: Another version than 2.
    """
    version = _decode(data, GROUP, _Group2).zarr_format
    if version != 2:
        raise Unsupported(f"templax reads zarr_format 2 in `{GROUP}`, got {version}")


def list_consolidated(data: bytes, file: str) -> dict[str, Mapping[str, Any]]:
    """The arrays in consolidated metadata: name → what it says of the array.

    Args:
        data: The file.
        file: Its name: `.zmetadata`, or the `zarr.json` of a group.

    Raises:
        Corrupted: The JSON is invalid, or repeats a key.
    """
    if file == CONSOLIDATED:
        found = _decode(data, file, _Consolidated).metadata
        names = {key: key.removesuffix(".zarray").removesuffix("/") for key in found}
        return {
            names[key]: about
            for key, about in found.items()
            if key.rpartition("/")[2] == ".zarray" and isinstance(about, dict)
        }
    found = (_decode(data, file, Node).consolidated_metadata or {}).get("metadata")
    return {
        key: about
        for key, about in (found.items() if isinstance(found, dict) else ())
        if isinstance(about, dict) and about.get("node_type") == "array"
    }


def is_same_array(data: bytes, about: Mapping[str, Any]) -> bool:
    """Whether the metadata of an array says the same as its copy in consolidated metadata."""
    own = decode_json(data)
    kept = [{k: v for k, v in each.items() if k != "attributes"} for each in (own, about)]
    return kept[0] == kept[1]


def _decode(data: bytes, file: str, type: Any) -> Any:
    try:
        # Not with msgspec alone: attributes may be NaN, and no key may occur twice.
        return msgspec.convert(decode_json(data), type)
    except (msgspec.ValidationError, ValueError, RecursionError) as error:
        raise Corrupted(f"`{file}` is unreadable: {error}") from error
