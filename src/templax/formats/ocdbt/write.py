"""Keys and where their values lie → an OCDBT database: its B+tree nodes and its manifest.

The format is specified by TensorStore, `tensorstore/kvstore/ocdbt/index.rst`; `read` reads it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..._codecs.crc32c import crc32c
from .read import MAGIC_MANIFEST, MAGIC_NODE

NODE_ENTRIES = 1 << 18

NODE_BYTES = 32 << 20
"""Keys of a node, and bytes of its keys and inline values: the format allows 2^20 and what the
manifest says."""

MAX_NODE_BYTES = 100_000_000

MAX_INLINE_BYTES = 1024

Located = tuple[int, int, int]
"""Number of a data file, offset and length of a value in it."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file that values are in, relative to the directory of the database.

    Attributes:
        path: Such as `ocdbt.process_0/d/0123…`.
        base: How many bytes of it are the base path that another process's own nodes are relative
            to: 16 of the above.
    """

    path: str
    base: int = 0


@dataclass(frozen=True, slots=True)
class _Node:
    first: bytes
    offset: int
    length: int
    keys: int
    tree_bytes: int
    value_bytes: int


def encode_database(
    values: Sequence[tuple[bytes, bytes | Located]], files: Sequence[DataFile], node_offset: int
) -> tuple[bytes, bytes]:
    """A database of one version.

    Args:
        values: Key → the value itself, or where it lies; in the order of keys, none twice.
        files: Data files by number. The nodes go to the first one.
        node_offset: Where in it the nodes will be.

    Returns:
        The nodes, and the content of `manifest.ocdbt`.
    """
    table = _file_table(files)
    pieces: list[bytes] = []
    offset = node_offset
    level: list[_Node] = []
    for group in _groups(values):
        body, value_bytes = _leaf(table, group)
        pieces.append(body)
        level.append(_Node(group[0][0], offset, len(body), len(group), len(body), value_bytes))
        offset += len(body)
    height = 0
    while len(level) > 1:  # NODE_ENTRIES children are more than any checkpoint has
        height += 1
        body = _interior(table, height, level)
        level = [
            _Node(
                level[0].first,
                offset,
                len(body),
                sum(node.keys for node in level),
                sum(node.tree_bytes for node in level) + len(body),
                sum(node.value_bytes for node in level),
            )
        ]
        pieces.append(body)
        offset += len(body)
    return b"".join(pieces), _manifest(table, height, level[0] if level else None)


def _groups(
    values: Sequence[tuple[bytes, bytes | Located]],
) -> Iterable[Sequence[tuple[bytes, bytes | Located]]]:
    start = nbytes = 0
    for i, (key, value) in enumerate(values):
        here = len(key) + (len(value) if isinstance(value, bytes) else 0)
        if i - start == NODE_ENTRIES or (i > start and nbytes + here > NODE_BYTES):
            yield values[start:i]
            start, nbytes = i, 0
        nbytes += here
    if start < len(values):
        yield values[start:]


def _leaf(table: bytes, values: Sequence[tuple[bytes, bytes | Located]]) -> tuple[bytes, int]:
    outside = [value for _, value in values if not isinstance(value, bytes)]
    lengths = [len(value) if isinstance(value, bytes) else value[2] for _, value in values]
    body = [
        b"\0",
        table,
        _keys([key for key, _ in values]),
        _numbers(lengths),
        bytes([not isinstance(value, bytes) for _, value in values]),
        _numbers([file for file, _, _ in outside]),
        _numbers([offset for _, offset, _ in outside]),
        *[value for _, value in values if isinstance(value, bytes)],
    ]
    return _envelope(MAGIC_NODE, b"".join(body)), sum(length for _, _, length in outside)


def _interior(table: bytes, height: int, children: Sequence[_Node]) -> bytes:
    body = [
        bytes([height]),
        table,
        _keys([child.first for child in children], interior=True),
        _numbers([0] * len(children)),  # all nodes are in the first file
        _numbers([child.offset for child in children]),
        _numbers([child.length for child in children]),
        _numbers([child.keys for child in children]),
        _numbers([child.tree_bytes for child in children]),
        _numbers([child.value_bytes for child in children]),
    ]
    return _envelope(MAGIC_NODE, b"".join(body))


def _manifest(table: bytes, height: int, root: _Node | None) -> bytes:
    absent = 2**64 - 1
    if root is None:  # an empty tree
        root = _Node(b"", absent, absent, 0, 0, 0)
    body = [
        secrets.token_bytes(16),
        _numbers([0, MAX_INLINE_BYTES, MAX_NODE_BYTES]),
        bytes([4]),  # version_tree_arity_log2
        _numbers([0]),  # nodes are not compressed
        table,
        _numbers([1, 1]),  # one version, generation 1
        bytes([height]),
        _numbers([0, root.offset, root.length, root.keys, root.tree_bytes, root.value_bytes]),
        time.time_ns().to_bytes(8, "little"),
        _numbers([0]),  # no version tree nodes
    ]
    return _envelope(MAGIC_MANIFEST, b"".join(body))


def _envelope(magic: int, body: bytes) -> bytes:
    head = magic.to_bytes(4, "big") + (len(body) + 18).to_bytes(8, "little") + b"\0\0"
    return b"".join([head, body, crc32c(body, crc32c(head)).to_bytes(4, "little")])


def _file_table(files: Sequence[DataFile]) -> bytes:
    shared, suffixes = _front_coded([file.path.encode() for file in files])
    columns = [*shared[1:], *map(len, suffixes), *(file.base for file in files)]
    return _numbers([len(files)]) + _numbers(columns) + b"".join(suffixes)


def _keys(keys: Sequence[bytes], interior: bool = False) -> bytes:
    shared, suffixes = _front_coded(keys)
    columns = [len(keys), *shared[1:], *map(len, suffixes)]
    if interior:
        columns += [0] * len(keys)  # children hold whole keys: no common prefix is left out
    return _numbers(columns) + b"".join(suffixes)


def _front_coded(names: Sequence[bytes]) -> tuple[list[int], list[bytes]]:
    """Of each name, how many bytes it shares with the one before, and the others."""
    shared: list[int] = []
    suffixes: list[bytes] = []
    last = b""
    for name in names:
        n = min(len(last), len(name))
        differ = int.from_bytes(last[:n], "big") ^ int.from_bytes(name[:n], "big")
        n -= (differ.bit_length() + 7) // 8
        shared.append(n)
        suffixes.append(name[n:])
        last = name
    return shared, suffixes


def _numbers(values: Sequence[int]) -> bytes:
    """Unsigned LEB128 numbers, one after the other."""
    column = np.array(values, np.uint64)
    lengths = np.ones(len(column), np.int64)
    rest = column >> np.uint64(7)
    while rest.any():
        lengths += rest > 0
        rest >>= np.uint64(7)
    out = np.empty(int(lengths.sum()), np.uint8)
    starts = np.cumsum(lengths) - lengths
    for k in range(int(lengths.max(initial=0))):
        has = lengths > k
        digit = (column[has] >> np.uint64(7 * k)).astype(np.uint8) & 0x7F
        out[starts[has] + k] = digit | ((lengths[has] > k + 1) * np.uint8(0x80))
    return out.tobytes()
