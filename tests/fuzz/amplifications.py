"""Small files, of at most a megabyte each, that declare or imply something huge.

Each function writes a checkpoint to a directory and returns what to open there.
"""

from __future__ import annotations

import itertools
import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import zstandard
from numcodecs import Blosc

from .encodings import MANIFEST, NODE, manifest, seal, seal_index, varint, varints

CASES: dict[str, Callable[[Path], str]] = {}


def _add(build: Callable[[Path], str]) -> Callable[[Path], str]:
    CASES[build.__name__] = build
    return build


def _write(directory: Path, files: Mapping[str, bytes]) -> str:
    for key, data in files.items():
        path = directory / "c" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return "c"


def _safetensors(directory: Path, header: Any, data: bytes = b"") -> str:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = directory / "m.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path.name


def _empty_tensors(names: list[str]) -> dict[str, Any]:
    return {name: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for name in names}


# Names


@_add
def a_name_of_many_levels(directory: Path) -> str:
    return _safetensors(directory, _empty_tensors([".".join("a" * 20000)]))


@_add
def a_name_of_dots(directory: Path) -> str:
    return _safetensors(directory, _empty_tensors(["." * 900_000]))


@_add
def many_names_of_many_levels(directory: Path) -> str:
    names = [".".join("a" * 1000) + f".{i}" for i in range(400)]
    return _safetensors(directory, _empty_tensors(names))


@_add
def one_long_name(directory: Path) -> str:
    return _safetensors(directory, _empty_tensors(["\x1b" * 140_000]))


@_add
def names_of_many_digits(directory: Path) -> str:
    return _safetensors(directory, _empty_tensors([f"a{'9' * 40_000}{i}" for i in range(20)]))


@_add
def many_names_that_look_alike(directory: Path) -> str:
    names = [f"layers.{i}.w{j}" for i in range(100) for j in range(120)]
    return _safetensors(directory, _empty_tensors(names))


@_add
def a_leaf_of_many_keys(directory: Path) -> str:
    keys = [{"key": "a", "key_type": 2}] * 25_000
    value = {"value_type": "jax.Array"}
    tree = {"tree_metadata": {"x": {"key_metadata": keys, "value_metadata": value}}}
    name = ".".join("a" * 25_000)
    return _write(directory, {"_METADATA": json.dumps(tree | {"use_ocdbt": True}).encode()} | (
        _database([_leaf_body([f"{name}/.zarray".encode()[:60_000]], [b"{}"])])
    ))  # fmt: skip


@_add
def a_leaf_of_a_key_with_many_dots(directory: Path) -> str:
    value = {"value_type": "List"}
    tree = {"x": {"key_metadata": [{"key": "." * 800_000, "key_type": 2}], "value_metadata": value}}
    return _write(directory, {"_METADATA": json.dumps({"tree_metadata": tree}).encode()})


# Shapes


@_add
def a_shape_of_many_sizes(directory: Path) -> str:
    tensor = {"dtype": "U8", "shape": [2**62] * 40_000, "data_offsets": [0, 0]}
    return _safetensors(directory, {"a": tensor})


@_add
def a_shape_whose_product_has_too_many_digits(directory: Path) -> str:
    tensor = {"dtype": "U8", "shape": [2**60] * 300, "data_offsets": [0, 0]}
    return _safetensors(directory, {"a": tensor})


def _zarray(**fields: Any) -> bytes:
    plain = {"zarr_format": 2, "shape": [4], "chunks": [4], "dtype": "<f4", "order": "C"}
    plain |= {"compressor": None, "fill_value": None, "filters": None}
    return json.dumps(plain | fields).encode()


_TREE = {
    "a": {
        "key_metadata": [{"key": "a", "key_type": 2}],
        "value_metadata": {"value_type": "jax.Array"},
    }
}


def _plain(directory: Path, zarray: bytes, **chunks: bytes) -> str:
    tree = json.dumps({"tree_metadata": _TREE, "use_ocdbt": False}).encode()
    files = {f"a/{key}": data for key, data in chunks.items()}
    return _write(directory, {"_METADATA": tree, "a/.zarray": zarray, **files})


@_add
def an_array_of_many_dimensions(directory: Path) -> str:
    return _plain(directory, _zarray(shape=[2**62] * 30_000, chunks=[1] * 30_000))


