"""Checksums of blocks: which bytes of a chunk they cover, and comparing them with bytes read."""

from __future__ import annotations

from collections.abc import Iterator

from .._codecs.crc32c import crc32c, wrong_crc32c
from ..errors import Corrupted
from .entry import Chunk


def covers_whole_blocks(chunk: Chunk, start: int, stop: int) -> bool:
    """Whether a byte range of a chunk with `sums` begins and ends on block boundaries."""
    extent = chunk.extent
    if start == extent.start and stop == extent.stop:
        return True
    return align_to_blocks(chunk, start, stop) == (start, stop)


def align_to_blocks(chunk: Chunk, start: int, stop: int) -> tuple[int, int]:
    """The smallest range of whole blocks of a chunk that covers bytes `start` to `stop`.

    Args:
        chunk: A chunk with `sums`.
        start, stop: Bytes of the chunk's object, half open, within the chunk.
    """
    origin, block = chunk.extent.start, chunk.block
    return start - (start - origin) % block, min(stop + (origin - stop) % block, chunk.extent.stop)


def check_blocks(chunk: Chunk, start: int, stored: memoryview) -> None:
    """Compares bytes of a chunk with its `sums`, all at once; see `BlockVerifier`.

    Args:
        chunk: A chunk with `sums`.
        start: Position of the first of the bytes in the chunk's object.
        stored: The bytes as read.

    Raises:
        Corrupted: A block differs; states where it begins and ends.
    """
    sums, extent = chunk.sums, chunk.extent
    if len(sums) != 1:
        BlockVerifier(chunk, start, start + len(stored)).feed(stored)
    elif start == extent.start and len(stored) == extent.stop - start:
        got = crc32c(stored)
        if got != sums[0]:
            raise wrong_crc32c(sums[0], got, start, extent.stop)


class BlockVerifier:
    """Compares the bytes of a chunk with its `sums` as they arrive.

    Args:
        chunk: A chunk with `sums`.
        start, stop: Bytes of the object that will be fed. Blocks that they cover only in part are
            not compared, because the checksum of a part is not known.
    """

    def __init__(self, chunk: Chunk, start: int, stop: int):
        self._chunk, self._at, self._crc = chunk, start, 0
        origin, block = chunk.extent.start, chunk.block
        self._next = (start - origin + block - 1) // block
        end = len(chunk.sums) if stop == chunk.extent.stop else (stop - origin) // block
        self._end = end

    def feed(self, data: memoryview) -> None:
        """Takes the next bytes, of any length.

        Raises:
            Corrupted: A block that ends in them differs; states where it begins and ends.
        """
        for damage in self.compare(data):
            raise damage

    def compare(self, data: memoryview) -> Iterator[Corrupted]:
        """Like `feed`, but yields the error for each block instead of raising the first one."""
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
