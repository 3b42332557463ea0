"""Reads an OCDBT database: every key of the newest version of its B+tree.

The format is specified by TensorStore, `tensorstore/kvstore/ocdbt/index.rst`. A number from a file
is checked against the bytes present before it sizes an allocation or a recursion.
"""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ..._catalog.entry import Extent
from ..._codecs.crc32c import crc32c
from ..._codecs.zstd import inflate
from ..._core.gc_pause import pause_gc
from ...errors import CheckpointError, Corrupted, NotFound, Unsupported
from ...storage.signatures import MAX_METADATA, diagnose_lfs_pointer, read_metadata
from ...storage.source import Source
from ..file_names import MANIFEST
from .budget import Budget
from .cursor import Cursor
from .paths import confine_path

MAGIC_MANIFEST = 0x0CDB3A2A

MAGIC_NODE = 0x0CDB20DE

_ABSENT = 2**64 - 1

_MAX_NODE_ENTRIES = 1 << 20

_MAX_MANIFEST = 1 << 22
"""Maximum decoded size of a manifest, in bytes: it lists a few of the newest versions."""

_MAX_INLINE = 1 << 20
"""Maximum size of a value in a node, in bytes: the limit of TensorStore."""

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
    """Most bytes that a node may decode to: as the manifest says, up to templax's own limit."""

    node_bytes: int


def read_database(
    source: Source, prefix: str = "", nodes: list[Extent] | None = None
) -> Mapping[str, Extent]:
    """Every key of the newest version of a database.

    Args:
        source: Source of the database's files.
        prefix: Directory of the database: "" or ending in `/`.
        nodes: The places of the nodes that are read are added to it.

    Returns:
        Key → extent of its value, in the order of the keys. If a value is stored in an index node,
        the extent is `inline` and its `key` names the node's file.

    Raises:
        NotFound: There is no manifest.
        Corrupted: A manifest or node is missing, truncated, altered or inconsistent, or refers to
            a file outside the database.
        Unsupported: A version or compression that templax does not read, or too many keys.
    """
    budget = Budget(source, prefix + MANIFEST)
    root, height, limits = _read_newest_root(source, prefix, budget)
    entries: dict[str, Extent] = {}
    if root is None:
        return entries
    # Depth is bounded by the height, a byte, which must fall by one at each level: no cycles.
    pending = [(root, height, b"")]
    while pending:
        reference, height, inherited = pending.pop()
        body = _read_node(source, prefix, reference, height, limits, budget)
        if nodes is not None:
            start, stop = reference.offset, reference.offset + reference.length
            nodes.append(Extent(prefix + reference.file, start, stop))
        try:
            if height:
                children = _read_children(body, reference.base, len(inherited))
                pending += [
                    (child, height - 1, inherited + common) for child, common in reversed(children)
                ]
            else:
                with pause_gc():
                    keys, extents = _read_leaf(body, reference, prefix, len(inherited))
                if inherited:
                    keys = [inherited + key for key in keys]
                entries.update(zip(map(bytes.decode, keys), extents, strict=True))
        except UnicodeDecodeError as error:
            raise Corrupted(
                "Expected keys in UTF-8, got other bytes", file=prefix + reference.file
            ) from error
        except CheckpointError as error:
            raise error.locate(file=prefix + reference.file) from error
    return entries


def _read_newest_root(
    source: Source, prefix: str, budget: Budget
) -> tuple[_Reference | None, int, _Limits]:
    """Root of the newest version (None if the tree is empty), its height, and its nodes' limits."""
    roots, heights, limits = _read_roots(source, prefix, budget, newest=True)
    return roots[-1], heights[-1], limits


def _read_roots(
    source: Source, prefix: str, budget: Budget, *, newest: bool
) -> tuple[list[_Reference | None], bytes, _Limits]:
    """Roots of the versions in the manifest, or of the newest; heights of all; limits of nodes."""
    file = prefix + MANIFEST
    data = read_metadata(source, file)
    kind, body, limits = _read_manifest_head(data, file, budget)
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
        kind, body, limits = _read_manifest_head(read_metadata(source, file), file, budget)
    if kind != 0:
        raise Unsupported(f"templax reads manifests of kinds 0 and 1, got kind {kind}", file=file)
    try:
        files = _read_file_table(body, b"")
        n = body.number()
        budget.add_entries(n)
        body.numbers(n)  # generations
        heights = body.raw(n)
        if not n:
            raise Corrupted("Expected at least one version, got none")
        return _read_references(body, files, n, newest=newest), heights, limits
    except CheckpointError as error:
        raise error.locate(file=file) from error