@_add
def an_array_of_many_absent_chunks(directory: Path) -> str:
    return _plain(directory, _zarray(shape=[2**40], chunks=[1], fill_value=0))


@_add
def an_array_of_fill_values(directory: Path) -> str:
    return _plain(directory, _zarray(shape=[2**40], chunks=[2**30], fill_value=0))


@_add
def a_fill_value_of_many_digits(directory: Path) -> str:
    text = _zarray(fill_value=12345).replace(b"12345", b"9" * 900_000)
    return _plain(directory, text)


@_add
def a_fill_value_of_many_bits(directory: Path) -> str:
    return _plain(directory, _zarray(fill_value="0x" + "f" * 900_000))


@_add
def a_chunk_of_repeated_bytes(directory: Path) -> str:
    n = 1 << 30
    frame = bytes.fromhex("28b52ffd0058")  # a window of 2 MiB
    blocks = n >> 17
    body = ((1 << 20 | 1 << 1).to_bytes(3, "little") + b"\1") * (blocks - 1)
    body += (1 << 20 | 1 << 1 | 1).to_bytes(3, "little") + b"\1"
    metadata = _zarray(shape=[n], chunks=[n], dtype="|u1", compressor={"id": "zstd"})
    return _plain(directory, metadata, **{"0": frame + body})


# Databases


def _leaf_body(keys: list[bytes], values: list[bytes]) -> bytes:
    return b"".join(
        (
            b"\0\0",
            varint(len(keys)),
            _front_code(keys),
            varints([len(value) for value in values]),
            bytes(len(keys)),
            *values,
        )
    )


def _front_code(keys: list[bytes], commons: list[int] | None = None) -> bytes:
    shared = [_count_shared(a, b) for a, b in itertools.pairwise(keys)]
    suffixes = [key[n:] for key, n in zip(keys, [0, *shared], strict=True)]
    lengths = varints([len(suffix) for suffix in suffixes])
    return varints(shared) + lengths + varints(commons or []) + b"".join(suffixes)


def _count_shared(a: bytes, b: bytes) -> int:
    n = min(len(a), len(b))
    differ = int.from_bytes(a[:n], "big") ^ int.from_bytes(b[:n], "big")
    return n - (differ.bit_length() + 7) // 8


def _interior_body(height: int, keys: list[bytes], commons: list[int], length: int) -> bytes:
    n = len(keys)
    return b"".join(
        (
            bytes([height]),
            varint(1) + varints([3, 0]) + b"d/0",
            varint(n),
            _front_code(keys, commons),
            varints([0] * n) + varints([0] * n) + varints([length] * n),
            varints([1] * 3 * n),
        )
    )


def _database(bodies: list[bytes]) -> dict[str, bytes]:
    """A database of nodes, root first, each compressed. The last node is the file `d/0`."""
    sealed = [_seal(body) for body in bodies]
    files = {f"d/{i}": node for i, node in enumerate(reversed(sealed))}
    names = [[0, f"d/{len(bodies) - 1}", 0]]
    height = len(bodies) - 1
    root = manifest(names, [[0, 0, len(sealed[0])]], height, node_bytes=1 << 28)
    return {**files, "manifest.ocdbt": seal(MANIFEST, root)}


def _seal(body: bytes) -> bytes:
    import templax._codecs.crc32c as sums

    packed = zstandard.ZstdCompressor(level=19).compress(body)
    head = NODE.to_bytes(4, "big") + (len(packed) + 18).to_bytes(8, "little") + b"\0\1"
    data = head + packed
    return data + sums.crc32c(data).to_bytes(4, "little")


@_add
def children_of_long_prefixes(directory: Path) -> str:
    leaf = _leaf_body([b"a"], [b""])
    prefix = b"p" * 60_000
    keys = [prefix + i.to_bytes(3, "big") for i in range(10_000)]
    root = _interior_body(1, keys, [60_000] * len(keys), len(_seal(leaf)))
    return _write(directory, _database([root, leaf]))


@_add
def the_same_child_many_times(directory: Path) -> str:
    keys = [f"{i:07}".encode() for i in range(100_000)]
    leaf = _leaf_body(keys, [b""] * len(keys))
    more = [f"{i:07}".encode() for i in range(1000)]
    root = _interior_body(1, more, [7] * len(more), len(_seal(leaf)))
    return _write(directory, _database([root, leaf]))


