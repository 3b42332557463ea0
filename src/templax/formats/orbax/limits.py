"""The limits that a save must stay within, so that templax and Orbax can read it again.

Most are defined where a reader checks them; here the writer is held to them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from ..._catalog.catalog import LEAF_EMPTIES, MAX_EMPTIES
from ..._catalog.written import ChunkTable, Leaf
from ..._core.boxes import MAX_RANK, Shape
from ..._core.chunk_grid import grid_shape
from ..._core.names import MAX_DEPTH, Path, check_depths, join_path
from ..._core.text import is_unicode
from ...errors import Unsupported
from ...storage.signatures import MAX_METADATA
from ..file_names import INDEX_FILE
from ..ocdbt.budget import MAX_ENTRIES, NAMES
from ..ocdbt.cursor import MAX_NAME
from ..zarr.metadata import array_prefix
from .directory import DATABASE_DIRECTORIES, MARKS
from .step_names import is_temporary
from .strings import find_unplaced_strings
from .write import Empty, encode_index_file, encode_tree_files

_MAX_FILE_NAME = 255
"""Maximum length of a file name on common file systems, in bytes."""

_MAX_LENGTH = 2**62 - 1
"""Maximum size of a dimension of an empty array: TensorStore treats larger ones as unbounded."""

_NAME_BYTES = 4 * NAMES[1]
"""Maximum average length of a key in bytes, beyond the first `NAMES[0]`: each key takes more than
four bytes in a node, and the reader allows `NAMES[1]` for each of those."""

_OVERHEAD = 1 << 20
"""Bytes of a metadata file that its leaves do not account for, such as the names of data files."""


def find_unreadable_leaves(
    leaves: Sequence[Leaf], chunks: Sequence[Shape], empties: Sequence[Empty]
) -> list[str]:
    """What could not be read again, as sentences that begin with the name of a leaf.

    Args:
        leaves: All leaves of an item; no two have the same name.
        chunks: Shape of the chunks of each leaf.
        empties: Containers without leaves.
    """
    paths = [*(leaf.path for leaf in leaves), *(path for path, _ in empties)]
    maximum = MAX_EMPTIES + LEAF_EMPTIES * len(leaves)
    if len(empties) > maximum:
        name = join_path(empties[0][0])
        return [f"`{name}` is one of {len(empties):,} empty containers, more than {maximum:,}"]
    pairs = zip(leaves, chunks, strict=True)
    arrays = [(leaf, chunk) for leaf, chunk in pairs if leaf.value_type != "string"]
    counts = Counter((leaf.shape, chunk) for leaf, chunk in arrays)
    problems = [
        *_find_misplaced(paths),
        *_find_many_levels(paths[: len(leaves)]),
        *_find_many_levels(paths[len(leaves) :]),
        *_find_unaddressable(arrays, {shape for shape, _ in counts}),
        *_find_clashes([leaf.name for leaf, _ in arrays]),
        *_find_long_keys(arrays),
        *find_unplaced_strings({leaf.name: None for leaf in leaves if leaf.text is not None}),
    ]
    chunked = {pair: math.prod(grid_shape(*pair)) for pair in counts if not problems}
    keys = sum(n * (chunked[pair] + 1) for pair, n in counts.items() if pair in chunked)
    if keys > MAX_ENTRIES:
        count, name = max((chunked[leaf.shape, chunk], leaf.name) for leaf, chunk in arrays)
        problems.append(
            f"`{name}` is cut into {count:,} chunks, and all arrays together make {keys:,} keys,"
            f" more than {MAX_ENTRIES:,}"
        )
    if not problems and max((len(leaf.name) for leaf, _ in arrays), default=0) * 4 > _NAME_BYTES:
        problems += _find_many_names(arrays, chunked, keys)
    return problems or list(_find_large_files(leaves, chunks, empties, keys))


def _find_misplaced(paths: Sequence[Path]) -> Iterator[str]:
    """Paths that are too deep, that occur twice, or that hold a value and have others below them.

    The last two occur only if the children of a node class of the caller's share a key.
    """
    for path in paths:
        if len(path) > MAX_DEPTH:
            yield f"`{join_path(path)[:40]}…` is {len(path):,} levels deep, more than {MAX_DEPTH}"
    known = set(paths)
    if len(known) < len(paths):
        for path, n in Counter(paths).items():
            if n > 1:
                yield f"`{join_path(path)}` is there {n} times"
    parents = {path[:-1] for path in paths if path}
    for parent in list(parents):
        while parent and (parent := parent[:-1]) not in parents:
            parents.add(parent)
    for path in known & parents:
        yield f"`{join_path(path)}` holds a value and has others below it"


def _find_many_levels(paths: Sequence[Path]) -> Iterator[str]:
    try:
        check_depths([path for path in paths if len(path) <= MAX_DEPTH])
    except Unsupported as error:
        yield f"`{join_path(max(paths, key=len))[:40]}…` is in too deep a tree: {error.what}"


def _find_unaddressable(
    arrays: Sequence[tuple[Leaf, Shape]], shapes: Collection[Shape]
) -> Iterator[str]:
    if max(map(len, shapes), default=0) > MAX_RANK:
        for leaf, _ in arrays:
            if len(leaf.shape) > MAX_RANK:
                what = "dimensions with those of its key data" if leaf.key_impl else "dimensions"
                yield f"`{leaf.name}` has {len(leaf.shape)} {what}, more than {MAX_RANK}"
    if max(map(max, filter(None, shapes)), default=0) > _MAX_LENGTH:
        for leaf, _ in arrays:
            if max(leaf.shape, default=0) > _MAX_LENGTH:
                yield f"`{leaf.name}` has shape {leaf.shape}, more than 2**62-1 in a dimension"


def _find_clashes(names: Sequence[str]) -> Iterator[str]:
    """Arrays whose keys have the same prefix, which takes an empty name or one that ends in `/`."""
    if any(name.endswith("/") or not name for name in names):
        owners: dict[str, str] = {}
        for name in names:
            if (other := owners.setdefault(array_prefix(name), name)) != name:
                one, two = (f"`{n}`" if n else "the leaf without a name" for n in (other, name))
                yield f"{two} would be stored where {one} is: rename one of them"


def _find_long_keys(arrays: Sequence[tuple[Leaf, Shape]]) -> Iterator[str]:
    longest = MAX_NAME - 24 * MAX_RANK  # any key of an array fits after such a name
    if max((len(leaf.name) for leaf, _ in arrays), default=0) * 4 > longest:
        for leaf, chunk in arrays:
            last = ".".join(str(max(n - 1, 0)) for n in grid_shape(leaf.shape, chunk))
            name = len(leaf.name.encode())
            length = len(array_prefix(leaf.name).encode()) + max(len(last), len(".zarray"))
            if length > MAX_NAME:
                yield (
                    f"`{leaf.name[:40]}…` has a name of {name:,} bytes, which makes keys of"
                    f" {length:,}, more than {MAX_NAME:,}"
                )


def _find_many_names(
    arrays: Sequence[tuple[Leaf, Shape]], chunked: Mapping[tuple[Shape, Shape], int], keys: int
) -> Iterator[str]:
    sizes = [(len(leaf.name.encode()), leaf.name) for leaf, _ in arrays]
    counts = [chunked[leaf.shape, chunk] + 1 for leaf, chunk in arrays]
    total = sum(size * n for (size, _), n in zip(sizes, counts, strict=True))
    maximum = NAMES[0] + _NAME_BYTES * keys
    if total > maximum:
        yield (
            f"`{max(sizes)[1][:40]}…` and the other names make keys of {total:,} bytes, more than"
            f" {maximum:,}"
        )


def _find_large_files(
    leaves: Sequence[Leaf], chunks: Sequence[Shape], empties: Sequence[Empty], keys: int
) -> Iterator[str]:
    """Metadata files that would be larger than what a restore reads."""
    if _bound_metadata(leaves, empties, keys) <= MAX_METADATA:
        return
    files = encode_tree_files(leaves, chunks, empties)
    table, crcs = ChunkTable(leaves, chunks), np.zeros(len(leaves), "<u4")
    files[INDEX_FILE] = encode_index_file(leaves, chunks, table, [], {}, empties, False, crcs)
    weights = [(len(leaf.name) + _count_text(leaf), leaf.name) for leaf in leaves]
    weights += [(len(join_path(path)), join_path(path)) for path, _ in empties]
    largest = max(weights, default=(0, ""))[1]
    for file, data in files.items():
        if len(data) + _OVERHEAD > MAX_METADATA:
            yield (
                f"`{largest[:40]}` has the largest part of `{file}`, which would take {len(data):,}"
                f" bytes, more than the {MAX_METADATA:,} that are read"
            )


def _bound_metadata(leaves: Sequence[Leaf], empties: Sequence[Empty], keys: int) -> int:
    """An upper bound on the size of all metadata files together, in bytes."""
    names = "".join([*(leaf.name for leaf in leaves), *(join_path(path) for path, _ in empties)])
    elements = sum(len(leaf.path) for leaf in leaves) + sum(len(path) for path, _ in empties)
    # `_METADATA` has each name as a Python literal inside a JSON string, where an unprintable
    # character takes up to 11 bytes. All files have it in JSON strings, where it takes up to 6.
    length = len(names) * (12 if names.isascii() and names.isprintable() else 40)
    text = sum(map(_count_text, leaves))
    ranks = sum(len(leaf.shape) for leaf in leaves)
    nodes = 400 * (len(leaves) + len(empties))
    return length + 6 * text + 60 * (elements + ranks) + nodes + 24 * keys + _OVERHEAD


def _count_text(leaf: Leaf) -> int:
    return len(leaf.text or "") + len(leaf.sharding or "") + len(leaf.key_impl or "")


def find_item_problem(name: str) -> str | None:
    """Why an item can't have this name; None if it can.

    Args:
        name: The name of its directory; "" is the checkpoint itself.
    """
    if not is_unicode(name):
        return "is not valid Unicode"
    if name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        return "is not the name of one directory"
    if len(name.encode()) > _MAX_FILE_NAME:
        return f"has {len(name.encode())} bytes, more than {_MAX_FILE_NAME}"
    if name in MARKS or name in DATABASE_DIRECTORIES or name.startswith("ocdbt.process_"):
        return "is that of a part of a checkpoint"
    if is_temporary(name):
        return "is that of an unfinished save"
    return None
