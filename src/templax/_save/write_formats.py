"""The formats that a tree can be saved in, and the item that writes each."""

from __future__ import annotations

from collections.abc import Sequence

from .._catalog.written import Leaf
from .._core.arguments import PyTree
from .._core.names import Path
from .item import Item
from .msgpack_item import MsgpackItem
from .npz_item import NpzItem
from .options import SaveOptions
from .safetensors_item import SafetensorsItem


def make_item(
    name: str,
    leaves: list[Leaf],
    empties: Sequence[tuple[Path, str]],
    options: SaveOptions,
    *,
    tree: PyTree = None,
    chunk_bytes: int | None = None,
) -> Item:
    """The item that writes a tree in the format of the options.

    Args:
        name: Name of the item; "" for all formats but Orbax's.
        leaves: The leaves that have values.
        empties: The containers without leaves.
        options: How to save.
        tree: The tree that they come from, if there is one.
        chunk_bytes: Only for Orbax; see `Item`.

    Raises:
        SaveError, UsageError: See the classes of items.
    """
    if options.format == "orbax":
        return Item(name, leaves, empties, chunk_bytes)
    if options.format == "npz":
        return NpzItem(leaves)
    if options.format == "msgpack":
        return MsgpackItem(leaves, empties, tree)
    metadata = {key: str(value) for key, value in options.metadata.items()}
    return SafetensorsItem(leaves, metadata, options.shard_size, options.single)
