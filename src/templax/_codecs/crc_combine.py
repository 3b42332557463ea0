"""CRC-32C of bytes that are not there all at once: pieces in any order, from any process.

A CRC is linear over GF(2): that of a message is the sum (XOR) of those of its pieces, each shifted
by the bytes after it, which is a multiplication by x^(8n) modulo the polynomial (Mark Adler,
`crc32_combine` of zlib).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import numpy as np

_POLYNOMIAL = 0x82F63B78  # Castagnoli, bits reflected

_ONE = 1 << 31  # the polynomial 1


def _times(a: int, b: int) -> int:
    """The product of two, modulo the polynomial."""
    product, bit = 0, _ONE
    while True:
        if a & bit:
            product ^= b
            if not a & (bit - 1):
                return product
        bit >>= 1
        b = b >> 1 ^ _POLYNOMIAL if b & 1 else b >> 1
        if not bit:
            return product


@functools.cache
def _squares() -> tuple[int, ...]:
    """x^8, x^16, x^32, ...: the shifts by 1, 2, 4, ... bytes."""
    powers = [1 << 23]
    for _ in range(63):
        powers.append(_times(powers[-1], powers[-1]))
    return tuple(powers)


@functools.lru_cache(maxsize=1 << 16)
def _power(nbytes: int) -> int:
    """x^(8 nbytes)."""
    power, i = _ONE, 0
    while nbytes:
        if nbytes & 1:
            power = _times(_squares()[i], power)
        nbytes >>= 1
        i += 1
    return power


@functools.lru_cache(maxsize=64)
def _table(nbytes: int) -> tuple[tuple[int, ...], ...]:
    """For each byte of a CRC and each of its values, what a shift by `nbytes` makes of it."""
    power = _power(nbytes)
    tables: list[tuple[int, ...]] = []
    for byte in range(4):
        row = np.zeros(256, np.uint32)
        for bit in range(8):
            row[1 << bit : 2 << bit] = row[: 1 << bit] ^ np.uint32(
                _times(power, 1 << (8 * byte + bit))
            )
        tables.append(tuple(row.tolist()))
    return tuple(tables)


@functools.lru_cache(maxsize=1 << 12)
def crc_of_zeros(nbytes: int) -> int:
    """The CRC-32C of so many zero bytes.

    >>> from templax._codecs.crc32c import crc32c
    >>> crc_of_zeros(100) == crc32c(bytes(100))
    True
    """
    return _times(_power(nbytes), 0xFFFFFFFF) ^ 0xFFFFFFFF


def piece_contribution(crc: int, nbytes: int, after: int) -> int:
    """What a piece adds to the CRC of a message.

    The CRC of the message is the XOR of this over all pieces, and of `crc_of_zeros` of its length.

    Args:
        crc: CRC-32C of the piece.
        nbytes: Bytes of the piece.
        after: Bytes of the message after it.

    >>> from templax._codecs.crc32c import crc32c
    >>> first = piece_contribution(crc32c(b"ab"), 2, 3)
    >>> second = piece_contribution(crc32c(b"cde"), 3, 0)
    >>> first ^ second ^ crc_of_zeros(5) == crc32c(b"abcde")
    True
    """
    alone = crc ^ crc_of_zeros(nbytes)
    return _times(_power(after), alone) if after else alone


def combine_crcs(crcs: Sequence[int], block: int, nbytes: int) -> int:
    """The CRC-32C of a message, from those of its blocks.

    Args:
        crcs: Of each block, in order.
        block: Bytes of each block except the last.
        nbytes: Bytes of the message.
    """
    if len(crcs) == 1:
        return crcs[0]
    if not crcs:
        return 0
    last = nbytes - block * (len(crcs) - 1)
    total = crcs[0]
    a, b, c, d = _table(block)
    for crc in crcs[1:-1]:
        total = a[total & 255] ^ b[total >> 8 & 255] ^ c[total >> 16 & 255] ^ d[total >> 24] ^ crc
    return _times(_power(last), total) ^ crcs[-1]


def strided_contribution(crcs: Iterable[int], nbytes: int, stride: int) -> int:
    """What equal pieces that lie `stride` bytes apart add to a message that ends with the last.

    Args:
        crcs: CRC-32C of each piece, in order.
        nbytes: Bytes of each.
        stride: From the begin of one to that of the next.
    """
    a, b, c, d = _table(stride)
    empty = crc_of_zeros(nbytes)
    total = 0
    for crc in crcs:
        total = (
            (a[total & 255] ^ b[total >> 8 & 255] ^ c[total >> 16 & 255] ^ d[total >> 24])
            ^ crc
            ^ empty
        )
    return total


def shift_contribution(total: int, after: int) -> int:
    """What pieces add that end `after` bytes before the message does."""
    return _times(_power(after), total) if after else total
