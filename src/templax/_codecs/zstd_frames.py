"""Where zstd frames end (RFC 8878, section 3.1.1).

libzstd's streaming readers take a frame that is cut after its last content for a complete one, and
so never compare its checksum; its one-shot calls ignore what follows the first frame. Both are
found here, by a walk over the headers of blocks (one in 128 KiB of content).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MAGIC = 0xFD2FB528

_SKIPPABLE = 0x184D2A50  # to ...5F

_ID_BYTES = (0, 1, 2, 4)

_SIZE_BYTES = (0, 2, 4, 8)


class FrameWalk:
    """Follows frames that come in pieces.

    Attributes:
        complete: Whether the bytes fed so far are whole frames; never, if they are not a frame.
    """

    def __init__(self) -> None:
        self._held = bytearray()  # of a header that is not all there yet
        self._skip = 0
        self._in_frame = self._checksum = self._foreign = False

    @property
    def complete(self) -> bool:
        return not (self._held or self._skip or self._in_frame or self._foreign)

    def feed(self, data: memoryview) -> None:
        """The next bytes, of any length."""
        at, stop = 0, len(data)
        while at < stop and not self._foreign:
            if self._skip:
                step = min(self._skip, stop - at)
                self._skip -= step
                at += step
                continue
            wanted = 3 if self._in_frame else 5 if len(self._held) < 5 else 8
            if not self._held and stop - at >= wanted:
                header = bytes(data[at : at + wanted])
                at += wanted
            else:
                step = min(wanted - len(self._held), stop - at)
                self._held += data[at : at + step]
                at += step
                if len(self._held) < wanted:
                    return
                header = bytes(self._held)
                self._held.clear()
            if self._in_frame:
                self._block(int.from_bytes(header, "little"))
            else:
                self._frame(header)

    def _block(self, header: int) -> None:
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        self._skip = 1 if kind == 1 else size  # a block of one repeated byte holds that byte
        if last:
            self._in_frame = False
            self._skip += 4 * self._checksum

    def _frame(self, header: bytes) -> None:
        magic = int.from_bytes(header[:4], "little")
        if magic & ~0xF == _SKIPPABLE:
            if len(header) < 8:
                self._held += header  # its length is the next four bytes
            else:
                self._skip = int.from_bytes(header[4:8], "little")
        elif magic == _MAGIC:
            self._in_frame, self._checksum = True, bool(header[4] & 4)
            self._skip = _header_rest(header[4])
        else:
            self._foreign = True


def _header_rest(descriptor: int) -> int:
    """Bytes of a frame's header after its descriptor."""
    single, size = descriptor >> 5 & 1, descriptor >> 6
    return 1 - single + _ID_BYTES[descriptor & 3] + (_SIZE_BYTES[size] or single)


_REST = np.array([_header_rest(d) for d in range(256)], np.int64)


def ends_with_its_block(data: bytes, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> bool:
    """Whether each of many byte ranges is one frame of one block, and nothing else."""
    if (lengths < 9).any():  # magic, descriptor, a byte more, and the header of a block
        return False
    view = np.frombuffer(data, np.uint8)
    magic = _little_endian(view, starts, 4)
    descriptor = view[starts + 4]
    block = 5 + _REST[descriptor]
    if (magic != _MAGIC).any() or (block + 3 > lengths).any():
        return False
    header = _little_endian(view, starts + block, 3)
    stored = np.where(header >> 1 & 3 == 1, 1, header >> 3)
    ends = block + 3 + stored + 4 * (descriptor >> 2 & 1)
    return bool(((header & 1 == 1) & (ends == lengths)).all())


def _little_endian(view: NDArray[np.uint8], at: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Numbers of `n` bytes at many places."""
    value = np.zeros(len(at), np.int64)
    for i in range(n):
        value |= view[at + i].astype(np.int64) << (8 * i)
    return value
