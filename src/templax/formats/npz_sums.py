"""The checksums that templax adds to the members of an `.npz` archive.

Each entry of the central directory has an extra field, which other programs skip: the CRC-32 of the
member as u32, the bytes per block as u64, and the crc32c of each block of the values as u32, all
little-endian. It counts only while the CRC-32 is the one that the entry declares: a program that
changes a member, and carries the field on, changes that.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import numpy as np

from .._catalog.entry import LeafEntry
from .._codecs.crc_combine import combine_crcs

_ID = 0x7874  # "tx"

_FIELD, _HEAD = struct.Struct("<2H"), struct.Struct("<IQ")

_MAX_BYTES = 0xFFFF - 36
"""Most bytes of the field: all extra fields of an entry have 64 KiB, and zip64 takes 32."""


def encode_sums(crc: int, block: int, sums: bytes) -> bytes:
    """The extra field of a member; nothing if its checksums are too many for one.

    Args:
        crc: The CRC-32 of the member.
        block: Bytes that each checksum covers; the last may cover fewer.
        sums: The crc32c of each block of the values, as little-endian u32.
    """
    size = _HEAD.size + len(sums)
    if size > _MAX_BYTES:
        return b""
    return _FIELD.pack(_ID, size) + _HEAD.pack(crc, block) + sums


def parse_sums(extra: bytes, crc: int, nbytes: int) -> tuple[int, tuple[int, ...]] | None:
    """The block size and the crc32c of each block of an array, from the extra fields of its member.

    Args:
        extra: The extra fields in the central directory.
        crc: The CRC-32 that the directory declares.
        nbytes: Size of the values.

    Returns:
        None if there are no such checksums, or they are those of other bytes.
    """
    at = 0
    while at + 4 <= len(extra):
        kind, size = _FIELD.unpack_from(extra, at)
        field = extra[at + 4 : at + 4 + size]
        at += 4 + size
        if kind != _ID or len(field) < _HEAD.size or len(field) != size:
            continue
        known, block = _HEAD.unpack_from(field)
        if known == crc and block and size - _HEAD.size == 4 * -(-nbytes // block):
            return block, tuple(np.frombuffer(field, "<u4", offset=_HEAD.size).tolist())
    return None


def combine_sums(entries: Iterable[LeafEntry]) -> dict[str, int]:
    """The crc32c of each array, from those of its blocks, which end its handle."""
    found: dict[str, int] = {}
    for entry in entries:
        block, sums = entry.handle[-2:]
        found[entry.name] = combine_crcs(sums, block, entry.nbytes) if sums else 0
    return found
