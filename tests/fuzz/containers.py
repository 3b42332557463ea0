"""Targets for containers: OCDBT, zarr, shards."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from typing import Any

import templax as tx
from templax._catalog.entry import Chunk, Extent
from templax._codecs.crc32c import crc32c
from templax._codecs.decode import decode
from templax._core.boxes import shape_of, size_of
from templax.errors import Corrupted
from templax.formats.ocdbt.read import read_database
from templax.formats.zarr.chunks import locate_arrays
from templax.formats.zarr.metadata import Array, array_prefix, parse_metadata
from templax.formats.zarr_tree import ZarrTree
from templax.storage import Memory

from . import seeds
from .encodings import (
    MANIFEST,
    NODE,
    interior_node,
    leaf_node,
    manifest,
    number,
    seal,
    text,
)
from .mutators import mutate_json
from .targets import Wrong, add_target

_DECODED = 1 << 20
"""Maximum size of the chunks that a target decodes, in bytes."""


def _check_extents(found: Mapping[str, Extent]) -> None:
    for key, extent in found.items():
        if not 0 <= extent.start <= extent.stop < 1 << 63 or not isinstance(key, str):
            raise Wrong(f"an extent of {extent.start}-{extent.stop} at {key!r}")
        if ".." in extent.key.split("/") or extent.key.startswith("/"):
            raise Wrong(f"a file outside the database: {extent.key!r}")


@add_target("ocdbt-manifest", seeds=lambda: [b"\0" + b for b in seeds.bodies(MANIFEST)])
def read_manifest(data: bytes) -> None:
    """A byte that chooses compression and the file, then the body of a manifest."""
    flags, body = data[:1] or b"\0", data[1:]
    sealed = seal(MANIFEST, body, flags[0] & 1)
    objects = {"manifest.ocdbt": sealed, "d/x": bytes(64)}
    if flags[0] & 2:
        first = seal(MANIFEST, bytes(16) + b"\1")
        objects |= {"manifest.ocdbt": first, "manifest.0000000000000001": sealed}
    _check_extents(read_database(Memory(objects)))


@add_target("ocdbt-node", seeds=lambda: [b"\0" + b for b in seeds.bodies(NODE)])
def read_node(data: bytes) -> None:
    """A byte that chooses compression, then the body of the root, which begins with its height."""
    flags, body = data[:1] or b"\0", data[1:]
    node = seal(NODE, body, flags[0] & 1)
    root = manifest([[0, "d/x", 0]], [[0, 0, len(node)]], body[0] if body else 0)
    _check_extents(read_database(Memory({"manifest.ocdbt": seal(MANIFEST, root), "d/x": node})))


_TREES = (
    {"nodes": [{"height": 0, "keys": [[0, "a/.zarray"], [2, "0"]], "values": ["{}", [4, 1, 0]]}]},
    {
        "nodes": [
            {"height": 1, "keys": [[0, "a", 0], [0, "b/", 2]], "children": [1, 2]},
            {"height": 0, "keys": [[0, "a"], [1, "b"]], "values": ["", "xyz"]},
            {"height": 0, "keys": [[0, "0"], [0, "1"]], "values": [[4, 3, 0], [4, 3, 4]]},
        ]
    },
    {
        "nodes": [
            {"height": 2, "keys": [[0, "p/", 2]], "children": [1]},
            {"height": 1, "keys": [[0, "q/", 2], [1, "x/", 3]], "children": [2, 2]},
            {"height": 0, "keys": [[0, "k"]], "values": ["value"]},
        ],
        "compression": 1,
    },
)


@add_target(
    "ocdbt-tree", seeds=lambda: [json.dumps(tree).encode() for tree in _TREES], mutate=mutate_json
)
def read_tree(data: bytes) -> None:
    """A description of a database in JSON: every node is encoded as described, then sealed.

    A number in `children` is a node, whose length is filled in. Node `i` is the file `d/i`.
    """
    tree = _load_object(data)
    nodes = [node for node in _get_list(tree, "nodes") if isinstance(node, dict)][:64]
    compression = number(tree.get("compression")) & 1
    files = [[0, f"d/{i}", 0] for i in range(len(nodes) + 1)]
    sealed: dict[int, bytes] = {}
    for i in reversed(range(len(nodes))):
        node = {"files": files, **nodes[i]}
        if "children" in node:
            node["children"] = [
                [child, 0, len(sealed.get(child, b""))] if isinstance(child, int) else child
                for child in _get_list(node, "children")
            ]
            body = interior_node(node)
        else:
            body = leaf_node(node)
        sealed[i] = seal(NODE, body, compression)
    objects = {f"d/{i}": node for i, node in sealed.items()} | {f"d/{len(nodes)}": bytes(64)}
    height = number(nodes[0].get("height")) if nodes else 0
    versions = tree.get("versions", [[0, 0, len(sealed.get(0, b""))]])
    body = manifest(
        tree.get("files", files),
        versions if isinstance(versions, list) else [],
        height,
        kind=number(tree.get("kind")),
        node_bytes=number(tree.get("node_bytes"), 8 << 20),
    )
    _check_extents(read_database(Memory(objects | {"manifest.ocdbt": seal(MANIFEST, body)})))


def _load_object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _get_list(node: dict[str, Any], name: str) -> list[Any]:
    found = node.get(name)
    return found if isinstance(found, list) else []


_ZARR2 = (
    b'{"chunks":[2,3],"compressor":{"id":"zstd","level":1},"dimension_separator":".",'
    b'"dtype":"<f4","fill_value":null,"filters":null,"order":"C","shape":[4,5],"zarr_format":2}'
)
_ZARR3 = (
    b'{"shape":[4,6],"data_type":"float32","chunk_grid":{"name":"regular","configuration":'
    b'{"chunk_shape":[2,3]}},"chunk_key_encoding":{"name":"default"},"fill_value":0.0,"codecs":'
    b'[{"name":"bytes","configuration":{"endian":"little"}},{"name":"zstd","configuration":'
    b'{"level":1}}],"attributes":{},"zarr_format":3,"node_type":"array"}'
)


def _zarr2_seeds() -> list[bytes]:
    return [_ZARR2, *seeds.files_named(".zarray")]


def _zarr3_seeds() -> list[bytes]:
    return [_ZARR3, *seeds.files_named("zarr.json")]


_ZARR_TOKENS = (b'"shape"', b'"chunks"', b'"chunk_shape"', b'"fill_value"', b'"codecs"', b"[2,3]")


@add_target("zarr2", seeds=_zarr2_seeds, mutate=mutate_json, tokens=_ZARR_TOKENS)
def read_zarr2(data: bytes) -> None:
    """The content of `.zarray`."""
    _locate(parse_metadata(data, ".zarray"), ".zarray")


@add_target("zarr3", seeds=_zarr3_seeds, mutate=mutate_json, tokens=_ZARR_TOKENS)
def read_zarr3(data: bytes) -> None:
    """The content of `zarr.json`."""
    _locate(parse_metadata(data, "zarr.json"), "zarr.json")


def _locate(array: Array, file: str) -> None:
    """Locates the chunks of an array when none of them exists, and when only the first does."""
    first = array_prefix("a", files=True) + array.key((0,) * len(array.shape))
    nbytes = min(math.prod(array.chunk_shape) * array.dtype.itemsize, 4096)
    some = Memory({first: bytes(nbytes)})
    for objects in ({}, {first: Extent(first, 0, nbytes)}):
        for absent in ("error", "fill"):
            damages: list[Corrupted] = []
            _decode_chunks(
                locate_arrays(array, "a", objects, some, absent=absent, damages=damages),
                array,
                some,
            )
    locate_arrays(array, "a", {}, some, absent="fill", index="manifest.ocdbt")


def _decode_chunks(chunks: tuple[Chunk, ...], array: Array, source: Memory) -> None:
    total = 0
    for chunk in chunks:
        nbytes = size_of(chunk.box) * array.dtype.itemsize
        total += nbytes
        if total > _DECODED:
            return
        extent = chunk.extent
        stored = extent.inline
        try:
            if stored is None:
                stored = source.read(extent.key, extent.start, extent.stop)
            decode(chunk.codecs, stored, nbytes)
        except tx.CheckpointError:
            continue
        if len(shape_of(chunk.box)) != len(array.shape):
            raise Wrong(f"a chunk of box {chunk.box} in an array of shape {array.shape}")


_SHARD = {
    "meta": json.loads(_ZARR3)
    | {
        "shape": [4, 4],
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2, 4]}},
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": [1, 4],
                    "codecs": [{"name": "bytes"}],
                    "index_codecs": [{"name": "bytes"}, {"name": "crc32c"}],
                    "index_location": "end",
                },
            }
        ],
    },
    "index": [[0, 4], [4, 4]],
    "data": "abcdefgh",
    "at_end": True,
    "summed": True,
    "inline": False,
    "repeat": 0,
}


def _shard_seeds() -> list[bytes]:
    inner = json.loads(json.dumps(_SHARD["meta"]))
    inner["codecs"][0]["configuration"]["codecs"].append({"name": "gzip"})
    start = json.loads(json.dumps(_SHARD["meta"]))
    start["codecs"][0]["configuration"]["index_location"] = "start"
    absent = [[(1 << 64) - 1, (1 << 64) - 1], [36, 4]]
    variants = (
        _SHARD,
        _SHARD | {"inline": True},
        _SHARD | {"meta": inner},
        _SHARD | {"meta": start, "at_end": False, "index": absent},
    )
    return [json.dumps(variant).encode() for variant in variants]


@add_target("zarr-shard", seeds=_shard_seeds, mutate=mutate_json)
def read_shard(data: bytes) -> None:
    """A description of an array of shards in JSON: the index gets the checksum that fits it."""
    spec = _load_object(data)
    array = parse_metadata(json.dumps(spec.get("meta")).encode(), "zarr.json")
    rows = [row for row in _get_list(spec, "index")[:4096] if isinstance(row, list)]
    numbers = itertools.chain.from_iterable(rows)
    index = b"".join((number(n) & ((1 << 64) - 1)).to_bytes(8, "little") for n in numbers)
    index += bytes([255]) * min(number(spec.get("repeat")), 1 << 16)
    if spec.get("summed") is True:
        index += crc32c(index).to_bytes(4, "little")
    body = text(spec.get("data"))
    value = body + index if spec.get("at_end") is True else index + body
    cells = [(0,) * len(array.shape), (1,) + (0,) * (len(array.shape) - 1)]
    keys = [array_prefix("a") + array.key(cell) for cell in cells if len(cell) == len(array.shape)]
    inline = value if spec.get("inline") is True else None
    objects = {key: Extent(key, 0, len(value), inline) for key in keys}
    source = Memory(dict.fromkeys(keys, value))
    for damages in ([], None):
        index_file = "manifest.ocdbt" if inline is not None else None
        chunks = locate_arrays(
            array, "a", objects, source, absent="fill", index=index_file, damages=damages
        )
        _decode_chunks(chunks, array, source)


_GROUP = {"zarr_format": 3, "node_type": "group", "attributes": {"a": 1}}


def _tree_seeds() -> list[bytes]:
    two, three = json.loads(_ZARR2) | {"fill_value": 0}, json.loads(_ZARR3)
    both = {"metadata": {"g/w/.zarray": two, "gone/.zarray": two}}
    group = _GROUP | {"consolidated_metadata": {"metadata": {"w": three, "g": _GROUP}}}
    trees = (
        {".zgroup": {"zarr_format": 2}, "g/.zgroup": {"zarr_format": 2}, "g/w/.zarray": two,
         "g/w/0.0": "x", "g/w/.zattrs": {"unit": "m"}, "notes": "n", ".zmetadata": both},
        {"zarr.json": group, "w/zarr.json": three, "g/zarr.json": _GROUP, "g/c/zarr.json": three},
        {"zarr.json": three, "c/0/0": "x"},
        {".zarray": two, ".zattrs": {}},
    )  # fmt: skip
    return [json.dumps({"files": tree, "database": n}).encode() for tree in trees for n in (0, 1)]


@add_target("zarr-tree", seeds=_tree_seeds, mutate=mutate_json, tokens=_ZARR_TOKENS)
def read_zarr_tree(data: bytes) -> None:
    """A description of a tree in JSON: key → JSON or text; and whether a database holds it."""
    spec = _load_object(data)
    files = spec.get("files")
    objects = {
        key: value.encode(errors="replace")
        if isinstance(value, str)
        else json.dumps(value).encode()
        for key, value in (files.items() if isinstance(files, dict) else ())
    }
    if spec.get("database") == 1:
        keys = sorted(objects)
        rows = [[0, key] for key in keys]
        values = [objects[key].decode() for key in keys]
        node = seal(NODE, leaf_node({"keys": rows, "values": values}))
        root = manifest([[0, "d/x", 0]], [[0, 0, len(node)]], 0)
        objects = {"manifest.ocdbt": seal(MANIFEST, root), "d/x": node}
    source = Memory({key: value for key, value in objects.items() if key})
    if ZarrTree().detect(source) is None:
        return
    catalog = ZarrTree().open(source)
    str(catalog)
    json.dumps(catalog.metadata)
    damages: list[Corrupted] = []
    first = {entry.name: entry for entry in catalog.entries}
    catalog.locate(first.values(), damages)
