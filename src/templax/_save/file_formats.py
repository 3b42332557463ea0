"""The items that write the formats of other libraries. No JAX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._catalog.written import Leaf
from .._core.names import Path
from ..errors import UsageError
from .file_item import FileItem
from .msgpack_item import MsgpackItem
from .npz_item import NpzItem
from .safetensors_item import SafetensorsItem

FILE_FORMATS = {"safetensors": ".safetensors", "npz": ".npz", "msgpack": ".msgpack"}
"""The formats that a single file can have → what the names of such files end in."""


def choose_format(format: str | None, path: str) -> tuple[str, bool]:
    """The format of a save, and whether its destination is a single file.

    A path that ends in `.safetensors`, `.npz` or `.msgpack` is a file of that format.

    Args:
        format: As the caller gave it; None to choose by the path.
        path: The destination; "" if it is a directory whatever its name.

    Raises:
        UsageError: There is no such format, or the path is that of a file of another one.

    >>> choose_format(None, "run/model.npz"), choose_format("npz", "run/model")
    (('npz', True), ('npz', False))
    >>> choose_format(None, "run/model"), choose_format("orbax", "run/model.npz")
    (('orbax', False), ('orbax', False))
    """
    known = ("orbax", *FILE_FORMATS)
    if format is not None and format not in known:
        raise UsageError(
            f"Expected format= one of {', '.join(f'`{name}`' for name in known)}, got {format!r}"
        )
    found = next((name for name, suffix in FILE_FORMATS.items() if path.endswith(suffix)), None)
    if found is None or format == "orbax":
        return format or "orbax", False
    if format not in (None, found):
        raise UsageError(
            f'Expected a path that ends in `{FILE_FORMATS[format]}`, or format="{found}", got'
            f' format="{format}" and {path}'
        )
    return found, True


def make_file_item(
    format: str,
    leaves: Sequence[Leaf],
    empties: Sequence[tuple[Path, str]],
    *,
    metadata: Mapping[str, str],
    shard_size: int,
    single: bool,
    tree: Any = None,
) -> FileItem:
    """The item that writes leaves in a format of `FILE_FORMATS`.

    Args:
        format: The format.
        leaves, empties: See `Item`.
        metadata: For safetensors, what is stored with the tree.
        shard_size: For safetensors, the bytes of data from which it takes several files.
        single: Whether there must be one file.
        tree: The tree that the leaves come from, if there is one.

    Raises:
        SaveError: A leaf can't be stored in the format, or could not be read again.
        UsageError: The tree is too large for a single file.
    """
    if format == "npz":
        return NpzItem(leaves)
    if format == "msgpack":
        return MsgpackItem(leaves, empties, tree)
    return SafetensorsItem(leaves, metadata, shard_size, single)
