"""Decodes deflated members of numpy archives with the standard library."""

from __future__ import annotations

import zlib

from ..errors import Corrupted

_PIECE = 1 << 20
"""Bytes that are decoded at a time, besides the memory that they are decoded into."""

MAX_DEFLATE_RATIO = 1032
"""The most bytes that a deflated byte decodes to: two bits stand for at most 258 bytes (RFC 1951,
section 3.2.5)."""

NPY_MAGIC = b"\x93NUMPY"

MAX_NPY_HEAD = (1 << 16) + 12
"""Maximum size of the magic, the version and the header of an array, in bytes."""


def npy_head_size(head: bytes) -> int:
    """The size of what precedes the values of an array in numpy's format (numpy's `lib.format`).

    6 bytes of magic, 2 of the version, 2 or (since version 2) 4 of the length of the header, and
    the header.

    Args:
        head: The first 12 bytes, or more.
    """
    width = 2 if head[6:7] < b"\x02" else 4
    return 8 + width + int.from_bytes(head[8 : 8 + width], "little")


class InflateStream:
    """Raw deflated bytes, decoded as they are asked for.

    Args:
        data: The stored bytes.
    """

    def __init__(self, data: memoryview):
        self._data, self._at = data, 0
        self._decoder, self._pending = zlib.decompressobj(-zlib.MAX_WBITS), b""

    def read(self, n: int) -> bytes:
        """The next bytes: at most `n`, and none only at the end.

        Raises:
            Corrupted: The bytes do not decode, or end too early.
        """
        while not self._decoder.eof:
            if not self._pending and self._at < len(self._data):
                self._pending = bytes(self._data[self._at : self._at + _PIECE])
                self._at += len(self._pending)
            ended = not self._pending
            try:
                found = self._decoder.decompress(self._pending, n)
            except zlib.error as error:
                what = f"Expected deflated bytes, got bytes that do not decode ({error})"
                raise Corrupted(what) from error
            self._pending = self._decoder.unconsumed_tail
            if found:
                return found
            if ended and not self._decoder.eof:
                raise Corrupted("Expected deflated bytes, got too few of them")
        return b""

    def read_exactly(self, n: int) -> bytes:
        """The next `n` bytes; fewer only at the end."""
        found = bytearray()
        while len(found) < n and (piece := self.read(n - len(found))):
            found += piece
        return bytes(found)

    def fill(self, out: memoryview) -> None:
        """Fills `out` with what is left, which must have its size."""
        done = 0
        while done < len(out):
            piece = self.read(min(_PIECE, len(out) - done))
            if not piece:
                raise Corrupted(f"Expected {len(out)} decoded bytes, got {done}")
            out[done : done + len(piece)] = piece
            done += len(piece)
        if self.read(1):
            raise Corrupted(f"Expected {len(out)} decoded bytes, got more")


def read_npy_head(stream: InflateStream) -> bytes:
    """Reads what precedes the values of an array in numpy's format."""
    head = stream.read_exactly(12)
    if not head.startswith(NPY_MAGIC) or len(head) < 12:
        raise Corrupted("Expected an array in numpy's format, got other bytes")
    size = npy_head_size(head)
    if size > MAX_NPY_HEAD:
        raise Corrupted(f"Expected a header of at most {MAX_NPY_HEAD} bytes, got {size}")
    head += stream.read_exactly(size - 12)
    if len(head) < size:
        raise Corrupted(f"Expected a header of {size} bytes, got {len(head)}")
    return head


def inflate_npy_into(view: memoryview, out: memoryview) -> memoryview:
    """Decodes a deflated array in numpy's format into `out`, without its header; returns `out`.

    Raises:
        Corrupted: The bytes do not decode, or have another size.
    """
    stream = InflateStream(view)
    read_npy_head(stream)
    stream.fill(out)
    return out
