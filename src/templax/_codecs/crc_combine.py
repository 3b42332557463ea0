"""Computes the CRC of a message from those of its pieces, in any order and from any process.

The functions are about CRC-32C, except `join_crc32`.

A CRC is linear over GF(2): the CRC of a message is the sum (XOR) of the CRCs of its pieces, each
shifted by the number of bytes that follow the piece. A shift by n bytes is a multiplication by
x^(8n) modulo the polynomial (Mark Adler, `crc32_combine` in zlib). What the initial and final XOR
of CRC-32C add to this is the CRC of as many zero bytes; see `crc_of_zeros`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import numpy as np

_POLYNOMIAL = 0x82F63B78  # Castagnoli, bits reflected

_ZIP_POLYNOMIAL = 0xEDB88320  # that of CRC-32, bits reflected

_ONE = 1 << 31  # the polynomial 1: the highest bit is the coefficient of x^0


def _multiply(a: int, b: int, polynomial: int = _POLYNOMIAL) -> int:
    """The product of two polynomials over GF(2), modulo the CRC polynomial."""
    product, bit = 0, _ONE
    while True:
        if a & bit:
            product ^= b
            if not a & (bit - 1):
                return product
        bit >>= 1
        b = b >> 1 ^ polynomial if b & 1 else b >> 1
        if not bit:
            return product


@functools.cache
def _byte_shifts(polynomial: int) -> tuple[int, ...]:
    """x^8, x^16, x^32, ...: the factors that shift by 1, 2, 4, ... bytes."""
    powers = [1 << 23]
    for _ in range(63):
        powers.append(_multiply(powers[-1], powers[-1], polynomial))
    return tuple(powers)


@functools.lru_cache(maxsize=1 << 16)
def _shift_factor(nbytes: int, polynomial: int = _POLYNOMIAL) -> int:
    """x^(8 nbytes), the factor that shifts a CRC by `nbytes`."""
    power, i = _ONE, 0
    while nbytes:
        if nbytes & 1:
            power = _multiply(_byte_shifts(polynomial)[i], power, polynomial)
        nbytes >>= 1
        i += 1
    return power


@functools.lru_cache(maxsize=64)
def _shift_tables(nbytes: int) -> tuple[tuple[int, ...], ...]:
    """Lookup tables that shift a CRC by `nbytes`: one per byte of the CRC, indexed by its value."""
    power = _shift_factor(nbytes)
    tables: list[tuple[int, ...]] = []
    for byte in range(4):
        row = np.zeros(256, np.uint32)
        for bit in range(8):
            row[1 << bit : 2 << bit] = row[: 1 << bit] ^ np.uint32(
                _multiply(power, 1 << (8 * byte + bit))
            )
        tables.append(tuple(row.tolist()))
    return tuple(tables)


@functools.lru_cache(maxsize=1 << 12)
def crc_of_zeros(nbytes: int) -> int:
    """The CRC-32C of `nbytes` zero bytes.

    >>> from templax._codecs.crc32c import crc32c
    >>> crc_of_zeros(100) == crc32c(bytes(100))
    True
    """
    return _multiply(_shift_factor(nbytes), 0xFFFFFFFF) ^ 0xFFFFFFFF


def piece_contribution(crc: int, nbytes: int, after: int) -> int:
    """What one piece contributes to the CRC of a message.

    The CRC of the message is the XOR of the contributions of all pieces and `crc_of_zeros` of the
    length of the message. Pieces of zero bytes contribute nothing and can be left out.

    Args:
        crc: CRC-32C of the piece.
        nbytes: Length of the piece.
        after: Number of bytes of the message after the piece.

    >>> from templax._codecs.crc32c import crc32c
    >>> first = piece_contribution(crc32c(b"ab"), 2, 3)
    >>> second = piece_contribution(crc32c(b"cde"), 3, 0)
    >>> first ^ second ^ crc_of_zeros(5) == crc32c(b"abcde")
    True
    """
    linear = crc ^ crc_of_zeros(nbytes)
    return _multiply(_shift_factor(after), linear) if after else linear


def combine_crcs(crcs: Sequence[int], block: int, nbytes: int) -> int:
    """The CRC-32C of a message, from those of its consecutive blocks.

    Args:
        crcs: CRC-32C of each block, in order.
        block: Length of each block except the last.
        nbytes: Length of the message.

    >>> from templax._codecs.crc32c import crc32c
    >>> combine_crcs([crc32c(b"abc"), crc32c(b"de")], 3, 5) == crc32c(b"abcde")
    True
    """
    if len(crcs) == 1:
        return crcs[0]
    if not crcs:
        return 0
    last = nbytes - block * (len(crcs) - 1)
    total = crcs[0]
    a, b, c, d = _shift_tables(block)
    for crc in crcs[1:-1]:
        total = a[total & 255] ^ b[total >> 8 & 255] ^ c[total >> 16 & 255] ^ d[total >> 24] ^ crc
    return _multiply(_shift_factor(last), total) ^ crcs[-1]


def strided_contribution(crcs: Iterable[int], nbytes: int, stride: int) -> int:
    """What pieces at regular distances contribute to a message that ends with the last of them.

    Args:
        crcs: CRC-32C of each piece, in order.
        nbytes: Length of each piece.
        stride: Distance from the start of one piece to the start of the next, in bytes.
    """
    a, b, c, d = _shift_tables(stride)
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
    """Adapts a contribution to pieces whose message continues for `after` more bytes."""
    return _multiply(_shift_factor(after), total) if after else total


def join_crc32(crc: int, pieces: Iterable[tuple[int, int]]) -> int:
    """The CRC-32 of a message, as zip archives and `zlib.crc32` compute it.

    Args:
        crc: CRC-32 of the beginning of the message.
        pieces: The pieces that follow, in order: the CRC-32 and the length of each.

    >>> import zlib
    >>> pieces = [(zlib.crc32(b"cde"), 3), (zlib.crc32(b"f"), 1)]
    >>> join_crc32(zlib.crc32(b"ab"), pieces) == zlib.crc32(b"abcdef")
    True
    """
    for piece, nbytes in pieces:
        crc = _multiply(_shift_factor(nbytes, _ZIP_POLYNOMIAL), crc, _ZIP_POLYNOMIAL) ^ piece
    return crc
