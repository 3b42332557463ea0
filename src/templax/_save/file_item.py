"""A tree that one process saves as files of another format than Orbax's."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .._catalog.written import ChunkTable, Leaf
from .._core import chunk_grid
from ..formats.layout import Layout
from ..formats.orbax.write import Files
from ..storage.sink import Sink, SinkFile
from .item import Item, choose_chunk
from .jobs import GAP_BYTES, WriteOptions
from .writer import Writer


class LaidOutFile:
    """A file that a `Writer` fills with the bytes of leaves, while this adds what lies between.

    The writer packs small leaves into one write, with zeros between them, which are replaced by
    what belongs there.

    Args:
        file: The file.
        layout: What is where.
    """

    def __init__(self, file: SinkFile, layout: Layout):
        self.file, self.layout = file, layout
        self._head_starts = [at for at, _ in layout.heads]
        self._written = bytearray(len(layout.heads))
        self._jump_starts = [at for at, _ in layout.jumps]
        self._shifts = [0, *itertools.accumulate(len(data) for _, data in layout.jumps)]

    def write(self, data: memoryview, at: int) -> None:
        """Writes bytes of leaves at a position of the layout."""
        self._fill(data, at)
        i = bisect.bisect_right(self._jump_starts, at)
        while i < len(self._jump_starts) and (n := self._jump_starts[i] - at) < len(data):
            self.file.write(data[:n], at + self._shifts[i])
            data, at, i = data[n:], at + n, i + 1
        self.file.write(data, at + self._shifts[i])

    def _fill(self, data: memoryview, at: int) -> None:
        """Puts what lies between small leaves into a pack of them."""
        heads, end = self.layout.heads, at + len(data)
        for i in range(bisect.bisect_left(self._head_starts, at), len(heads)):
            start = self._head_starts[i]
            if start >= end:
                break
            head = self.make_head(i)
            data[start - at : start - at + len(head)] = head
            self._written[i] = 1

    def make_head(self, i: int) -> bytes:
        """What precedes leaf `i`, once the bytes of that leaf are known."""
        return self.layout.heads[i][1]

    def finish(self) -> None:
        """Writes what lies between larger leaves, and in them."""
        for i, (at, _) in enumerate(self.layout.heads):
            if not self._written[i]:
                shift = self._shifts[bisect.bisect_right(self._jump_starts, at)]
                self.file.write(self.make_head(i), at + shift)
        for (at, data), shift in zip(self.layout.jumps, self._shifts, strict=False):
            self.file.write(data, at + shift)


class _JoinedFiles:
    """Files that a `Writer` sees as one, each at an offset of its own."""

    def __init__(self, files: Sequence[LaidOutFile]):
        # Leaves of two files lie too far apart for one write.
        sizes = [each.layout.size + GAP_BYTES + 1 for each in files]
        self.starts = [0, *itertools.accumulate(sizes)]
        self._files = files

    def write(self, data: Any, offset: int) -> None:
        i = bisect.bisect_right(self.starts, offset) - 1
        self._files[i].write(data, offset - self.starts[i])

    def sync(self) -> None:
        for each in self._files:
            each.file.sync()


def list_blocks(leaves: Iterable[Leaf]) -> list[tuple[int, int, int]]:
    """For each leaf, the bytes that each of its checksums covers, and their rows in the
    `ChunkTable` of these leaves.
    """
    found, row = list[tuple[int, int, int]](), 0
    for leaf in leaves:
        block, end = leaf.nbytes, row + 1
        if block > chunk_grid.CHUNK_BYTES or not block:
            chunk = choose_chunk(leaf)
            block = math.prod(chunk) * leaf.dtype.itemsize
            end = row + math.prod(chunk_grid.grid_shape(leaf.shape, chunk))
        found.append((block, row, end))
        row = end
    return found


class FileItem(Item):
    """A tree that one process saves as files of another format; see `Item`.

    Args:
        leaves: The leaves that have values, those of the first file first.
        layouts: The name of each file, and what is where in it.
    """

    def __init__(self, leaves: Sequence[Leaf], layouts: Sequence[tuple[str, Layout]]):
        self.rename("")
        self.leaves = list(leaves)
        self._chunks = [choose_chunk(leaf) for leaf in self.leaves]
        self._layouts = layouts
        self._stored = [leaf for _, layout in layouts for leaf in layout.leaves]
        chunks = dict(zip(map(id, self.leaves), self._chunks, strict=True))
        self._shapes = [chunks[id(leaf)] for leaf in self._stored]

    def open(self, sink: Sink, options: WriteOptions, *, only_process: bool) -> None:
        self._places = ChunkTable(self._stored, self._shapes)
        self._files = [self.make_file(sink.create(name), layout) for name, layout in self._layouts]
        joined = _JoinedFiles(self._files)
        offsets = [
            base + start
            for base, (_, layout) in zip(joined.starts, self._layouts, strict=False)
            for start in layout.starts
        ]
        self.writer = Writer(
            self._stored, self._shapes, self._places, joined, options, offsets=offsets
        )

    def make_file(self, file: SinkFile, layout: Layout) -> LaidOutFile:
        """What fills in a file."""
        return LaidOutFile(file, layout)

    @property
    def first_rows(self) -> dict[int, str]:
        return self._map_rows(self._stored)

    @property
    def data_files(self) -> list[tuple[str, int]]:
        return []  # `describe` knows them

    def describe(
        self, files: Sequence[tuple[str, int]], others: Files
    ) -> tuple[Files, int, list[int]]:
        """Writes what depends on the values, and closes the files. Returns further files, the total
        size of those that were written, and the crc32c of each leaf.
        """
        more = self.finish_files()
        for each in self._files:
            each.file.close()
        crcs: np.ndarray = self._places.fingerprints(self._stored, self._shapes)
        return more, sum(each.file.size for each in self._files), crcs.tolist()

    def finish_files(self) -> Files:
        """Writes what depends on the values; returns further files."""
        for each in self._files:
            each.finish()
        return {}