@_add
def a_node_of_many_bytes(directory: Path) -> str:
    return _write(directory, _database([_leaf_body([b"a"], [bytes(250 << 20)])]))


@_add
def a_node_of_a_million_keys(directory: Path) -> str:
    keys = [i.to_bytes(3, "big").hex().encode() for i in range(1_000_000)]
    return _write(directory, _database([_leaf_body(keys, [b""] * len(keys))]))


@_add
def a_node_of_many_empty_arrays(directory: Path) -> str:
    metadata = _zarray(shape=[0], chunks=[1])
    keys = [f"{i:06}/.zarray".encode() for i in range(200_000)]
    return _write(directory, _database([_leaf_body(keys, [metadata] * len(keys))]))


@_add
def a_manifest_of_many_long_files(directory: Path) -> str:
    n = 4000
    rows = varints([60_000] * (n - 1)) + varints([60_000] + [2] * (n - 1)) + varints([0] * n)
    table = varint(n) + rows + b"d" * 60_000 + b"".join(i.to_bytes(2, "big") for i in range(n - 1))
    head = bytes(16) + varints([0, 100, 1 << 28]) + b"\4" + varint(0)
    body = head + table + varint(1) + varint(1) + b"\0" + varints([0, 0, 100, 1, 1, 1])
    return _write(directory, {"manifest.ocdbt": seal(MANIFEST, body, 1)})


# Shards


def _zarr3(shape: int, shard: int, *inner: int, codecs: tuple[str, ...] = ("bytes",)) -> bytes:
    named: list[Any] = [{"name": "bytes"}]
    for size in reversed(inner):
        index = [{"name": name} for name in codecs]
        configuration = {"chunk_shape": [size], "codecs": named, "index_codecs": index}
        named = [{"name": "sharding_indexed", "configuration": configuration}]
    return json.dumps(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [shape],
            "data_type": "uint8",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard]}},
            "chunk_key_encoding": {"name": "default"},
            "fill_value": 0,
            "codecs": named,
        }
    ).encode()


@_add
def an_inline_shard_index(directory: Path) -> str:
    n = 1 << 23
    values = [b"\xff" * 16 * n, _zarr3(n, n, 1)]
    return _write(directory, _database([_leaf_body([b"a/c/0", b"a/zarr.json"], values)]))


def _sharded(directory: Path, metadata: bytes) -> Path:
    tree = json.dumps({"tree_metadata": _TREE, "use_ocdbt": False, "use_zarr3": True}).encode()
    _write(directory, {"_METADATA": tree, "a/zarr.json": metadata, "a/c/0": b""})
    return directory / "c" / "a" / "c" / "0"


@_add
def a_sparse_shard(directory: Path) -> str:
    n = 1 << 26
    os.truncate(_sharded(directory, _zarr3(n, n, 1)), 16 * n + 8)
    return "c"


@_add
def shards_in_shards_that_overlap(directory: Path) -> str:
    n = 1 << 15
    inner = np.full((n, 2), 2**64 - 1, "<u8").tobytes()
    outer = np.tile(np.array([0, len(inner)], "<u8"), (n, 1)).tobytes()
    _sharded(directory, _zarr3(n * n, n * n, n, 1)).write_bytes(inner + outer)
    return "c"


@_add
def a_shard_of_equal_values_in_blosc(directory: Path) -> str:
    inner = bytes(Blosc("zstd", 9).encode(np.zeros(1 << 26, np.uint8)))
    n = 900_000 // len(inner)
    index = [[i * len(inner), len(inner)] for i in range(n)]
    metadata = json.loads(_zarr3(n << 26, n << 26, 1 << 26))
    metadata["codecs"][0]["configuration"]["codecs"].append({"name": "blosc"})
    shard = inner * n + np.array(index, "<u8").tobytes()
    return _write(directory, {"zarr.json": json.dumps(metadata).encode(), "c/0": shard})


# Trees of zarr

_GROUP = b'{"zarr_format": 2}'


@_add
def a_tree_of_many_levels(directory: Path) -> str:
    return _write(directory, _database([_leaf_body([b"a/" * 30_000 + b".zarray"], [_zarray()])]))


