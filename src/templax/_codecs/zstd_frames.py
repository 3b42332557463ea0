"""Finds where zstd frames end (RFC 8878, section 3.1.1).

The streaming readers of libzstd accept a frame that is cut off after its last content, and then
never compare its checksum. Its one-shot calls ignore everything after the first frame. This module
detects both by walking over the block headers, of which there is at least one per 128 KiB of
content.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAGIC = 0xFD2FB528

_SKIPPABLE = 0x184D2A50  # up to 0x184D2A5F

_DICTIONARY_ID_BYTES = (0, 1, 2, 4)

_CONTENT_SIZE_BYTES = (0, 2, 4, 8)


class FrameWalk:
    """Follows the structure of frames that arrive in pieces.

    Attributes:
        complete: Whether the bytes fed so far are complete frames. Stays False from the first
            bytes on that are not a zstd frame.
    """

    def __init__(self) -> None:
        # The start of a header whose rest has not arrived yet.
        self._partial = bytearray()
        self._skip = 0  # bytes of content to skip before the next header
        self._in_frame = self._checksum = self._foreign = False

    @property
    def complete(self) -> bool:
        return not (self._partial or self._skip or self._in_frame or self._foreign)

    def feed(self, data: memoryview) -> None:
        """Takes the next bytes, of any length."""
        at, stop = 0, len(data)
        while at < stop and not self._foreign:
            if self._skip:
                step = min(self._skip, stop - at)
                self._skip -= step
                at += step
                continue
            # A block header has 3 bytes. Of a frame header, the first 5 bytes give its length; of a
            # skippable frame, the first 8.
            wanted = 3 if self._in_frame else 5 if len(self._partial) < 5 else 8
            if not self._partial and stop - at >= wanted:
                header = bytes(data[at : at + wanted])
                at += wanted
            else:
                step = min(wanted - len(self._partial), stop - at)
                self._partial += data[at : at + step]
                at += step
                if len(self._partial) < wanted:
                    return
                header = bytes(self._partial)
                self._partial.clear()
            if self._in_frame:
                self._start_block(int.from_bytes(header, "little"))
            else:
                self._start_frame(header)

    def _start_block(self, header: int) -> None:
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        # A block of kind 1 (RLE) stores a single byte, to be repeated `size` times.
        self._skip = 1 if kind == 1 else size
        if last:
            self._in_frame = False
            self._skip += 4 * self._checksum

    def _start_frame(self, header: bytes) -> None:
        magic = int.from_bytes(header[:4], "little")
        if magic & ~0xF == _SKIPPABLE:
            if len(header) < 8:
                self._partial += header  # the length is in the next bytes: wait for 8 in all
            else:
                self._skip = int.from_bytes(header[4:8], "little")
        elif magic == _MAGIC:
            self._in_frame, self._checksum = True, bool(header[4] & 4)
            self._skip = _count_header_rest(header[4])
        else:
            self._foreign = True


def _count_header_rest(descriptor: int) -> int:
    """Number of bytes in a frame header after its descriptor byte."""
    single_segment, size = descriptor >> 5 & 1, descriptor >> 6
    return (
        1
        - single_segment
        + _DICTIONARY_ID_BYTES[descriptor & 3]
        + (_CONTENT_SIZE_BYTES[size] or single_segment)
    )


_HEADER_REST = np.array([_count_header_rest(d) for d in range(256)], np.int64)


def ends_with_its_block(data: bytes, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> bool:
    """Whether each of many byte ranges is exactly one frame that consists of a single block.

    Args:
        data: The bytes.
        starts, lengths: Start and length of each range within `data`.
    """
    if (lengths < 9).any():  # magic, descriptor, at least one more byte, block header
        return False
    view = np.frombuffer(data, np.uint8)
    magic = _read_little_endian(view, starts, 4)
    descriptor = view[starts + 4]
    block = 5 + _HEADER_REST[descriptor]
    if (magic != _MAGIC).any() or (block + 3 > lengths).any():
        return False
    header = _read_little_endian(view, starts + block, 3)
    stored = np.where(header >> 1 & 3 == 1, 1, header >> 3)
    ends = block + 3 + stored + 4 * (descriptor >> 2 & 1)
    return bool(((header & 1 == 1) & (ends == lengths)).all())


def _read_little_endian(
    view: NDArray[np.uint8], at: NDArray[np.int64], n: int
) -> NDArray[np.int64]:
    """Little-endian numbers of `n` bytes at each of many positions."""
    value = np.zeros(len(at), np.int64)
    for i in range(n):
        value |= view[at + i].astype(np.int64) << (8 * i)
    return value
