"""JAX. The formats that a tree can be saved in, and the item that writes each."""

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
from .snapshot import collect_leaves


def make_item(name: str, tree: PyTree, options: SaveOptions) -> Item:
    """The item that writes a tree in the format of the options.

    Args:
        name: Name of the item; "" for all formats but Orbax's.
        tree: The pytree; see `templax.save`.
        options: How to save.

    Raises:
        SaveError, UsageError: See `collect_leaves` and the classes of items.
    """
    if options.format == "orbax":
        return Item(name, tree)
    leaves, empties = collect_leaves(tree)
    return make_file_item(leaves, empties, options, tree)


def make_file_item(
    leaves: Sequence[Leaf],
    empties: Sequence[tuple[Path, str]],
    options: SaveOptions,
    tree: PyTree = None,
) -> Item:
    """The item that writes leaves in a format other than Orbax's.

    Args:
        leaves, empties: See `collect_leaves`.
        options: How to save.
        tree: The tree that they come from, if there is one.
    """
    if options.format == "npz":
        return NpzItem(leaves)
    if options.format == "msgpack":
        return MsgpackItem(leaves, empties, tree)
    metadata = {key: str(value) for key, value in options.metadata.items()}
    return SafetensorsItem(leaves, metadata, options.shard_size, options.single)
