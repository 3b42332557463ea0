"""A tree that is saved as Flax's msgpack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._catalog.catalog import LEAF_EMPTIES, MAX_EMPTIES
from .._catalog.written import Leaf, refuse_leaves
from .._codecs.crc32c import crc32c
from .._core.names import Path, check_depths
from ..errors import SaveError, Unsupported
from ..formats.flax.write import find_unwritable_leaves, lay_out, nest, sort_like
from ..formats.one_file import MSGPACK
from ..formats.orbax.write import Files
from .file_item import FileItem


class MsgpackItem(FileItem):
    """A tree that one process saves as a file that Flax reads; see `Item`.

    Args:
        leaves: The leaves that have values.
        empties: The containers without leaves.
        tree: The tree that they come from, whose order the file has; None for that of the leaves.

    Raises:
        SaveError: A leaf can't be stored in the format, or templax would not read the file.
    """

    def __init__(
        self, leaves: Sequence[Leaf], empties: Sequence[tuple[Path, str]], tree: Any = None
    ):
        refuse_leaves(list(find_unwritable_leaves(leaves, empties)))
        try:
            check_depths([*(leaf.path for leaf in leaves), *(path for path, _ in empties)])
        except Unsupported as error:
            raise SaveError(f"This tree can't be saved: {error.what}") from error
        if len(empties) > MAX_EMPTIES + LEAF_EMPTIES * len(leaves):
            raise SaveError(
                f"This tree can't be saved: templax would not read {len(empties):,} empty"
                f" containers in a tree of {len(leaves):,} leaves"
            )
        tree_order, layout, problem = lay_out(sort_like(nest(leaves, empties), tree))
        if problem is not None:
            raise SaveError(f"This tree can't be saved: {problem}")
        super().__init__(tree_order, [(MSGPACK, layout)])
        stored = {leaf.name for leaf in self._stored}
        self._between = {leaf.name: _crc_of(leaf) for leaf in leaves if leaf.name not in stored}

    def describe(
        self, files: Sequence[tuple[str, int]], others: Files
    ) -> tuple[Files, int, list[int]]:
        more, size, stored = super().describe(files, others)
        crcs = dict(zip([leaf.name for leaf in self._stored], stored, strict=True)) | self._between
        return more, size, [crcs[leaf.name] for leaf in self.leaves]


def _crc_of(leaf: Leaf) -> int:
    """The crc32c of a leaf that lies between the others: a string, or a number of Python."""
    if leaf.text is not None:
        return crc32c(leaf.text.encode())
    ((_, fetch),) = leaf.pieces
    return crc32c(fetch().tobytes())