def _read_manifest_head(data: memoryview, file: str, budget: Budget) -> tuple[int, Cursor, _Limits]:
    try:
        body = Cursor(_open_envelope(data, MAGIC_MANIFEST, "manifest", _MAX_MANIFEST), budget)
        body.raw(16)  # uuid
        kind = body.number()
        body.number()  # max_inline_value_bytes
        node_bytes = body.number()
        body.byte()  # version_tree_arity_log2
        if body.number() == 1:
            body.raw(4)  # zstd level
    except CheckpointError as error:
        raise error.locate(file=file) from error
    # Writers split nodes by an estimate, so a node may decode to somewhat more than its limit.
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
    # Both are varints, of one byte in every version published so far.
    version, compression = data[12], data[13]
    if version != 0:
        raise Unsupported(f"templax reads OCDBT version 0, got {version}")
    if compression == 0:
        return bytes(data[14:-4])
    if compression == 1:
        return inflate(data[14:-4], limit)
    raise Unsupported(f"templax reads OCDBT compression 0 and 1 (zstd), got {compression}")


def _read_node(
    source: Source,
    prefix: str,
    reference: _Reference,
    height: int,
    limits: _Limits,
    budget: Budget,
) -> Cursor:
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
    budget.add_node(file, start, stop)
    try:
        data = source.read(file, start, stop)
    except NotFound as error:
        raise Corrupted(
            "Expected the file of an index node, found none", file=file, start=start, stop=stop
        ) from error
    except Corrupted as error:
        raise diagnose_lfs_pointer(source, file) or error from None
    try:
        limit = min(limits.node_bytes, budget.decodable)
        body = Cursor(_open_envelope(data, MAGIC_NODE, "index node", limit), budget)
        budget.add_decoded(len(body.data))
        found = body.byte()
        if found != height:
            raise Corrupted(f"Expected an index node of height {height}, got {found}")
    except CheckpointError as error:
        where = type(error)(error.what, file=file, start=start, stop=stop)
        raise diagnose_lfs_pointer(source, file) or where from error
    return body


def _read_file_table(body: Cursor, base: bytes) -> list[tuple[bytes, str]]:
    """For each data file: the base path of its own references, and its path in the database."""
    n = body.number()
    if not n:
        return []
    body.budget.add_entries(n)
    body.budget.add_names(n * len(base))
    paths, base_lengths = body.names(n, tails=True)
    result = []
    for path, base_length in zip(paths, base_lengths, strict=True):
        if base_length > len(path):
            raise Corrupted(f"Expected a base path within {len(path)} bytes, got {base_length}")
        # The root of an empty tree, an absent reference, names a file "".
        result.append((base + path[:base_length], confine_path(base + path) if path else ""))
    return result


def _read_references(
    body: Cursor, files: list[tuple[bytes, str]], n: int, *, newest: bool = False
) -> list[_Reference | None]:
    """`n` references, or only the last of them."""
    first = n - 1 if newest else 0
    ids, offsets, lengths = (body.numbers(n)[first:].tolist() for _ in range(3))
    result: list[_Reference | None] = []
    for file, offset, length in zip(ids, offsets, lengths, strict=True):
        if offset == length == _ABSENT:
            result.append(None)
        else:
            base, path = _check_reference(files, file, offset, length)
            result.append(_Reference(path, base, offset, length))
    return result


def _check_reference(
    files: list[tuple[bytes, str]], number: int, offset: int, length: int
) -> tuple[bytes, str]:
    if number >= len(files) or not files[number][1]:
        raise Corrupted(f"Expected one of {len(files)} data files, got number {number}")
    if offset + length >= 2**63:
        raise Corrupted(f"Expected a byte range below 2**63, got {offset}-{offset + length}")
    return files[number]


