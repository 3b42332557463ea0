"""A tree that is saved as an archive of numpy, with the CRC-32 of each array."""

from __future__ import annotations

import bisect
import zlib
from collections.abc import Sequence
from typing import Any

from .._catalog.written import Leaf, refuse_leaves
from .._codecs.crc_combine import join_crc32
from .._core.names import check_depths
from ..errors import SaveError, Unsupported
from ..formats.layout import Layout
from ..formats.npz_write import (
    encode_array_head,
    encode_directory,
    find_unwritable_leaves,
    insert_crc,
    lay_out,
    name_members,
)
from ..formats.numpy_files import split_names
from ..formats.one_file import ARCHIVE
from ..formats.orbax.write import Files
from ..storage.signatures import NPZ, recognise
from ..storage.sink import SinkFile
from ..storage.staged_file import StagedFile
from .file_item import FileItem, LaidOutFile, list_blocks

_PIECE = 1 << 20


class _Archive(LaidOutFile):
    """An archive that is being written: computes the CRC-32 of each member on the way."""

    def __init__(self, file: SinkFile, layout: Layout):
        super().__init__(file, layout)
        self._crcs: list[int | None] = [None] * len(layout.leaves)
        self._pieces: list[list[tuple[int, int, int]]] = [[] for _ in layout.leaves]

    def write(self, data: memoryview, at: int) -> None:
        starts, leaves = self.layout.starts, self.layout.leaves
        end = at + len(data)
        for i in range(max(0, bisect.bisect_right(starts, at) - 1), len(starts)):
            start = starts[i]
            stop = start + leaves[i].nbytes
            if start >= end:
                break
            first, last = max(start, at), min(stop, end)
            if first < last:
                piece = data[first - at : last - at]
                if last - first == stop - start:
                    self._crcs[i] = zlib.crc32(piece, self._begin_crc(i))
                else:
                    self._pieces[i].append((first, last - first, zlib.crc32(piece)))
        super().write(data, at)

    def _begin_crc(self, i: int) -> int:
        return zlib.crc32(encode_array_head(self.layout.leaves[i]))

    def find_crc(self, i: int) -> int:
        """The CRC-32 of member `i`, once its values are written."""
        crc = self._crcs[i]
        if crc is None:
            pieces = [(crc, nbytes) for _, nbytes, crc in sorted(self._pieces[i])]
            if sum(nbytes for _, nbytes in pieces) == self.layout.leaves[i].nbytes:
                crc = join_crc32(self._begin_crc(i), pieces)
            else:
                crc = self._read_crc(i)
            self._crcs[i] = crc
        return crc

    def _read_crc(self, i: int) -> int:
        """The CRC-32 of a member of which an earlier process has written a part."""
        assert isinstance(self.file, StagedFile), "only files on a disk are resumed"
        crc, left = self._begin_crc(i), self.layout.leaves[i].nbytes
        with open(self.file.path, "rb") as file:
            file.seek(self.layout.starts[i])
            while left and (piece := file.read(min(left, _PIECE))):
                crc, left = zlib.crc32(piece, crc), left - len(piece)
        return crc

    def make_head(self, i: int) -> bytes:
        return insert_crc(super().make_head(i), self.find_crc(i))


class NpzItem(FileItem):
    """A tree that one process saves as an archive of numpy; see `Item`.

    Args:
        leaves: The leaves that have values.

    Raises:
        SaveError: A leaf can't be stored in the format.
    """

    def __init__(self, leaves: Sequence[Leaf]):
        refuse_leaves(list(find_unwritable_leaves(leaves)))
        self._names, problems = name_members(leaves)
        refuse_leaves(problems)
        layout = lay_out(leaves, self._names)
        try:
            check_depths(split_names(self._names))
        except Unsupported as error:
            raise SaveError(f"This tree can't be saved: {error.what}") from error
        if not leaves:
            raise SaveError("Expected arrays to save, got none: no reader can tell an empty npz")
        if recognise(layout.heads[0][1][:512], layout.size) != NPZ:
            raise SaveError(
                "This tree can't be saved: no reader can tell an npz by a first name that is"
                f" {len(self._names[0]):,} characters long",
                leaf=leaves[0].name[:200],
            )
        super().__init__(leaves, [(ARCHIVE, layout)])

    def make_file(self, file: SinkFile, layout: Layout) -> LaidOutFile:
        return _Archive(file, layout)

    def finish_files(self) -> Files:
        more = super().finish_files()
        archive: Any = self._files[0]
        crcs = [archive.find_crc(i) for i in range(len(self._names))]
        layout = archive.layout
        blocks, sums = list_blocks(layout.leaves), self._places.crc
        directory = encode_directory(layout, self._names, crcs, blocks, sums)
        archive.file.write(directory, layout.size)
        return more
