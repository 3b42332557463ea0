"""A tree that is saved as safetensors: one file, or several under an index. No JAX."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .._catalog.written import ChunkTable, Leaf, refuse_leaves
from .._core.names import check_depths
from ..errors import SaveError, Unsupported
from ..formats.orbax.write import Files
from ..formats.safetensors import MAX_HEADER
from ..formats.safetensors_set import INDEX
from ..formats.safetensors_write import (
    divide_leaves,
    encode_header,
    encode_index,
    encode_sums,
    find_unwritable_leaves,
    name_file,
)
from ..storage.sink import Sink, SinkFile
from .item import Item, choose_chunk
from .jobs import WriteOptions
from .writer import Writer


class _JoinedFiles:
    """Files that a `Writer` sees as one, each at an offset of its own."""

    def __init__(self, files: Sequence[SinkFile], starts: Sequence[int]):
        self._files, self._starts = files, starts

    def write(self, data: Any, offset: int) -> None:
        i = bisect.bisect_right(self._starts, offset) - 1
        self._files[i].write(data, offset - self._starts[i])

    def sync(self) -> None:
        for file in self._files:
            file.sync()


class SafetensorsItem(Item):
    """A tree that one process saves as safetensors; see `Item`.

    Args:
        leaves: The leaves that have values.
        metadata: What is stored in each file.
        shard_size: See `templax.save`.

    Raises:
        SaveError: A leaf can't be stored in the format.
    """

    def __init__(self, leaves: Sequence[Leaf], metadata: Mapping[str, str], shard_size: int):
        self.rename("")
        refuse_leaves(list(find_unwritable_leaves(leaves)))
        try:
            check_depths([tuple(leaf.name.split(".")) for leaf in leaves])
        except Unsupported as error:
            raise SaveError(f"This tree can't be saved: {error.what}") from error
        self._metadata = metadata
        self._shards = divide_leaves(leaves, shard_size)
        self.leaves = list(itertools.chain.from_iterable(self._shards))
        self._chunks = [choose_chunk(leaf) for leaf in self.leaves]

    def open(self, sink: Sink, options: WriteOptions, *, only_process: bool) -> None:
        self._places = ChunkTable(self.leaves, self._chunks)
        starts, offsets, end = list[int](), list[int](), 0
        # The headers get their checksums, which don't change their size, once those are known.
        for leaves, header in zip(self._shards, self._encode_headers(), strict=True):
            if len(header) - 8 > MAX_HEADER:
                raise SaveError(
                    f"Expected headers of at most {MAX_HEADER:,} bytes, got {len(header) - 8:,}",
                    file=sink.path,
                    hint="a smaller shard_size= divides the tree into more files",
                )
            starts.append(end)
            end += len(header)
            for leaf in leaves:
                offsets.append(end)
                end += leaf.nbytes
        count = len(self._shards)
        self._files = [sink.create(name_file(i, count)) for i in range(count)]
        joined = _JoinedFiles(self._files, starts)
        self.writer = Writer(
            self.leaves, self._chunks, self._places, joined, options, offsets=offsets
        )

    def _encode_headers(self) -> list[bytes]:
        places = self._places
        blocks = [
            math.prod(chunk) * leaf.dtype.itemsize
            for leaf, chunk in zip(self.leaves, self._chunks, strict=True)
        ]
        rows = itertools.pairwise(places.first_chunk)
        sums = (
            encode_sums(block, places.crc[start:stop])
            for block, (start, stop) in zip(blocks, rows, strict=True)
        )
        return [
            encode_header(leaves, self._metadata, itertools.islice(sums, len(leaves)))
            for leaves in self._shards
        ]

    @property
    def data_files(self) -> list[tuple[str, int]]:
        return []  # `describe` knows them

    def describe(
        self, files: Sequence[tuple[str, int]], others: Files
    ) -> tuple[Files, int, list[int]]:
        """Writes the headers and closes the files. Returns the index, if there are several; the
        total size of the files; and the crc32c of each leaf.
        """
        for file, header in zip(self._files, self._encode_headers(), strict=True):
            file.write(header, 0)
            file.close()
        index: Files = {f"model{INDEX}": encode_index(self._shards)} if len(self._files) > 1 else {}
        crcs: np.ndarray = self._places.fingerprints(self.leaves, self._chunks)
        return index, sum(file.size for file in self._files), crcs.tolist()
