"""A container in one database: an OCDBT B+tree, its newest version.

The format is specified by TensorStore, `tensorstore/kvstore/ocdbt/index.rst`. Numbers from a file
are checked against the bytes that are there before memory or recursion follows them.
"""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..._catalog.entry import Extent
from ..._codecs.crc32c import crc32c
from ..._codecs.zstd import inflate
from ..._core.gc_pause import pause_gc
from ...errors import CheckpointError, Corrupted, NotFound, Unsupported
from ...storage.signatures import MAX_METADATA, pointer_instead, read_metadata
from ...storage.source import Source

MANIFEST = "manifest.ocdbt"

MAGIC_MANIFEST = 0x0CDB3A2A

MAGIC_NODE = 0x0CDB20DE

_ABSENT = 2**64 - 1

_MAX_NAME = 65535

_MAX_NODE_ENTRIES = 1 << 20

_MAX_ENTRIES = 1 << 22

_MAX_NODES = 1 << 14

_MAX_BYTES = 1 << 30
"""Of all decoded nodes and keys of one version."""

_NUMBERED = re.compile(r"manifest\.[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class _Reference:
    """A byte range that holds a node, and the base path that its own file table is relative to."""

    file: str
    base: bytes
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class _Limits:
    """Of a database: what its manifest says a node may decode to, within what templax allows."""

    node_bytes: int


def read_database(source: Source, prefix: str = "") -> Mapping[str, Extent]:
    """Every key of the newest version of a database.

    Args:
        source: Where the files are.
        prefix: Directory of the database: "" or ending in `/`.

    Returns:
        Key → where its value is, in the order of the keys. A value that the index holds itself is
        `inline`, and `key` names the file that holds the index node.

    Raises:
        NotFound: There is no manifest.
        Corrupted: A manifest or node is missing, cut, altered or contradicts itself, or points to a
            file outside of the database.
        Unsupported: A version or compression that templax does not read, or too many keys.
    """
    root, height, limits = _newest(source, prefix)
    entries: dict[str, Extent] = {}
    if root is None:
        return entries
    total = nodes = nbytes = 0
    # Depth is bounded by the height, a byte, which must fall by one at each level: no cycles.
    pending = [(root, height, b"")]
    while pending:
        reference, height, inherited = pending.pop()
        nodes += 1
        body = _read_node(source, prefix, reference, height, limits)
        nbytes += len(body.data)
        try:
            if height:
                children = list(_interior(body, reference.base))
                for child, common in reversed(children):
                    pending.append((child, height - 1, inherited + common))
            else:
                with pause_gc():
                    keys, extents = _leaf(body, reference, prefix)
                total += len(keys)
                nbytes += len(keys) * len(inherited)
                if nbytes > _MAX_BYTES or total > _MAX_ENTRIES:
                    raise _too_large(prefix)
                if inherited:
                    keys = [inherited + key for key in keys]
                entries.update(zip(map(bytes.decode, keys), extents, strict=True))
        except UnicodeDecodeError as error:
            raise Corrupted(
                "Expected keys in UTF-8, got other bytes", file=prefix + reference.file
            ) from error
        except CheckpointError as error:
            raise error.locate(file=prefix + reference.file) from error
        if nbytes > _MAX_BYTES or nodes + len(pending) > _MAX_NODES:
            raise _too_large(prefix)
    return entries


def _too_large(prefix: str) -> Unsupported:
    return Unsupported(
        f"templax reads indexes of up to {_MAX_ENTRIES} keys, {_MAX_NODES} nodes and {_MAX_BYTES} "
        f"bytes, this one has more",
        file=prefix + MANIFEST,
    )


class _Body:
    """A bounded cursor over decoded bytes. Every count is checked against what is left."""

    def __init__(self, data: bytes):
        self.data = data
        self._array = np.frombuffer(data, np.uint8)
        self._at = 0

    def raw(self, n: int) -> bytes:
        if not 0 <= n <= len(self.data) - self._at:
            raise Corrupted(f"Expected {n} more bytes, got {len(self.data) - self._at}")
        self._at += n
        return self.data[self._at - n : self._at]

    def byte(self) -> int:
        return self.raw(1)[0]

    def number(self) -> int:
        return int(self.numbers(1)[0])

    def numbers(self, n: int) -> NDArray[np.uint64]:
        """A column of `n` unsigned LEB128 numbers of at most 64 bits, decoded at once."""
        if not 0 <= n <= len(self.data) - self._at:
            raise Corrupted(f"Expected {n} numbers, got {len(self.data) - self._at} bytes")
        window = self._array[self._at : self._at + 10 * n]
        ends = np.flatnonzero(window < 0x80)[:n]
        if len(ends) < n:
            raise Corrupted(f"Expected {n} numbers, got {len(ends)}")
        if not n:
            return np.empty(0, np.uint64)
        starts = np.concatenate(([0], ends[:-1] + 1))
        lengths = ends - starts + 1
        longest = int(lengths.max())
        if longest > 10 or (longest == 10 and (window[ends[lengths == 10]] > 1).any()):
            raise Corrupted("Expected numbers of at most 64 bits, got a longer one")
        values = (window[starts] & 0x7F).astype(np.uint64)
        for k in range(1, longest):
            long = lengths > k
            values[long] |= (window[starts[long] + k] & 0x7F).astype(np.uint64) << np.uint64(7 * k)
        self._at += int(ends[-1]) + 1
        return values

    def names(self, n: int, tails: bool = False) -> tuple[list[bytes], list[int]]:
        """`n` names, each sharing a prefix with the one before, and one more number of each.

        The order of columns is that of keys; of paths too, as theirs has the same shape.

        Args:
            tails: Whether the third column, between the suffix lengths and the suffixes, is there.

        Returns:
            The names, and the third column (of zeros if it is not there).
        """
        if not n:
            return [], []
        shared = [0, *self.numbers(n - 1).tolist()]
        own = self.numbers(n).tolist()
        third = self.numbers(n).tolist() if tails else [0] * n
        if sum(shared) + sum(own) > MAX_METADATA:
            raise Corrupted(f"Expected at most {MAX_METADATA} bytes of names, got more")
        suffixes = self.raw(sum(own))
        names: list[bytes] = []
        last, at = b"", 0
        for prefix, suffix in zip(shared, own, strict=True):
            if prefix > len(last) or prefix + suffix > _MAX_NAME:
                raise Corrupted(
                    f"Expected a name that shares at most {len(last)} bytes, got {prefix}"
                )
            last = last[:prefix] + suffixes[at : at + suffix]
            at += suffix
            names.append(last)
        return names, third

    def finish(self) -> None:
        if self._at != len(self.data):
            raise Corrupted(f"Expected the end, got {len(self.data) - self._at} more bytes")


def _newest(source: Source, prefix: str) -> tuple[_Reference | None, int, _Limits]:
    """Root of the newest version (None: an empty tree), its height, and the limits of its nodes."""
    file = prefix + MANIFEST
    data = read_metadata(source, file)
    kind, body, limits = _manifest(data, file)
    if kind == 1:
        numbered = [
            info.key
            for info in source.children(prefix)
            if _NUMBERED.fullmatch(info.key[len(prefix) :])
        ]
        if not numbered:
            raise Corrupted(
                "Expected a file `manifest.<16 hex digits>` beside it, found none", file=file
            )
        file = max(numbered)
        kind, body, limits = _manifest(read_metadata(source, file), file)
    if kind != 0:
        raise Unsupported(f"templax reads manifests of kinds 0 and 1, got kind {kind}", file=file)
    try:
        files = _file_table(body, b"")
        n = body.number()
        body.numbers(n)  # generations
        heights = body.raw(n)
        roots = _references(body, files, n)
        if not roots:
            raise Corrupted("Expected at least one version, got none")
        return roots[-1], heights[-1], limits
    except CheckpointError as error:
        raise error.locate(file=file) from error


def _manifest(data: memoryview, file: str) -> tuple[int, _Body, _Limits]:
    try:
        body = _Body(_open_envelope(data, MAGIC_MANIFEST, "manifest", MAX_METADATA))
        body.raw(16)  # uuid
        kind = body.number()
        body.number()  # max_inline_value_bytes
        node_bytes = body.number()
        body.byte()  # version_tree_arity_log2
        if body.number() == 1:
            body.raw(4)  # zstd level
    except CheckpointError as error:
        raise error.locate(file=file) from error
    # Writers split a node by an estimate: a node may decode to somewhat more than its limit.
    return kind, body, _Limits(min(MAX_METADATA, max(1 << 24, 2 * node_bytes)))


def _open_envelope(data: memoryview, magic: int, what: str, limit: int) -> bytes:
    """The decoded body of a manifest or node."""
    if len(data) < 18:
        raise Corrupted(f"Expected an OCDBT {what}, got {len(data)} bytes")
    found = int.from_bytes(data[:4], "big")
    if found != magic:
        raise Corrupted(f"Expected an OCDBT {what} (magic `{magic:08x}`), got `{found:08x}`")
    length = int.from_bytes(data[4:12], "little")
    if length != len(data):
        raise Corrupted(f"Expected an OCDBT {what} of {length} bytes, got {len(data)}")
    want, got = int.from_bytes(data[-4:], "little"), crc32c(data[:-4])
    if want != got:
        raise Corrupted(f"Expected crc32c `{want:08x}`, got `{got:08x}`")
    # Both are varints of one byte in every version there is.
    version, compression = data[12], data[13]
    if version != 0:
        raise Unsupported(f"templax reads OCDBT version 0, got {version}")
    if compression == 0:
        return bytes(data[14:-4])
    if compression == 1:
        return inflate(data[14:-4], limit)
    raise Unsupported(f"templax reads OCDBT compression 0 and 1 (zstd), got {compression}")


def _read_node(
    source: Source, prefix: str, reference: _Reference, height: int, limits: _Limits
) -> _Body:
    file, start, stop = (
        prefix + reference.file,
        reference.offset,
        reference.offset + reference.length,
    )
    if reference.length > MAX_METADATA:
        raise Corrupted(
            f"Expected an index node of at most {MAX_METADATA} bytes, got {reference.length}",
            file=file,
            start=start,
            stop=stop,
        )
    try:
        data = source.read(file, start, stop)
    except NotFound as error:
        raise Corrupted(
            "Expected the file of an index node, found none", file=file, start=start, stop=stop
        ) from error
    except Corrupted as error:
        raise pointer_instead(source, file) or error from None
    try:
        body = _Body(_open_envelope(data, MAGIC_NODE, "index node", limits.node_bytes))
        found = body.byte()
        if found != height:
            raise Corrupted(f"Expected an index node of height {height}, got {found}")
    except CheckpointError as error:
        where = type(error)(error.what, file=file, start=start, stop=stop)
        raise pointer_instead(source, file) or where from error
    return body


def _file_table(body: _Body, base: bytes) -> list[tuple[bytes, str]]:
    """Of each data file: the base path for its own references, and its path in the database."""
    n = body.number()
    if not n:
        return []
    paths, base_lengths = body.names(n, tails=True)
    result = []
    for path, base_length in zip(paths, base_lengths, strict=True):
        if base_length > len(path):
            raise Corrupted(f"Expected a base path within {len(path)} bytes, got {base_length}")
        # An absent reference, the root of an empty tree, names a file "".
        result.append((base + path[:base_length], confine_path(base + path) if path else ""))
    return result


def confine_path(path: bytes) -> str:
    """The text of a path, if it stays below the directory that it is relative to."""
    try:
        text = path.decode()
    except UnicodeDecodeError as error:
        raise Corrupted(f"Expected a file name in UTF-8, got {path[:64]!r}") from error
    if len(path) > _MAX_NAME or "\0" in text or any(p in ("", ".", "..") for p in text.split("/")):
        raise Corrupted(f"Expected a data file inside the checkpoint, got {text[:256]!r}")
    return text


def _references(body: _Body, files: list[tuple[bytes, str]], n: int) -> list[_Reference | None]:
    ids = body.numbers(n).tolist()
    offsets = body.numbers(n).tolist()
    lengths = body.numbers(n).tolist()
    result: list[_Reference | None] = []
    for file, offset, length in zip(ids, offsets, lengths, strict=True):
        if offset == length == _ABSENT:
            result.append(None)
        else:
            base, path = _file(files, file, offset, length)
            result.append(_Reference(path, base, offset, length))
    return result


def _file(
    files: list[tuple[bytes, str]], number: int, offset: int, length: int
) -> tuple[bytes, str]:
    if number >= len(files) or not files[number][1]:
        raise Corrupted(f"Expected one of {len(files)} data files, got number {number}")
    if offset + length >= 2**63:
        raise Corrupted(f"Expected a byte range below 2**63, got {offset}-{offset + length}")
    return files[number]


def _keys(body: _Body, interior: bool) -> tuple[list[bytes], list[int]]:
    n = body.number()
    if not 0 < n <= _MAX_NODE_ENTRIES:
        raise Corrupted(f"Expected 1 to {_MAX_NODE_ENTRIES} entries, got {n}")
    keys, commons = body.names(n, tails=interior)
    if not all(map(operator.lt, keys, itertools.islice(keys, 1, None))):
        last, key = next((a, b) for a, b in itertools.pairwise(keys) if not a < b)
        raise Corrupted(f"Expected keys in order, got {key[:256]!r} after {last[:256]!r}")
    for key, common in zip(keys, commons, strict=True) if interior else ():
        if common > len(key):
            raise Corrupted(f"Expected a common prefix within {len(key)} bytes, got {common}")
    return keys, commons


def _interior(body: _Body, base: bytes) -> Iterator[tuple[_Reference, bytes]]:
    """Children of a node, each with the prefix that its keys are relative to."""
    files = _file_table(body, base)
    keys, commons = _keys(body, interior=True)
    children = _references(body, files, len(keys))
    for _ in range(3):  # num_keys, num_tree_bytes, num_indirect_value_bytes
        body.numbers(len(keys))
    body.finish()
    for child, key, common in zip(children, keys, commons, strict=True):
        if child is None:
            raise Corrupted("Expected a child node, got an absent one")
        yield child, key[:common]


def _leaf(body: _Body, reference: _Reference, prefix: str) -> tuple[list[bytes], list[Extent]]:
    """Keys of a node, relative to what it inherits, and where their values are."""
    files = _file_table(body, reference.base)
    keys, _ = _keys(body, interior=False)
    lengths = body.numbers(len(keys)).tolist()
    kinds = body.raw(len(keys))
    outside = kinds.count(1)
    if outside + kinds.count(0) != len(keys):
        raise Corrupted(f"Expected values of kinds 0 and 1, got {max(kinds)}")
    ids = iter(body.numbers(outside).tolist())
    offsets = iter(body.numbers(outside).tolist())
    node = prefix + reference.file
    paths = [prefix + path for _, path in files]
    values = body.raw(
        sum([length for length, kind in zip(lengths, kinds, strict=True) if not kind])
    )
    extents: list[Extent] = []
    at = 0
    for length, kind in zip(lengths, kinds, strict=True):
        if kind:
            number, offset = next(ids), next(offsets)
            if number >= len(files) or not files[number][1] or offset + length >= 2**63:
                _file(files, number, offset, length)  # says what is wrong
            extents.append(Extent(paths[number], offset, offset + length))
        else:
            extents.append(Extent(node, 0, length, values[at : at + length]))
            at += length
    body.finish()
    return keys, extents
