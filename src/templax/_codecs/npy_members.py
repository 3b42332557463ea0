"""Decodes compressed members of numpy archives with the standard library."""

from __future__ import annotations

import zlib
from typing import Any

from ..errors import Corrupted, Unsupported

_PIECE = 1 << 20
"""Bytes that are decoded at a time, besides the memory that they are decoded into."""

MAX_DEFLATE_RATIO = 1032
"""The most bytes that a deflated byte decodes to: two bits stand for at most 258 bytes (RFC 1951,
section 3.2.5)."""

METHODS = {"deflate": MAX_DEFLATE_RATIO, "bzip2": 1 << 21, "lzma": 1 << 13}
"""How a member may be compressed → more than a stored byte decodes to. A block of bzip2 holds up to
46.6 MB and takes more than 30 bytes; 273 bytes are the longest match of lzma, of 0.3 bits."""

BZIP2_BLOCK = 900_000
"""Bytes of the largest block of bzip2, all of which is decoded to know its first byte."""

_MAX_DICTIONARY = 1 << 28
"""Farthest that an lzma stream may refer back, in bytes: 7-Zip chooses no more by itself."""

NPY_MAGIC = b"\x93NUMPY"

MAX_NPY_HEAD = (1 << 16) + 12
"""Maximum size of the magic, the version and the header of an array, in bytes."""

STORED_HEAD = {"deflate": MAX_NPY_HEAD, "bzip2": 1 << 20, "lzma": MAX_NPY_HEAD}
"""How a member is compressed → stored bytes that are enough to decode the header of an array."""


def npy_head_size(head: bytes) -> int:
    """The size of what precedes the values of an array in numpy's format (numpy's `lib.format`).

    6 bytes of magic, 2 of the version, 2 or (since version 2) 4 of the length of the header, and
    the header.

    Args:
        head: The first 12 bytes, or more.
    """
    width = 2 if head[6:7] < b"\x02" else 4
    return 8 + width + int.from_bytes(head[8 : 8 + width], "little")


class MemberStream:
    """The bytes of a compressed member, decoded as they are asked for.

    Args:
        data: The stored bytes.
        method: One of `METHODS`.
        nbytes: Most bytes that are asked for.

    Attributes:
        has_end: Whether the bytes say where they end. Those of lzma may not, and decode to anything
            behind it.

    Raises:
        Corrupted: The header of an lzma stream is not valid.
        Unsupported: Its dictionary is too large, or Python was built without this decoder.
    """

    def __init__(self, data: memoryview, method: str, nbytes: int):
        self._data, self._at, self._pending = data, 0, b""
        self.has_end = method != "lzma"
        self._what, self._errors = "deflated bytes", (zlib.error,)
        if method == "deflate":
            self._decoder: Any = zlib.decompressobj(-zlib.MAX_WBITS)
            return
        self._what = f"{method} bytes"
        try:  # not at the top: a Python may lack them
            if method == "bzip2":
                import bz2

                self._decoder, self._errors = bz2.BZ2Decompressor(), (OSError,)
            else:
                import lzma

                self._errors = (lzma.LZMAError,)
                filters = [{"id": lzma.FILTER_LZMA1, **self._read_options(nbytes)}]
                self._decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)
        except ImportError:
            raise Unsupported(
                f"templax reads `{method}` only if Python was built with it"
            ) from None
        except self._errors as error:
            raise self._describe(error) from error

    def _read_options(self, nbytes: int) -> dict[str, int]:
        """Reads what precedes an lzma stream: two bytes of a version, two of a size, and options.

        Memory is allocated for no more than `nbytes`, whatever the dictionary that it declares.
        """
        head = bytes(self._data[:9])
        self._at = len(head)
        if len(head) < 9 or head[2:4] != b"\x05\0" or head[4] >= 9 * 5 * 5:
            raise Corrupted("Expected lzma bytes, got bytes that do not decode (wrong options)")
        dictionary = int.from_bytes(head[5:], "little")
        if dictionary > _MAX_DICTIONARY:
            raise Unsupported(
                f"templax reads lzma with a dictionary of at most {_MAX_DICTIONARY} bytes, got one"
                f" of {dictionary}"
            )
        rest, lc = divmod(head[4], 9)
        pb, lp = divmod(rest, 5)
        return {"dict_size": max(4096, min(dictionary, nbytes)), "lc": lc, "lp": lp, "pb": pb}

    def _describe(self, error: Exception) -> Corrupted:
        return Corrupted(f"Expected {self._what}, got bytes that do not decode ({error})")

    def read(self, n: int) -> bytes:
        """The next bytes: at most `n`, and none only at the end.

        Raises:
            Corrupted: The bytes do not decode, or end too early.
        """
        decoder = self._decoder
        while not decoder.eof:
            is_hungry = not self._pending and getattr(decoder, "needs_input", True)
            if is_hungry and self._at < len(self._data):
                self._pending = bytes(self._data[self._at : self._at + _PIECE])
                self._at += len(self._pending)
            ended = is_hungry and not self._pending
            try:
                found = decoder.decompress(self._pending, n)
            except self._errors as error:
                raise self._describe(error) from error
            self._pending = getattr(decoder, "unconsumed_tail", b"")  # the others keep their own
            if found:
                return found
            if ended and not decoder.eof:
                if not self.has_end:
                    break
                raise Corrupted(f"Expected {self._what}, got too few of them")
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
        if self.has_end and self.read(1):
            raise Corrupted(f"Expected {len(out)} decoded bytes, got more")


def read_npy_head(stream: MemberStream) -> bytes:
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


def decode_npy_into(view: memoryview, out: memoryview, method: str) -> memoryview:
    """Decodes a compressed array in numpy's format into `out`, without its header; returns `out`.

    Raises:
        Corrupted: The bytes do not decode, or have another size.
        Unsupported: See `MemberStream`.
    """
    stream = MemberStream(view, method, MAX_NPY_HEAD + len(out))
    read_npy_head(stream)
    stream.fill(out)
    return out