def _read_keys(body: Cursor, interior: bool, inherited: int) -> tuple[list[bytes], list[int]]:
    """The keys of a node, without the prefix of `inherited` bytes that each of them has."""
    n = body.number()
    if not 0 < n <= _MAX_NODE_ENTRIES:
        raise Corrupted(f"Expected 1 to {_MAX_NODE_ENTRIES} entries, got {n}")
    body.budget.add_entries(n)
    body.budget.add_names(n * inherited)
    keys, commons = body.names(n, tails=interior, inherited=inherited)
    if not all(map(operator.lt, keys, itertools.islice(keys, 1, None))):
        last, key = next((a, b) for a, b in itertools.pairwise(keys) if not a < b)
        raise Corrupted(f"Expected keys in order, got {key[:256]!r} after {last[:256]!r}")
    for key, common in zip(keys, commons, strict=True) if interior else ():
        if common > len(key):
            raise Corrupted(f"Expected a common prefix within {len(key)} bytes, got {common}")
    return keys, commons


def _read_children(body: Cursor, base: bytes, inherited: int) -> list[tuple[_Reference, bytes]]:
    """The children of an interior node, each with the prefix that its keys are relative to."""
    files = _read_file_table(body, base)
    keys, commons = _read_keys(body, True, inherited)
    children = _read_references(body, files, len(keys))
    for _ in range(3):  # num_keys, num_tree_bytes, num_indirect_value_bytes
        body.numbers(len(keys))
    body.finish()
    found: list[tuple[_Reference, bytes]] = []
    for child, key, common in zip(children, keys, commons, strict=True):
        if child is None:
            raise Corrupted("Expected a child node, got an absent one")
        found.append((child, key[:common]))
    return found


def _read_leaf(
    body: Cursor, reference: _Reference, prefix: str, inherited: int
) -> tuple[list[bytes], list[Extent]]:
    """The keys of a leaf node, relative to the prefix that it inherits, and their extents."""
    files = _read_file_table(body, reference.base)
    keys, _ = _read_keys(body, False, inherited)
    lengths = body.numbers(len(keys)).tolist()
    kinds = body.raw(len(keys))
    outside = kinds.count(1)
    if outside + kinds.count(0) != len(keys):
        raise Corrupted(f"Expected values of kinds 0 and 1, got {max(kinds)}")
    ids, offsets = body.numbers(outside).tolist(), body.numbers(outside).tolist()
    sound = bool(outside) and max(ids) < len(files) and all(path for _, path in files)
    sound = sound and max(offsets) + max(lengths) < 2**63  # else look at each reference
    places = zip(ids, offsets, strict=True)
    node = prefix + reference.file
    paths = [prefix + path for _, path in files]
    inline = [length for length, kind in zip(lengths, kinds, strict=True) if not kind]
    if max(inline, default=0) > _MAX_INLINE:
        raise Corrupted(f"Expected values of at most {_MAX_INLINE} bytes, got {max(inline)}")
    at, data = body.skip(sum(inline)), body.data
    extents: list[Extent] = []
    for length, kind in zip(lengths, kinds, strict=True):
        if kind:
            number, offset = next(places)
            if not sound:
                _check_reference(files, number, offset, length)
            extents.append(Extent(paths[number], offset, offset + length))
        else:
            extents.append(Extent(node, 0, length, data[at : at + length]))
            at += length
    body.finish()
    return keys, extents


def list_old_places(source: Source, prefix: str, nodes: Iterable[Extent]) -> Iterator[Extent]:
    """The places of the nodes and values of the older versions that a manifest lists.

    The versions that it keeps in nodes of their own, since they are many, are left out.

    Args:
        source, prefix: See `read_database`.
        nodes: What `read_database` added to its `nodes`. They are left out.

    Raises:
        Corrupted, Unsupported: See `read_database`.
    """
    budget = Budget(source, prefix + MANIFEST)
    roots, heights, limits = _read_roots(source, prefix, budget, newest=False)
    seen = {(node.key, node.start, node.stop) for node in nodes}
    pending = [*zip(roots, heights, itertools.repeat(0))]
    while pending:
        reference, height, inherited = pending.pop()
        if reference is None:
            continue
        node = (prefix + reference.file, reference.offset, reference.offset + reference.length)
        if node in seen:
            continue
        seen.add(node)
        body = _read_node(source, prefix, reference, height, limits, budget)
        yield Extent(*node)
        if height:
            children = _read_children(body, reference.base, inherited)
            pending += [(child, height - 1, inherited + len(key)) for child, key in children]
        else:
            extents = _read_leaf(body, reference, prefix, inherited)[1]
            yield from (extent for extent in extents if extent.inline is None)
