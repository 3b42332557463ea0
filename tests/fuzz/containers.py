"""Targets for containers and codecs: OCDBT, zarr, shards, zstd, gzip, blosc, lz4."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import zlib
from collections.abc import Mapping
from typing import Any

import zstandard
from numcodecs import LZ4, Blosc

import templax as tx
from templax._catalog.entry import Chunk, Extent
from templax._codecs.crc32c import crc32c
from templax._codecs.decode import decode
from templax._codecs.zstd import inflate, inflate_many
from templax._codecs.zstd_frames import FrameWalk
from templax._core.boxes import shape_of, size_of
from templax.errors import Corrupted
from templax.formats.ocdbt.read import read_database
from templax.formats.zarr.chunks import locate_arrays
from templax.formats.zarr.metadata import Array, array_prefix, parse_metadata
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
    seal_gzip,
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


def _frames() -> list[bytes]:
    compress = zstandard.ZstdCompressor(level=3, write_checksum=True).compress
    plain = zstandard.ZstdCompressor(level=19, write_content_size=False).compress
    text = b"templax " * 40 + bytes(range(256))
    skippable = b"\x50\x2a\x4d\x18\4\0\0\0skip"
    return [
        *(compress(b) for b in (b"", b"a", text, bytes(5000))),
        *(plain(b) for b in (b"", text)),
        compress(text) + skippable + plain(b"more"),
        bytes.fromhex("28b52ffd6000ff030000") + b"a",
        bytes.fromhex("28b52ffd0058") + b"\x03\x00\x10a",
    ]


_ZSTD_CODECS = ((("zstd",)), ("crc32c", "zstd"), ("zstd", "crc32c"), ("crc32c", "zstd", "crc32c"))


@add_target("zstd", seeds=lambda: [bytes([i % 4, 0, 0]) + f for f in _frames() for i in (0, 1)])
def read_zstd(data: bytes) -> None:
    """A byte that chooses the codecs, two for how much the size differs, then zstd frames."""
    if len(data) < 3:
        return
    codecs, frames = _ZSTD_CODECS[data[0] & 3], data[3:]
    off = int.from_bytes(data[1:3], "little", signed=True)
    _check_walk(frames)
    try:
        content = inflate(frames, _DECODED)
    except Corrupted:
        content = None
    stored = frames if codecs[0] == "zstd" else frames + crc32c(frames).to_bytes(4, "little")
    tail = 4 if codecs[-1] == "crc32c" else 0
    nbytes = max(0, (64 if content is None else len(content)) + off - tail)
    many = inflate_many([frames, frames], [nbytes + tail] * 2)
    out = decode(codecs, stored, nbytes)
    if content is None or bytes(out) != content[: len(content) - tail]:
        raise Wrong(f"decoded {len(out)} bytes that differ from those of the frames")
    if many is not None and any(bytes(piece) != content for piece in many):
        raise Wrong("many frames decode to something else than one")


def _check_walk(frames: bytes) -> None:
    """Checks that frames that arrive in pieces end where they end if they arrive at once."""
    whole, pieces = FrameWalk(), FrameWalk()
    whole.feed(memoryview(frames))
    for at in range(0, min(len(frames), 512), 3):
        pieces.feed(memoryview(frames)[at : at + 3])
    pieces.feed(memoryview(frames)[max(0, 3 * ((min(len(frames), 512) + 2) // 3)) :])
    if whole.complete != pieces.complete:
        raise Wrong("frames that arrive in pieces end elsewhere")


def _members() -> list[bytes]:
    text = b"templax " * 40
    deflated = [gzip.compress(b, mtime=0)[10:-8] for b in (b"", b"a", text, bytes(5000))]
    return [
        *(b"\1\0\0" + d for d in deflated),
        *(b"\0\0\0" + gzip.compress(b, mtime=0) for b in (b"", text)),
        b"\0\0\0" + gzip.compress(text) + gzip.compress(b"more"),
    ]


@add_target("gzip", seeds=_members)
def read_gzip(data: bytes) -> None:
    """A byte that chooses deflated bytes, to be sealed, or gzip; two for the size; then those."""
    if len(data) < 3:
        return
    body = seal_gzip(data[3:]) if data[0] & 1 else data[3:]
    off = int.from_bytes(data[1:3], "little", signed=True)
    try:
        content = gzip.decompress(body) if len(body) < 1 << 10 else None
    except (OSError, EOFError, zlib.error):
        content = None
    nbytes = max(0, (64 if content is None else len(content)) + off)
    out = decode(("gzip",), body, nbytes)
    if content is not None and bytes(out) != content:
        raise Wrong(f"decoded {len(out)} bytes that differ from those of the members")


_COMPRESSORS = (
    Blosc("lz4", 5, Blosc.SHUFFLE),
    Blosc("blosclz", 9, Blosc.NOSHUFFLE, 64),
    Blosc("zstd", 1, Blosc.BITSHUFFLE, 128),
    Blosc("zlib", 1, Blosc.SHUFFLE),
    LZ4(),
)


def _chunks() -> list[bytes]:
    body = b"templax " * 40 + bytes(range(256))
    codecs = ("lz4" if isinstance(each, LZ4) else "blosc" for each in _COMPRESSORS)
    return [
        bytes([codec == "lz4", sealed, 0, 0]) + bytes(each.encode(text))
        for codec, each in zip(codecs, _COMPRESSORS, strict=True)
        for text in (b"a", body, bytes(5000))
        for sealed in (0, 1)
    ]


@add_target("blosc", seeds=_chunks)
def read_blosc(data: bytes) -> None:
    """A byte that chooses lz4, one that has the sizes corrected, two for the size; then a chunk."""
    if len(data) < 4:
        return
    lz4, body = bool(data[0] & 1), bytearray(data[4:])
    first = 0 if lz4 else 4
    declared = int.from_bytes(body[first : first + 4], "little")
    nbytes = max(0, min(declared, _DECODED) + int.from_bytes(data[2:4], "little", signed=True))
    if data[1] & 1 and len(body) >= first + 4:
        body[first : first + 4] = nbytes.to_bytes(4, "little")
        if not lz4 and len(body) >= 16:
            body[12:16] = len(body).to_bytes(4, "little")
    out = decode(("lz4",) if lz4 else ("blosc",), bytes(body), nbytes)
    if len(out) != nbytes:
        raise Wrong(f"decoded {len(out)} bytes, asked for {nbytes}")
