"""Decodes a chunk without keeping its values, to see whether a restore could."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from .._catalog.entry import Chunk
from .._codecs.crc32c import compare_crc32c, crc32c
from .._codecs.decode import CHECKSUMS, SWAPS, decode
from .._codecs.gzip import WRAPPERS, iter_gunzipped
from .._codecs.zstd import Inflater, Pieces
from .._core.boxes import size_of
from .._core.memory import Scratch
from .._plan.parts import BLOCK_BYTES, CHECKED_BYTES


class StoredBytes(Protocol):
    """The stored bytes of a chunk as a stream."""

    @property
    def left(self) -> int:
        """Bytes that have not been read."""
        ...

    def read(self, n: int, /) -> memoryview:
        """The next `n` bytes, fewer at the end. Valid until the next call."""
        ...


def decode_chunk(chunk: Chunk, itemsize: int, stored: StoredBytes, scratch: Scratch) -> None:
    """Decodes a chunk, and raises what restoring it would raise.

    Args:
        chunk: The chunk.
        itemsize: Bytes of an element.
        stored: Its stored bytes.
        scratch: Memory for the decoded bytes.
    """
    nbytes = size_of(chunk.box) * itemsize
    codecs = tuple(name for name in chunk.codecs if name not in SWAPS)
    if codecs == ("crc32c",) and stored.left > 4:
        crc = 0
        while (left := stored.left) > 4:
            crc = crc32c(stored.read(min(left - 4, CHECKED_BYTES)), crc)
        compare_crc32c(int.from_bytes(stored.read(4), "little"), crc)
    elif codecs == ("zstd",):
        for _ in _iter_inflated(stored, nbytes, scratch):
            pass
    else:
        data = stored.read(stored.left)
        while codecs and codecs[0] in CHECKSUMS:  # over the compressed bytes
            data, codecs = decode(codecs[:1], data, len(data) - 4), codecs[1:]
        count = len(codecs) - 1  # checksums that were compressed with the bytes
        if codecs[:1] == ("zstd",):
            _compare_sums(_iter_inflated(data, nbytes + 4 * count, scratch), nbytes, count)
        elif codecs and codecs[0] in WRAPPERS:
            pieces = iter_gunzipped(data, nbytes + 4 * count, codecs[0])
            _compare_sums(pieces, nbytes, count)
        else:
            decode(codecs, data, nbytes)


def _iter_inflated(
    stored: Pieces | memoryview, nbytes: int, scratch: Scratch
) -> Iterator[memoryview]:
    """Decodes zstd frames, a block at a time: a few bytes may decode to more than memory holds."""
    inflater = Inflater(stored)
    for first in range(0, nbytes, BLOCK_BYTES):
        block = scratch.bytes("decoded", min(BLOCK_BYTES, nbytes - first))
        inflater.fill(block)
        yield block
    inflater.finish()


def _compare_sums(pieces: Iterable[memoryview | bytes], nbytes: int, count: int) -> None:
    """Compares each crc32c that follows the decoded bytes, holding one piece of them at a time.

    Args:
        pieces: The decoded bytes, and after them the checksums.
        nbytes: Number of bytes before the checksums.
        count: Number of checksums. Each covers the bytes, and the checksums before it.
    """
    crc, left, sums = 0, nbytes, bytearray()
    for piece in pieces:
        body = piece[:left]
        crc = crc32c(body, crc)
        left -= len(body)
        sums += piece[len(body) :]
    for at in range(0, 4 * count, 4):
        compare_crc32c(int.from_bytes(sums[at : at + 4], "little"), crc)
        crc = crc32c(bytes(sums[at : at + 4]), crc)
