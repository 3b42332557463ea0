"""Decodes deflated members of numpy archives with the standard library."""

from __future__ import annotations

import zlib

from ..errors import Corrupted

_PIECE = 1 << 20
"""Bytes that are decoded at a time, besides the memory that they are decoded into."""

MAX_DEFLATE_RATIO = 1032
"""The most bytes that a deflated byte decodes to: two bits stand for at most 258 bytes (RFC 1951,
section 3.2.5)."""

_MAX_HEADER = 1 << 16
"""Maximum size of the header of an array, in bytes."""


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


def read_npy_header(read: InflateStream) -> bytes:
    """The magic, the version and the header of an array in numpy's format.

    See numpy's `lib.format`: 6 bytes of magic, 2 of the version, 2 or (since version 2) 4 of the
    length of the header, and the header.
    """
    head = read.read_exactly(10)
    if not head.startswith(b"\x93NUMPY") or len(head) < 10:
        raise Corrupted("Expected an array in numpy's format, got other bytes")
    if head[6] >= 2:
        head += read.read_exactly(2)
    length = int.from_bytes(head[8:], "little")
    if length > _MAX_HEADER:
        raise Corrupted(f"Expected a header of at most {_MAX_HEADER} bytes, got {length}")
    text = read.read_exactly(length)
    if len(text) < length:
        raise Corrupted(f"Expected a header of {length} bytes, got {len(text)}")
    return head + text


def inflate_npy_into(view: memoryview, out: memoryview) -> memoryview:
    """Decodes a deflated array in numpy's format into `out`, without its header; returns `out`.

    Raises:
        Corrupted: The bytes do not decode, or have another size.
    """
    stream = InflateStream(view)
    read_npy_header(stream)
    stream.fill(out)
    return out