@_add
def a_group_with_many_names_in_its_consolidated_metadata(directory: Path) -> str:
    names = {f"{i:05x}/.zarray": {} for i in range(50_000)}
    text = json.dumps({"metadata": names}).encode()
    return _write(directory, {".zgroup": _GROUP, ".zmetadata": text})


@_add
def attributes_of_many_levels(directory: Path) -> str:
    nested = b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    return _write(directory, {".zgroup": _GROUP, ".zattrs": nested})


@_add
def attributes_of_many_entries(directory: Path) -> str:
    text = json.dumps({str(i): [] for i in range(70_000)}).encode()
    return _write(directory, {".zgroup": _GROUP, ".zattrs": text})


# Documents


@_add
def a_msgpack_of_empty_lists(directory: Path) -> str:
    n = 900_000
    data = b"\x81\xa1a\xdd" + n.to_bytes(4, "big") + b"\x90" * n
    return _write(directory, {"checkpoint": data})


@_add
def a_msgpack_of_small_numbers(directory: Path) -> str:
    n = 900_000
    data = b"\x81\xa1a\xdd" + n.to_bytes(4, "big") + b"\1" * n
    return _write(directory, {"checkpoint": data})


@_add
def a_flax_file_of_small_numbers(directory: Path) -> str:
    from flax.serialization import msgpack_serialize  # takes a second, and only this one needs it

    data, n = msgpack_serialize({"w": np.zeros(4, np.float32)}), 33_000
    assert data[:1] == b"\x81"
    path = directory / "a.msgpack"
    path.write_bytes(b"\x82" + data[1:] + b"\xa1a\xdd" + n.to_bytes(4, "big") + b"\1" * n)
    return str(path)


@_add
def a_msgpack_of_deep_maps(directory: Path) -> str:
    return _write(directory, {"checkpoint": b"\x81\xa1a" * 300_000 + b"\xc0"})


@_add
def a_msgpack_of_wide_branches(directory: Path) -> str:
    inner: Any = {"k" * 60_000: 1}
    for _ in range(10):
        inner = {"k": inner, "l": 1}
    return _write(directory, {"checkpoint": msgspec.msgpack.encode(inner)})


def _flax_array(shape: list[int], data: bytes) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(1, msgspec.msgpack.encode([shape, "int8", data]))


@_add
def a_flax_file_of_tiny_arrays(directory: Path) -> str:
    array = _flax_array([15], b"x" * 15)
    tree = {format(i, "x"): array for i in range(15_000)}  # close to the limit
    directory.joinpath("state").write_bytes(msgspec.msgpack.encode(tree))
    return "state"


@_add
def a_flax_file_of_arrays_of_many_dimensions(directory: Path) -> str:
    array = _flax_array([1] * 32, b"x")
    tree = {format(i, "x"): array for i in range(18_000)}
    directory.joinpath("state").write_bytes(msgspec.msgpack.encode(tree))
    return "state"


@_add
def a_flax_file_of_arrays_in_many_pieces(directory: Path) -> str:
    piece, shape = _flax_array([6], b"abcdef"), (1,) * 26 + (2, 2, 2, 3, 4, 125)
    chunked = {
        "__msgpack_chunked_array__": True,
        "shape": {str(i): n for i, n in enumerate(shape)},
        "chunks": {str(i): piece for i in range(2000)},
    }
    tree = {"a": chunked, "b": chunked}
    directory.joinpath("state").write_bytes(msgspec.msgpack.encode(tree))
    return "state"


@_add
def metadata_of_deep_lists(directory: Path) -> str:
    deep = b"[" * 400_000 + b"]" * 400_000
    tree = json.dumps({"tree_metadata": _TREE, "use_ocdbt": False}).encode()
    files = {
        "_METADATA": tree[:-1] + b', "custom_metadata": ' + deep + b"}",
        "_CHECKPOINT_METADATA": b'{"custom_metadata": ' + deep + b"}",
        "_sharding": b'{"YQ==": "' + deep + b'"}',
        "a/.zarray": _zarray(),
        "a/0": bytes(16),
    }
    return _write(directory, files)


