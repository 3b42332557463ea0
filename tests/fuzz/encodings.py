"""Encodes what targets describe, with lengths and checksums that fit whatever was described."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from typing import Any

from templax._codecs.crc32c import crc32c
from templax.formats.ocdbt.read import MAGIC_MANIFEST, MAGIC_NODE

MANIFEST, NODE = MAGIC_MANIFEST, MAGIC_NODE

ABSENT = (1 << 64) - 1


def seal(magic: int, body: bytes, compression: int = 0) -> bytes:
    """An OCDBT manifest or node with this body: its length and checksum are right."""
    if compression == 1:
        import zstandard

        body = zstandard.ZstdCompressor(level=1).compress(body)
    head = magic.to_bytes(4, "big") + (len(body) + 18).to_bytes(8, "little")
    data = head + bytes([0, compression]) + body
    return data + crc32c(data).to_bytes(4, "little")


def seal_index(body: bytes, version: int = 1) -> bytes:
    """A `templax.index` with this body."""
    data = b"\x8etemplax" + version.to_bytes(8, "little") + len(body).to_bytes(8, "little") + body
    return data + crc32c(data).to_bytes(4, "little")


def seal_gzip(body: bytes) -> bytes:
    """A gzip member with this deflated body: the checksum and length are those of its content."""
    try:
        content = zlib.decompressobj(-15).decompress(body, 1 << 22)
    except zlib.error:
        content = b""
    tail = zlib.crc32(content).to_bytes(4, "little") + len(content).to_bytes(4, "little")
    return gzip.compress(b"", mtime=0)[:10] + body + tail


def varint(n: int) -> bytes:
    """An unsigned LEB128 number, even one of more than 64 bits."""
    n = abs(int(n))
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def varints(numbers: Sequence[int]) -> bytes:
    return b"".join(map(varint, numbers))


def number(value: Any, otherwise: int = 0) -> int:
    """A value of a description as a number of at most 70 bits."""
    if isinstance(value, bool) or not isinstance(value, int):
        return otherwise
    return abs(value) & ((1 << 70) - 1)


def text(value: Any) -> bytes:
    """A value of a description as bytes. `\\udcff` stands for the byte 0xff."""
    if not isinstance(value, str):
        value = str(value)
    return value[: 1 << 16].encode("utf-8", "surrogatepass")


def names(entries: Sequence[Any], tails: bool) -> bytes:
    """A front-coded column of names: `[shared, suffix]`, or `[shared, suffix, tail]`."""
    rows = [row if isinstance(row, list) else [row] for row in entries]
    shared = [number(row[0]) if row else 0 for row in rows]
    suffixes = [text(row[1]) if len(row) > 1 else b"" for row in rows]
    columns = varints(shared[1:]) + varints([len(s) for s in suffixes])
    if tails:
        columns += varints([number(row[2]) if len(row) > 2 else 0 for row in rows])
    return columns + b"".join(suffixes)


def file_table(files: Any) -> bytes:
    files = files if isinstance(files, list) else []
    return varint(len(files)) + (names(files, tails=True) if files else b"")


def references(rows: Sequence[Any]) -> bytes:
    """Three columns of `[file, offset, length]`; a null stands for the absent one."""
    columns: tuple[list[int], ...] = ([], [], [])
    for row in rows:
        row = row if isinstance(row, list) else []
        for i, column in enumerate(columns):
            value = row[i] if len(row) > i else 0
            column.append(ABSENT if value is None else number(value))
    return b"".join(map(varints, columns))


def leaf_node(node: dict[str, Any]) -> bytes:
    """The body of a leaf node: `files`, `keys`, and a row of `values` for each key.

    A row is a text that is stored in the node, or `[length, file, offset]`.
    """
    keys, values = _lists(node, "keys", "values")
    lengths, kinds, outside, inline = list[int](), bytearray(), list[Any](), b""
    for row in values:
        if isinstance(row, list):
            kinds.append(1)
            lengths.append(number(row[0]) if row else 0)
            outside.append(row[1:])
        else:
            kinds.append(0)
            lengths.append(len(text(row)))
            inline += text(row)
    columns = [[number(row[i]) if len(row) > i else 0 for row in outside] for i in range(2)]
    return b"".join(
        (
            bytes([number(node.get("height")) & 0xFF]),
            file_table(node.get("files")),
            varint(len(keys)),
            names(keys, tails=False),
            varints(lengths),
            bytes(kinds),
            *map(varints, columns),
            inline,
        )
    )


def interior_node(node: dict[str, Any]) -> bytes:
    """The body of an interior node: `files`, `keys` of `[shared, suffix, common]`, `children`."""
    keys, children = _lists(node, "keys", "children")
    n = len(keys)
    return b"".join(
        (
            bytes([number(node.get("height")) & 0xFF]),
            file_table(node.get("files")),
            varint(n),
            names(keys, tails=True),
            references(children),
            varints([1] * 3 * n),
        )
    )


def _lists(node: dict[str, Any], *fields: str) -> tuple[list[Any], ...]:
    found = (node.get(name) for name in fields)
    return tuple(value[:4096] if isinstance(value, list) else [] for value in found)


def manifest(
    files: Any, versions: Sequence[Any], height: int, *, kind: int = 0, node_bytes: int = 8 << 20
) -> bytes:
    """The body of a manifest, with a reference to the root of each version."""
    n = len(versions)
    return b"".join(
        (
            bytes(16),
            varint(kind),
            varint(100),
            varint(node_bytes),
            b"\4",
            varint(1) + bytes(4),
            file_table(files),
            varint(n),
            varints(range(1, n + 1)),
            bytes([height & 0xFF]) * n,
            references(versions),
            varints([1] * 4 * n),
            varint(0),
        )
    )
