"""Leaves and where their chunks lie → the files of an item that Orbax restores.

As Orbax 0.12 writes them, and 0.6 still reads them; `docs/format.md` has them byte by byte.
"""

from __future__ import annotations

import base64
import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from ..._catalog.written import NO_FILE, ChunkTable, Leaf
from ..._core.boxes import Shape
from ..._core.chunk_grid import cell_indices, only_cell
from ..._core.dtypes import name_of
from ..._core.names import Path
from ..ocdbt.write import DataFile, Located, encode_database
from ..zarr.metadata import array_prefix, typestr
from .checksum_index import KINDS, Index, encode_index, file_crc
from .directory import STEP_METADATA, TREE

_HANDLERS = "orbax.checkpoint._src.handlers."

STANDARD = f"{_HANDLERS}standard_checkpoint_handler.StandardCheckpointHandler"

JSON = f"{_HANDLERS}json_checkpoint_handler.JsonCheckpointHandler"

_EMPTY_TYPES = {"NamedTuple": "None", "Tuple": "List"}
"""As what Orbax 0.6 reads, which restores nothing of a tree with an empty type it doesn't know.
Orbax writes the first alike; without a template, tuples with leaves come back as lists, too.
"""

Files = dict[str, bytes]

Empty = tuple[Path, str]


def build_database(
    leaves: Sequence[Leaf],
    chunks: Sequence[Shape],
    places: ChunkTable,
    files: Sequence[DataFile],
    node_offset: int,
    level: int | None,
) -> tuple[bytes, bytes]:
    """The OCDBT database of the arrays: nodes, for the first of `files`, and the manifest.

    Args:
        leaves: All of them.
        chunks: Of each leaf, the shape of its chunks.
        places: Of all chunks.
        files: Data files by number.
        node_offset: Where in the first of them the nodes will be.
        level: Of zstd; None if chunks are raw.
    """
    values: list[tuple[bytes, bytes | Located]] = []
    described: dict[tuple[Shape, Shape, np.dtype], bytes] = {}
    file, offset, nbytes = places.file.tolist(), places.offset.tolist(), places.nbytes.tolist()
    for leaf, chunk, first in zip(leaves, chunks, places.first_chunk, strict=False):
        if leaf.value_type == "string":
            continue
        inside = array_prefix(leaf.name).encode()
        key = leaf.shape, chunk, leaf.dtype
        zarray = described.get(key)
        if zarray is None:
            zarray = described[key] = _zarray(*key, level)
        values.append((inside + b".zarray", zarray))
        full = math.prod(chunk) * leaf.dtype.itemsize
        only = only_cell(leaf.shape, chunk)
        for at, cell in enumerate(
            (only,) if only is not None else cell_indices(leaf.shape, chunk), first
        ):
            length = full if level is None else nbytes[at]  # a raw one at the edge with padding
            values.append((inside + _key(cell), (file[at], offset[at], length)))
    values.sort(key=lambda value: value[0])
    return encode_database(values, files, node_offset)


@functools.lru_cache(maxsize=1024)
def _key(cell: Shape) -> bytes:
    """Of a chunk, below the name of its array."""
    return (".".join(map(str, cell)) or "0").encode()


def _zarray(shape: Shape, chunk: Shape, dtype: np.dtype, level: int | None) -> bytes:
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


def tree_files(leaves: Sequence[Leaf], chunks: Sequence[Shape], empties: Iterable[Empty]) -> Files:
    """The files that describe the tree."""
    tree: dict[str, Any] = {}
    for leaf in leaves:
        scalar = leaf.value_type == "scalar"
        # Orbax knows no complex scalar, and would then restore nothing of the tree.
        type = "np.ndarray" if scalar and leaf.dtype.kind == "c" else leaf.value_type
        value: dict[str, Any] = {"value_type": type, "skip_deserialize": False}
        if leaf.value_type == "jax.Array":
            value["write_shape"] = leaf.tile or leaf.shape
        tree[_tuple_text(leaf.path)] = {
            "key_metadata": _keys(leaf.path),
            "value_metadata": value,
        }
    for path, what in empties:
        tree[_tuple_text(path)] = {
            "key_metadata": _keys(path),
            "value_metadata": {
                "value_type": _EMPTY_TYPES.get(what, what),
                "skip_deserialize": True,
            },
        }
    metadata = {
        "tree_metadata": tree,
        "use_ocdbt": True,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }
    files = {TREE: msgspec.json.encode(metadata)}
    arrays = [
        (leaf, chunk)
        for leaf, chunk in zip(leaves, chunks, strict=True)
        if leaf.value_type == "jax.Array"
    ]
    shardings = {
        base64.b64encode(leaf.name.encode()).decode(): leaf.sharding
        for leaf, _ in arrays
        if leaf.sharding is not None
    }
    if shardings:
        files["_sharding"] = msgspec.json.encode(shardings)
    if arrays:
        listed = [
            {
                "array_metadata": {
                    "param_name": leaf.name,
                    "write_shape": leaf.tile or leaf.shape,
                    "chunk_shape": chunk,
                    "ext_metadata": {"random_key_impl": leaf.key_impl} if leaf.key_impl else None,
                }
            }
            for leaf, chunk in arrays
        ]
        files["array_metadatas/process_0"] = msgspec.json.encode({"array_metadatas": listed})
    texts = {leaf.name: leaf.text for leaf in leaves if leaf.text is not None}
    if texts:
        files["_strings.json"] = msgspec.json.encode(texts)
    return files


def _tuple_text(path: Path) -> str:
    return str(tuple(map(str, path)))


def _keys(path: Path) -> list[dict[str, Any]]:
    # An index of a list or tuple is of type 1; all else is a key of a dict.
    return [{"key": str(key), "key_type": 1 if isinstance(key, int) else 2} for key in path]


def commit_files(
    handlers: str | Mapping[str, str], begun_ns: int, ended_ns: int, about: Mapping[str, Any]
) -> Files:
    """What says that a directory is a finished save.

    Args:
        handlers: Of an item its handler; of a step those of its items, by name.
        begun_ns, ended_ns: Since the epoch.
        about: `custom_metadata` and `metrics`.
    """
    metadata = {
        "item_handlers": handlers,
        "metrics": about.get("metrics") or {},
        "performance_metrics": {},
        "init_timestamp_nsecs": begun_ns,
        "commit_timestamp_nsecs": ended_ns,
        "custom_metadata": about.get("custom_metadata") or {},
    }
    return {STEP_METADATA: json.dumps(metadata).encode()}  # Python's: a metric may be NaN


def index_file(
    leaves: Sequence[Leaf],
    chunks: Sequence[Shape],
    places: ChunkTable,
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
            counts=np.diff(places.first_chunk).astype("<u4").tobytes(),
            file=places.file.tobytes(),
            offset=places.offset.tobytes(),
            nbytes=places.nbytes.tobytes(),
            crc32c=places.crc.tobytes(),
            fingerprint=fingerprints.tobytes(),
            texts={leaf.name: leaf.text for leaf in leaves if leaf.text is not None},
            impls={leaf.name: leaf.key_impl for leaf in leaves if leaf.key_impl is not None},
            shardings=list(shardings),
            sharding=columns[3].astype("<u4").tobytes(),
            empties=list(empties),
        )
    )


class _Table(dict[Any, int]):
    """Value → its number, given when it is first asked for."""

    def __missing__(self, value: Any) -> int:
        self[value] = number = len(self)
        return number
