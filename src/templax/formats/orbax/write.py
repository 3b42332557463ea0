"""Encodes the files of an item that Orbax restores, from leaves and the table of their chunks.

The files are as Orbax 0.12 writes them, and Orbax since 0.6 reads them.
`docs/reference/on-disk-format.md` specifies every byte.
"""

from __future__ import annotations

import base64
import functools
import json
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from ..._catalog.written import NO_FILE, ChunkTable, Leaf
from ..._core.boxes import Shape
from ..._core.chunk_grid import cell_indices, only_cell
from ..._core.dtypes import name_of
from ..._core.names import Path
from ..ocdbt.write import DataFile, Located, encode_database
from ..zarr.metadata import array_prefix, typestr
from .checksum_index import KINDS, Index, encode_index, file_crc
from .directory import TREE
from .step_metadata import STEP_METADATA
from .strings import STRINGS, nest_strings

HANDLERS = "orbax.checkpoint._src.handlers."

PYTREE = f"{HANDLERS}pytree_checkpoint_handler.PyTreeCheckpointHandler"

STANDARD = f"{HANDLERS}standard_checkpoint_handler.StandardCheckpointHandler"

JSON = f"{HANDLERS}json_checkpoint_handler.JsonCheckpointHandler"

_EMPTY_TYPES = {"NamedTuple": "None", "Tuple": "List"}
"""Substitutes for the empty types that Orbax 0.6 doesn't know: it would then restore nothing of the
tree. Orbax also writes `None` for an empty NamedTuple, but `Tuple` for an empty tuple. Without a
template, it restores non-empty tuples as lists, too.
"""

Files = dict[str, bytes]

Empty = tuple[Path, str]


def build_database(
    leaves: Sequence[Leaf],
    chunks: Sequence[Shape],
    table: ChunkTable,
    files: Sequence[DataFile],
    node_offset: int,
    level: int | None,
) -> tuple[bytes, bytes]:
    """The OCDBT database of the arrays: nodes, for the first of `files`, and the manifest.

    Args:
        leaves: All leaves.
        chunks: Shape of the chunks of each leaf.
        table: Table of all chunks, complete.
        files: Data files by number.
        node_offset: Position of the nodes in the first of `files`.
        level: Level of zstd; None if chunks are raw.
    """
    values: list[tuple[bytes, bytes | Located]] = []
    # What leaves share that look alike: their metadata, the bytes of a chunk, and the key of the
    # only one.
    shared: dict[tuple[Shape, Shape, np.dtype], tuple[bytes, int, bytes | None]] = {}
    file, offset, nbytes = table.file.tolist(), table.offset.tolist(), table.nbytes.tolist()
    for leaf, chunk, first in zip(leaves, chunks, table.first_chunk, strict=False):
        if leaf.value_type == "string":
            continue
        inside = array_prefix(leaf.name).encode()
        look = leaf.shape, chunk, leaf.dtype
        if look not in shared:
            only = only_cell(leaf.shape, chunk)
            full = math.prod(chunk) * leaf.dtype.itemsize
            only_key = None if only is None else _chunk_key(only)
            shared[look] = _encode_zarray(*look, level), full, only_key
        zarray, full, only_key = shared[look]
        values.append((inside + b".zarray", zarray))
        keys = map(_chunk_key, cell_indices(leaf.shape, chunk)) if only_key is None else (only_key,)
        for at, key in enumerate(keys, first):
            # A raw chunk at the edge includes the padding.
            length = full if level is None else nbytes[at]
            values.append((inside + key, (file[at], offset[at], length)))
    values.sort(key=operator.itemgetter(0))
    return encode_database(values, files, node_offset)


@functools.lru_cache(maxsize=1024)
def _chunk_key(cell: Shape) -> bytes:
    """Key of a chunk, relative to the name of its array."""
    return (".".join(map(str, cell)) or "0").encode()


def _encode_zarray(shape: Shape, chunk: Shape, dtype: np.dtype, level: int | None) -> bytes:
    return msgspec.json.encode(
        {
            "chunks": chunk,
            "compressor": None if level is None else {"id": "zstd", "level": level},
            "dimension_separator": ".",
            "dtype": typestr(dtype),
            "fill_value": None,
            "filters": None,
            "order": "C",
            "shape": shape,
            "zarr_format": 2,
        }
    )


# What the files say of each leaf, with the fields in the order of Orbax.


class _Key(msgspec.Struct, gc=False):
    """An element of a path. Type 1 is an index of a list or tuple, type 2 a key of a dict."""

    key: str
    key_type: int


class _Value(msgspec.Struct, gc=False):
    value_type: str
    skip_deserialize: bool
    write_shape: Shape | UnsetType = UNSET


class _Node(msgspec.Struct, gc=False):
    key_metadata: list[_Key]
    value_metadata: _Value


class _Array(msgspec.Struct, gc=False):
    param_name: str
    write_shape: Shape
    chunk_shape: Shape
    ext_metadata: dict[str, str] | None


class _Listed(msgspec.Struct, gc=False):
    array_metadata: _Array