def _index(**fields: Any) -> bytes:
    n = fields.pop("n", 0)
    body = {
        "files": [], "others": {}, "paths": [[f"{i}"] for i in range(n)],
        "kinds": bytes(n), "dtypes": ["uint8"], "dtype": bytes(2 * n), "shapes": [[0], [1]],
        "shape": bytes(4 * n), "chunk": b"\1\0\0\0" * n, "codecs": bytes(n), "counts": bytes(4 * n),
        "file": b"", "offset": b"", "nbytes": b"", "crc32c": b"", "fingerprint": bytes(4 * n),
    }  # fmt: skip
    return seal_index(msgspec.msgpack.encode(body | fields))


@_add
def an_index_of_many_empties(directory: Path) -> str:
    tree = json.dumps({"tree_metadata": {}}).encode()
    empties = [[[i], ""] for i in range(100_000)] + [[[], ""]] * 100_000
    return _write(directory, {"_METADATA": tree, "templax.index": _index(empties=empties)})


@_add
def an_index_with_one_long_sharding_for_all(directory: Path) -> str:
    sharding = {
        "sharding_type": "NamedSharding", "axis_names": ["x"], "shape": [8],
        "partition_spec": ["x" * 300_000],
    }  # fmt: skip
    n = 10_000
    index = _index(n=n, shardings=[json.dumps(sharding)], sharding=bytes(4 * n))
    return _write(directory, {"_METADATA": b'{"tree_metadata": {}}', "templax.index": index})


@_add
def an_index_of_one_path_many_times(directory: Path) -> str:
    index = _index(n=30_000, paths=[["a"]] * 30_000)
    return _write(directory, {"_METADATA": b'{"tree_metadata": {}}', "templax.index": index})


@_add
def an_index_of_deep_paths(directory: Path) -> str:
    index = _index(n=400, paths=[[0] * 2000 + [i] for i in range(400)])
    return _write(directory, {"_METADATA": b'{"tree_metadata": {}}', "templax.index": index})


# Directories


@_add
def links_that_double_at_each_level(directory: Path) -> str:
    root = directory / "c"
    for level in range(24):
        (root / str(level)).mkdir(parents=True)
        for name in ("l", "r"):
            os.symlink(f"../{level + 1}", root / str(level) / name)
    (root / "24").mkdir()
    (root / "24" / "_METADATA").write_text('{"tree_metadata": {}}')
    return "c/0"


@_add
def links_that_go_round(directory: Path) -> str:
    root = directory / "c" / "1"
    root.mkdir(parents=True)
    for i in range(50):
        os.symlink("..", root / f"{i}")
    os.symlink("self", root / "self")
    return "c"


# GGUF


def _gguf(directory: Path, entries: int, tensors: int, body: bytes) -> str:
    path = directory / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, entries) + body + bytes(64))
    return path.name


@_add
def gguf_tensors_without_elements(directory: Path) -> str:
    rest = struct.pack("<IQIQ", 1, 0, 12, 0)
    names = [f"{i:x}".encode() for i in range(26_000)]
    return _gguf(directory, 0, len(names), b"".join(_gguf_text(name) + rest for name in names))


@_add
def gguf_metadata_of_many_keys(directory: Path) -> str:
    names = [f"{i:x}".encode() for i in range(55_000)]
    value = struct.pack("<IB", 7, 1)
    return _gguf(directory, len(names), 0, b"".join(_gguf_text(name) + value for name in names))


@_add
def a_gguf_list_of_many_texts(directory: Path) -> str:
    listed = struct.pack("<IIQ", 9, 8, 120_000) + bytes(8 * 120_000)
    return _gguf(directory, 1, 0, _gguf_text(b"a") + listed)


@_add
def gguf_tensors_of_many_dimensions(directory: Path) -> str:
    rest = struct.pack("<I31QQIQ", 32, *([1 << 63] * 31), 0, 0, 0)
    names = [f"{i:x}".encode() for i in range(3_000)]
    return _gguf(directory, 0, len(names), b"".join(_gguf_text(name) + rest for name in names))


@_add
def gguf_blocks_of_many_elements(directory: Path) -> str:
    shape = struct.pack("<IQQIQ", 2, 256, 11_000, 10, 0)  # Q2_K: 84 bytes for 256 elements
    return _gguf(directory, 0, 1, _gguf_text(b"w") + shape + bytes(11_000 * 84))


def _gguf_text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data
