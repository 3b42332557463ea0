"""Writes an OCDBT database, its B+tree nodes and manifest, from keys and the places of values.

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
"""Most bytes of keys and inline values in a node, as `NODE_ENTRIES` is the most keys. The format
allows 2^20 keys, and as many bytes as the manifest states."""

MAX_NODE_BYTES = 100_000_000

MAX_INLINE_BYTES = 1024

COMPARED_NAMES = 256
"""How many names are compared at a time, as rows of equal length: they may have 64 KiB each."""

Located = tuple[int, int, int]
"""Number of a data file, offset and length of a value in it."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file that stores values.

    Attributes:
        path: Relative to the directory of the database, such as `ocdbt.process_0/d/0123…`.
        base: Length of the part of `path` that references in this file's own nodes are relative
            to: 16 in the example.
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
    """A database with one version.

    Args:
        values: Pairs of a key and its value or the value's location, sorted by key, without
            duplicates.
        files: Data files by number. The nodes are to be stored in the first one.
        node_offset: Position of the nodes in the first file.

    Returns:
        The bytes of the nodes, and the content of `manifest.ocdbt`.
    """
    table = _encode_file_table(files)
    pieces: list[bytes] = []
    offset = node_offset
    level: list[_Node] = []
    for group in _split_into_nodes(values):
        body, value_bytes = _encode_leaf(table, group)
        pieces.append(body)
        level.append(_Node(group[0][0], offset, len(body), len(group), len(body), value_bytes))
        offset += len(body)
    height = 0
    while len(level) > 1:  # one level of NODE_ENTRIES children exceeds any checkpoint
        height += 1
        body = _encode_interior(table, height, level)
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
    return b"".join(pieces), _encode_manifest(table, height, level[0] if level else None)


def _split_into_nodes(
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


def _encode_leaf(
    table: bytes, values: Sequence[tuple[bytes, bytes | Located]]
) -> tuple[bytes, int]:
    outside = [value for _, value in values if not isinstance(value, bytes)]
    lengths = [len(value) if isinstance(value, bytes) else value[2] for _, value in values]
    body = [
        b"\0",
        table,
        _encode_keys([key for key, _ in values]),
        _encode_numbers(lengths),
        bytes([not isinstance(value, bytes) for _, value in values]),
        _encode_numbers([file for file, _, _ in outside]),
        _encode_numbers([offset for _, offset, _ in outside]),
        *[value for _, value in values if isinstance(value, bytes)],
    ]
    return _wrap_envelope(MAGIC_NODE, b"".join(body)), sum(length for _, _, length in outside)


def _encode_interior(table: bytes, height: int, children: Sequence[_Node]) -> bytes:
    body = [
        bytes([height]),
        table,
        _encode_keys([child.first for child in children], interior=True),
        _encode_numbers([0] * len(children)),  # all nodes are in the first file
        _encode_numbers([child.offset for child in children]),
        _encode_numbers([child.length for child in children]),
        _encode_numbers([child.keys for child in children]),
        _encode_numbers([child.tree_bytes for child in children]),
        _encode_numbers([child.value_bytes for child in children]),
    ]
    return _wrap_envelope(MAGIC_NODE, b"".join(body))


def _encode_manifest(table: bytes, height: int, root: _Node | None) -> bytes:
    absent = 2**64 - 1
    if root is None:  # an empty tree
        root = _Node(b"", absent, absent, 0, 0, 0)
    body = [
        secrets.token_bytes(16),
        _encode_numbers([0, MAX_INLINE_BYTES, MAX_NODE_BYTES]),
        bytes([4]),  # version_tree_arity_log2
        _encode_numbers([0]),  # nodes are not compressed
        table,
        _encode_numbers([1, 1]),  # one version, generation 1
        bytes([height]),
        _encode_numbers(
            [0, root.offset, root.length, root.keys, root.tree_bytes, root.value_bytes]
        ),
        time.time_ns().to_bytes(8, "little"),
        _encode_numbers([0]),  # no version tree nodes
    ]
    return _wrap_envelope(MAGIC_MANIFEST, b"".join(body))


def _wrap_envelope(magic: int, body: bytes) -> bytes:
    head = magic.to_bytes(4, "big") + (len(body) + 18).to_bytes(8, "little") + b"\0\0"
    return b"".join([head, body, crc32c(body, crc32c(head)).to_bytes(4, "little")])


def _encode_file_table(files: Sequence[DataFile]) -> bytes:
    shared, suffixes = _front_code([file.path.encode() for file in files])
    columns = [*shared[1:], *map(len, suffixes), *(file.base for file in files)]
    return _encode_numbers([len(files)]) + _encode_numbers(columns) + b"".join(suffixes)


def _encode_keys(keys: Sequence[bytes], interior: bool = False) -> bytes:
    shared, suffixes = _front_code(keys)
    columns = [len(keys), *shared[1:], *map(len, suffixes)]
    if interior:
        columns += [0] * len(keys)  # children store whole keys: no common prefix is omitted
    return _encode_numbers(columns) + b"".join(suffixes)


def _front_code(names: Sequence[bytes]) -> tuple[list[int], list[bytes]]:
    """For each name, how many bytes it shares with the previous one, and the remaining bytes."""
    shared: list[int] = []
    for i in range(0, len(names), COMPARED_NAMES):
        block = [names[i - 1] if i else b"", *names[i : i + COMPARED_NAMES]]
        lengths = np.array([len(name) for name in block])
        width = max(1, int(lengths.max()))
        text = np.array(block, f"S{width}").view(np.uint8).reshape(-1, width)
        differ = text[1:] != text[:-1]
        same = np.where(differ.any(axis=1), differ.argmax(axis=1), width)
        shared += np.minimum(same, np.minimum(lengths[1:], lengths[:-1])).tolist()
    return shared, [name[n:] for name, n in zip(names, shared, strict=True)]


def _encode_numbers(values: Sequence[int]) -> bytes:
    """Encodes numbers as unsigned LEB128, one after another."""
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
