"""A tree that is saved as safetensors: one file, or several under an index."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from .._catalog.written import Leaf, refuse_leaves
from .._core.names import check_depths
from ..errors import SaveError, Unsupported, UsageError
from ..formats.orbax.write import Files
from ..formats.safetensors import MAX_HEADER
from ..formats.safetensors_set import INDEX
from ..formats.safetensors_write import (
    Header,
    divide_leaves,
    encode_index,
    find_unwritable_leaves,
    name_file,
)
from .file_item import FileItem, list_blocks


class SafetensorsItem(FileItem):
    """A tree that one process saves as safetensors; see `Item`.

    Args:
        leaves: The leaves that have values.
        metadata: What is stored in each file.
        shard_size: See `templax.save`.
        single: Whether there must be one file.

    Raises:
        SaveError: A leaf can't be stored in the format.
        UsageError: The tree is too large for one file of `shard_size`.
    """

    def __init__(
        self, leaves: Sequence[Leaf], metadata: Mapping[str, str], shard_size: int, single: bool
    ):
        refuse_leaves(list(find_unwritable_leaves(leaves)))
        try:
            check_depths([leaf.name.split(".") for leaf in leaves])
        except Unsupported as error:
            raise SaveError(f"This tree can't be saved: {error.what}") from error
        self._shards = divide_leaves(leaves, shard_size)
        count = len(self._shards)
        if single and count > 1:
            raise UsageError(
                f"Expected a tree that fits into one file of shard_size={shard_size} bytes, got one"
                f" for {count}; hint: save to a path without `.safetensors`, a directory of"
                " several files"
            )
        blocks = iter(list_blocks(itertools.chain.from_iterable(self._shards)))
        self._headers = [
            Header(shard, metadata, list(itertools.islice(blocks, len(shard))))
            for shard in self._shards
        ]
        largest = max(len(header.data) - 8 for header in self._headers)
        if largest > MAX_HEADER:
            raise SaveError(
                f"Expected headers of at most {MAX_HEADER:,} bytes, got {largest:,}",
                hint="a smaller shard_size= divides the tree into more files",
            )
        super().__init__(
            list(itertools.chain.from_iterable(self._shards)),
            [(name_file(i, count), header.layout) for i, header in enumerate(self._headers)],
        )

    def finish_files(self) -> Files:
        """Writes the headers. Returns the index, if there are several files."""
        for each, header in zip(self._files, self._headers, strict=True):
            each.file.write(header.insert_sums(self._places.crc), 0)
        return {f"model{INDEX}": encode_index(self._shards)} if len(self._files) > 1 else {}