def encode_tree_files(
    leaves: Sequence[Leaf],
    chunks: Sequence[Shape],
    empties: Iterable[Empty],
    custom_metadata: Any = None,
    *,
    empty_tuples: bool = False,
) -> Files:
    """The JSON files that describe the tree, by name.

    Args:
        leaves, chunks: Each leaf, and the shape of its chunks.
        empties: The containers without leaves.
        custom_metadata: JSON that is stored with the tree, or None.
        empty_tuples: Whether empty tuples are listed as such, which Orbax 0.6 can't read.
    """
    tree: dict[str, _Node] = {}
    keys: dict[str | int, _Key] = {}
    for leaf in leaves:
        scalar = leaf.value_type == "scalar"
        # Orbax has no complex scalars: with one it would restore nothing of the tree.
        type = "np.ndarray" if scalar and leaf.dtype.kind == "c" else leaf.value_type
        shape = leaf.tile or leaf.shape if leaf.value_type == "jax.Array" else UNSET
        node = _Node(_list_keys(leaf.path, keys), _Value(type, False, shape))
        tree[str(tuple([key.key for key in node.key_metadata]))] = node
    for path, what in empties:
        type = what if what == "Tuple" and empty_tuples else _EMPTY_TYPES.get(what, what)
        node = _Node(_list_keys(path, keys), _Value(type, True))
        tree[str(tuple([key.key for key in node.key_metadata]))] = node
    metadata = {
        "tree_metadata": tree,
        "use_ocdbt": True,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": custom_metadata,
    }
    files = {TREE: msgspec.json.encode(metadata)}
    arrays = [
        (leaf, chunk)
        for leaf, chunk in zip(leaves, chunks, strict=True)
        if leaf.value_type == "jax.Array"
    ]
    shardings = {
        base64.urlsafe_b64encode(leaf.name.encode()).decode(): leaf.sharding
        for leaf, _ in arrays
        if leaf.sharding is not None
    }
    if shardings:
        files["_sharding"] = msgspec.json.encode(shardings)
    if arrays:
        listed = [
            _Listed(
                _Array(
                    leaf.name,
                    leaf.tile or leaf.shape,
                    chunk,
                    {"random_key_impl": leaf.key_impl} if leaf.key_impl else None,
                )
            )
            for leaf, chunk in arrays
        ]
        files["array_metadatas/process_0"] = msgspec.json.encode({"array_metadatas": listed})
    texts = {leaf.name: leaf.text for leaf in leaves if leaf.text is not None}
    if texts:
        files[STRINGS] = msgspec.json.encode(nest_strings(texts))
    return files


def _list_keys(path: Path, known: dict[str | int, _Key]) -> list[_Key]:
    """The keys of a path; `known` has those of other paths, which share most of them."""
    found: list[_Key] = []
    for key in path:
        made = known.get(key)
        if made is None:
            made = known[key] = _Key(str(key), 1 if isinstance(key, int) else 2)
        found.append(made)
    return found


def encode_commit_files(
    handlers: str | Mapping[str, str], begun_ns: int, ended_ns: int, about: Mapping[str, Any]
) -> Files:
    """The files that mark a directory as a finished save.

    Args:
        handlers: The handler of an item, or the handlers of a step's items by name.
        begun_ns, ended_ns: Times of the save, in nanoseconds since the epoch.
        about: May contain `custom_metadata` and `metrics`.
    """
    metadata = {
        "item_handlers": handlers,
        "metrics": about.get("metrics") or {},
        "performance_metrics": {},
        "init_timestamp_nsecs": begun_ns,
        "commit_timestamp_nsecs": ended_ns,
        "custom_metadata": about.get("custom_metadata") or {},
    }
    return {
        STEP_METADATA: json.dumps(metadata).encode()
    }  # Python's encoder, because a metric may be NaN


def encode_index_file(
    leaves: Sequence[Leaf],
    chunks: Sequence[Shape],
    table: ChunkTable,
    data_files: Sequence[tuple[str, int]],
    others: Files,
    empties: Iterable[Empty],
    compressed: bool,
    fingerprints: np.ndarray,
) -> bytes:
    """The content of `templax.index`."""
    shapes, dtypes, shardings = _Table(), _Table(), _Table()
    kinds = bytearray()
    rows: list[tuple[int, int, int, int]] = []
    for leaf, chunk in zip(leaves, chunks, strict=True):
        if leaf.key_impl is not None:
            kind = "key"
        elif leaf.value_type in ("scalar", "string"):
            kind = leaf.value_type
        else:
            kind = "array"
        kinds.append(KINDS.index(kind))
        rows.append(
            (
                dtypes["str" if kind == "string" else name_of(leaf.dtype)],
                shapes[leaf.shape],
                shapes[chunk],
                NO_FILE if leaf.sharding is None else shardings[leaf.sharding],
            )
        )
    columns = np.array(rows, np.int64).reshape(-1, 4).T
    return encode_index(
        Index(
            files=list(data_files),
            others={
                name: (len(data), file_crc(name, data)) for name, data in sorted(others.items())
            },
            paths=[leaf.path for leaf in leaves],
            kinds=bytes(kinds),
            dtypes=list(dtypes),
            dtype=columns[0].astype("<u2").tobytes(),
            shapes=list(shapes),
            shape=columns[1].astype("<u4").tobytes(),
            chunk=columns[2].astype("<u4").tobytes(),
            codecs=bytes([compressed]) * len(leaves),
            counts=np.diff(table.first_chunk).astype("<u4").tobytes(),
            file=table.file.tobytes(),
            offset=table.offset.tobytes(),
            nbytes=table.nbytes.tobytes(),
            crc32c=table.crc.tobytes(),
            fingerprint=fingerprints.tobytes(),
            texts={leaf.name: leaf.text for leaf in leaves if leaf.text is not None},
            impls={leaf.name: leaf.key_impl for leaf in leaves if leaf.key_impl is not None},
            shardings=list(shardings),
            sharding=columns[3].astype("<u4").tobytes(),
            empties=list(empties),
        )
    )


class _Table(dict[Any, int]):
    """Value → its index. A new value is given the next index when it is first looked up."""

    def __missing__(self, value: Any) -> int:
        self[value] = number = len(self)
        return number
