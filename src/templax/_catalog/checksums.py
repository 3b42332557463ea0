"""Checksums of blocks: which bytes of a chunk they cover, and whether the bytes read are those."""

from __future__ import annotations

from collections.abc import Iterator

from .._codecs.crc32c import compare_crc32c, crc32c, wrong_crc32c
from ..errors import Corrupted
from .entry import Chunk


def covers_whole_blocks(chunk: Chunk, start: int, stop: int) -> bool:
    """Whether a byte range of a chunk with `sums` begins and ends where blocks do."""
    extent = chunk.extent
    if start == extent.start and stop == extent.stop:
        return True
    return align_to_blocks(chunk, start, stop) == (start, stop)


def align_to_blocks(chunk: Chunk, start: int, stop: int) -> tuple[int, int]:
    """The whole blocks of a chunk with `sums` that bytes `start` to `stop` of its object are in."""
    origin, block = chunk.extent.start, chunk.block
    return start - (start - origin) % block, min(stop + (origin - stop) % block, chunk.extent.stop)


def check_blocks(chunk: Chunk, start: int, stored: memoryview) -> None:
    """Compares what was read of a chunk with `sums`, as `BlockVerifier` does, all at once."""
    sums, extent = chunk.sums, chunk.extent
    if len(sums) != 1:
        BlockVerifier(chunk, start, start + len(stored)).feed(stored)
    elif start == extent.start and len(stored) == extent.stop - start:
        compare_crc32c(sums[0], crc32c(stored), start, extent.stop)


class BlockVerifier:
    """Compares the bytes of a chunk with its `sums` as they come.

    Args:
        chunk: With `sums`.
        start, stop: Bytes of the object that will be fed. Blocks that are only partly among them
            are not compared: nobody knows the checksum of a part.
    """

    def __init__(self, chunk: Chunk, start: int, stop: int):
        self._chunk, self._at, self._crc = chunk, start, 0
        origin, block = chunk.extent.start, chunk.block
        self._next = (start - origin + block - 1) // block
        end = len(chunk.sums) if stop == chunk.extent.stop else (stop - origin) // block
        self._end = end

    def feed(self, data: memoryview) -> None:
        """The next bytes, of any length.

        Raises:
            Corrupted: A block that ends here differs; says where it begins and ends.
        """
        for damage in self.compare(data):
            raise damage

    def compare(self, data: memoryview) -> Iterator[Corrupted]:
        """As `feed`, but gives the error for each block instead of raising that of the first."""
        chunk, begin = self._chunk, self._at
        self._at = stop = begin + len(data)
        while self._next < self._end:
            low = chunk.extent.start + self._next * chunk.block
            high = min(low + chunk.block, chunk.extent.stop)
            self._crc = crc32c(data[max(0, low - begin) : high - begin], self._crc)
            if high > stop:
                return
            if self._crc != (want := chunk.sums[self._next]):
                yield wrong_crc32c(want, self._crc, low, high)
            self._next, self._crc = self._next + 1, 0
