"""Reads the central directory of a zip archive: what it says of its members, which is not checked.

Python's `zipfile` reads the same. It takes several times as long for an archive of many members,
and its import takes 10 ms.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from ..errors import Corrupted
from ..storage.source import Source, open_ranges

_MAX_DIRECTORY = 1 << 28
"""Most bytes of a directory that are read."""

_END = struct.Struct("<4s8xLLH")
"""The end of an archive: length and place of the directory, and the length of the comment."""

_END_MAGIC, _MAX_COMMENT = b"PK\x05\x06", 1 << 16

_LOCATOR, _LOCATOR_MAGIC = struct.Struct("<4sL8xL"), b"PK\x06\x07"
"""What follows the end of a large archive: the numbers of its disks."""

_END64, _END64_MAGIC = struct.Struct("<4s36xQQ"), b"PK\x06\x06"

_ENTRY, _ENTRY_MAGIC = struct.Struct("<4s2xBx2H4x3L3H8xL"), b"PK\x01\x02"

_MAX_VERSION = 63
"""The version of the format with the newest methods that are known."""

_UTF8 = 0x800

_IN_EXTRA = 0xFFFFFFFF
"""In place of a number that is in the extra fields, as it has 64 bits."""


class Listed(msgspec.Struct, frozen=True, gc=False):
    """What a directory says of a member.

    Attributes:
        name: Its name.
        flags, method: As the format defines them.
        crc32: The CRC-32 of the decoded bytes.
        stored_bytes, nbytes: Size in the archive, and decoded.
        at: Where its header begins.
        extra: The extra fields.
    """

    name: str
    flags: int
    method: int
    crc32: int
    stored_bytes: int
    nbytes: int
    at: int
    extra: bytes


def read_directory(
    source: Source, size: int, most: int = _MAX_DIRECTORY
) -> tuple[list[Listed], int]:
    """What the directory of an archive lists, and where it begins.

    Args:
        source: The archive is its root.
        size: Its size in bytes.
        most: Most bytes of the directory that are read.

    Raises:
        Corrupted: There is no directory, or it is unreadable or too large.
    """
    try:
        end, length, place, is_large = _find_end(source, size)
        start = end - length
        if is_large:
            start -= _END64.size + _LOCATOR.size
        if start < 0:
            raise ValueError("bad offset for central directory")
        if length > most:
            raise ValueError(f"it has more than {most} bytes")
        data = bytes(source.read("", start, start + length))
        return list(_iter_entries(data, start - place)), start
    except (ValueError, struct.error) as error:
        raise Corrupted(f"The directory of the zip archive is unreadable: {error}") from error


def _find_end(source: Source, size: int) -> tuple[int, int, int, bool]:
    """Where the end of the archive is, length and place of the directory, whether it is large."""
    read = open_ranges(source, "", size)
    end = size - _END.size
    record = bytes(read(end, size)) if end >= 0 else b""
    if record[:4] != _END_MAGIC or record[-2:] != b"\0\0":  # a comment follows
        first = max(end - _MAX_COMMENT, 0)
        tail = bytes(source.read("", first, size))
        found = tail.rfind(_END_MAGIC)
        end, record = first + found, tail[found : found + _END.size]
        if found < 0 or len(record) < _END.size:
            raise ValueError("File is not a zip file")
    _, length, place, _ = _END.unpack(record)
    before = end - _LOCATOR.size
    magic, disk, disks = _LOCATOR.unpack(read(before, end)) if before >= 0 else (b"", 0, 0)
    if magic != _LOCATOR_MAGIC:
        return end, length, place, False
    if disk != 0 or disks > 1:
        raise ValueError("zipfiles that span multiple disks are not supported")
    if before < _END64.size:
        return end, length, place, False
    magic, length64, place64 = _END64.unpack(read(before - _END64.size, before))
    if magic != _END64_MAGIC:
        return end, length, place, False
    return end, length64, place64, True


def _iter_entries(data: bytes, shift: int) -> Iterator[Listed]:
    """Yields what a directory lists.

    Args:
        data: The directory.
        shift: How far the archive lies behind where it was written: another file may precede it.
    """
    at = 0
    while at < len(data):
        if at + _ENTRY.size > len(data):
            raise ValueError("Truncated central directory")
        (
            magic,
            version,
            flags,
            method,
            crc,
            stored,
            nbytes,
            name_size,
            extra_size,
            comment,
            place,
        ) = _ENTRY.unpack_from(data, at)
        if magic != _ENTRY_MAGIC:
            raise ValueError("Bad magic number for central directory")
        at += _ENTRY.size
        raw = data[at : at + name_size]
        name = raw.decode("utf-8" if flags & _UTF8 or raw.isascii() else "cp437")
        if "\0" in name:
            name = name.partition("\0")[0]
        if version > _MAX_VERSION:
            raise ValueError(f"zip file version {version / 10:.1f}")
        at += name_size
        extra = b""
        if extra_size:
            extra = data[at : at + extra_size]
            nbytes, stored, place = _read_large_numbers(extra, nbytes, stored, place)
        at += extra_size + comment
        if at > len(data):
            raise ValueError("Truncated central directory")
        yield Listed(name, flags, method, crc, stored, nbytes, place + shift, extra)


def _read_large_numbers(extra: bytes, *numbers: int) -> list[int]:
    """The sizes and the place of a member; those that need 64 bits are in an extra field."""
    found = list(numbers)
    at = 0
    while at + 4 <= len(extra):
        tag, length = int.from_bytes(extra[at : at + 2], "little"), extra[at + 2 : at + 4]
        start, at = at + 4, at + 4 + int.from_bytes(length, "little")
        if at > len(extra):
            raise ValueError(f"Corrupt extra field {tag:04x} (size={at - start})")
        if tag == 1:
            for i, number in enumerate(found):
                if number == _IN_EXTRA:
                    if start + 8 > at:
                        raise ValueError("Corrupt zip64 extra field")
                    found[i] = int.from_bytes(extra[start : start + 8], "little")
                    start += 8
    return found
