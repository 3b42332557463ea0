"""Writes the cases `zarr-*` with zarr-python 2 and 3 and with TensorStore.

Run in an environment of each:
    python tests/corpus/write_zarr_files.py zarr2         zarr 2.18.7, numcodecs 0.15.2
    python tests/corpus/write_zarr_files.py zarr3         zarr 3.1.6, numcodecs 0.16.6
    python tests/corpus/write_zarr_files.py tensorstore   TensorStore 0.1.86, ml_dtypes
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent

RNG = np.random.default_rng(0)


def record(case: str, how: str, leaves: dict[str, np.ndarray]) -> Path:
    directory = HERE / case
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    expected = {
        name: {
            "dtype": array.dtype.name,
            "kind": "array",
            "sha256": hashlib.sha256(
                array.astype(array.dtype.newbyteorder("<")).tobytes()
            ).hexdigest(),
            "shape": list(array.shape),
        }
        for name, array in leaves.items()
    }
    (directory / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True))
    (directory / "HOW.json").write_text(json.dumps({"how": how}, indent=1))
    return directory / "tree.zarr"


def make_sparse() -> np.ndarray:
    """Zeros, which are the fill value, in two of four chunks."""
    sparse = np.zeros((4, 6), "f4")
    sparse[:2, :3], sparse[2:, 3:] = 1.5, -2
    return sparse


def write_zarr2() -> None:
    import numcodecs
    import zarr

    leaves = {
        "kernel": RNG.normal(size=(7, 5)).astype("f4"),
        "step": np.array(12, "i8"),
        "encoder/layer_0/w": RNG.normal(size=(5, 6)).astype("f2"),
        "encoder/layer_0/fortran": RNG.normal(size=(4, 5, 3)),
        "encoder/layer_1/big": RNG.normal(size=(3, 4)).astype(">f4"),
        "encoder/layer_1/phase": (RNG.normal(size=6) + 1j).astype(">c16"),
        "encoder/mask": np.array([True, False, True]),
        "encoder/empty": np.zeros((0, 3), "u2"),
        "sparse": make_sparse(),
        "codecs/zlib": np.arange(300, dtype="u4").reshape(20, 15),
        "codecs/gzip": np.arange(60, dtype="u1"),
        "codecs/zstd": np.arange(60, dtype="i2"),
        "codecs/lz4": np.arange(100, dtype="i4"),
        "codecs/raw": np.arange(9, dtype="f8"),
        "codecs/bits": np.arange(200, dtype="i4"),
    }
    blosc = numcodecs.Blosc("zstd", 3, numcodecs.Blosc.BITSHUFFLE)
    options: dict[str, dict[str, Any]] = {
        "encoder/layer_0/fortran": {"order": "F", "chunks": (2, 5, 2)},
        "encoder/layer_0/w": {"dimension_separator": "/", "chunks": (3, 6)},
        "sparse": {"chunks": (2, 3), "fill_value": 0, "write_empty_chunks": False},
        "codecs/zlib": {"compressor": numcodecs.Zlib(1)},
        "codecs/gzip": {"compressor": numcodecs.GZip(1)},
        "codecs/zstd": {"compressor": numcodecs.Zstd(1)},
        "codecs/lz4": {"compressor": numcodecs.LZ4()},
        "codecs/raw": {"compressor": None, "chunks": (4,)},
        "codecs/bits": {"compressor": blosc},
    }
    path = record("zarr-2.18.7", "zarr.open_group, consolidate_metadata; zarr 2.18.7", leaves)
    root = zarr.open_group(str(path), "w")
    for name, values in leaves.items():
        chunks = values.shape if values.size else True
        root.create_dataset(name, data=values, **{"chunks": chunks} | options.get(name, {}))
    root.attrs["run"] = {"name": "base", "lr": 0.1}
    root["encoder"].attrs["depth"] = 2
    root["kernel"].attrs["unit"] = "1"
    root.create_group("nothing")
    root.create_dataset("names", data=np.array(["a", "bc"]))
    zarr.consolidate_metadata(str(path))


def write_zarr3() -> None:
    import zarr
    from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

    leaves = {
        "kernel": RNG.normal(size=(7, 5)).astype("f4"),
        "step": np.array(12, "i8"),
        "encoder/layer_0/w": RNG.normal(size=(8, 6)).astype("f2"),
        "encoder/layer_0/fortran": RNG.normal(size=(4, 5, 3)),
        "encoder/layer_1/big": RNG.normal(size=(3, 4)).astype("f4"),
        "encoder/mask": np.array([True, False, True]),
        "encoder/empty": np.zeros((0, 3), "u2"),
        "sparse": make_sparse(),
        "sparse_shards": make_sparse(),
        "codecs/blosc": np.arange(300, dtype="u4").reshape(20, 15),
        "codecs/gzip": np.arange(60, dtype="u1"),
        "codecs/crc32c": np.arange(60, dtype="i2"),
        "codecs/checked_gzip": np.arange(60, dtype="i2"),
    }
    big = {"serializer": BytesCodec(endian="big")}
    options: dict[str, dict[str, Any]] = {
        "encoder/layer_0/w": {"shards": (4, 6), "chunks": (2, 3)},
        "encoder/layer_0/fortran": {
            "chunks": (2, 5, 2),
            "filters": [TransposeCodec(order=(2, 1, 0))],
        },
        "encoder/layer_1/big": big | {"compressors": [ZstdCodec(level=1)]},
        "sparse": {"chunks": (2, 3), "chunk_key_encoding": {"name": "v2", "separator": "."}},
        "sparse_shards": {"shards": (4, 6), "chunks": (2, 3)},
        "codecs/blosc": {"compressors": [BloscCodec(cname="lz4", clevel=5, shuffle="shuffle")]},
        "codecs/gzip": {"compressors": [GzipCodec(level=1)]},
        "codecs/crc32c": {"compressors": [Crc32cCodec()], "chunks": (25,)},
        "codecs/checked_gzip": {"compressors": [GzipCodec(level=1), Crc32cCodec()]},
    }
    path = record("zarr-3.1.6", "zarr.open_group, consolidate_metadata; zarr 3.1.6", leaves)
    root = zarr.open_group(str(path), mode="w", zarr_format=3)
    for name, values in leaves.items():
        group, _, last = name.rpartition("/")
        parent = root.require_group(group) if group else root
        kept = options.get(name, {})
        parent.create_array(last, data=values, **{"chunks": values.shape or "auto"} | kept)
    root.attrs["run"] = {"name": "base", "lr": 0.1}
    root["encoder"].attrs["depth"] = 2
    root["kernel"].attrs["unit"] = "1"
    root.create_group("nothing")
    root.create_array("names", data=np.array(["a", "bc"]))
    zarr.consolidate_metadata(str(path))
    only = RNG.normal(size=(5, 4)).astype("f4")
    path = record("zarr-array", "zarr.create_array at the root; zarr 3.1.6", {"": only})
    zarr.create_array(str(path), data=only, chunks=(2, 4))


def write_tensorstore() -> None:
    import ml_dtypes
    import tensorstore as ts

    leaves = {
        "params/dense/kernel": RNG.normal(size=(40, 30)).astype("f4"),
        "params/dense/bias": RNG.normal(size=5).astype(ml_dtypes.bfloat16),
        "params/scale": np.arange(6).astype(ml_dtypes.float8_e4m3fn),
        "opt/mu": RNG.normal(size=(6, 4)).astype("f4"),
        "opt/sparse": make_sparse(),
        "step": np.array(12, "i4"),
    }
    blosc = {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1}
    path = record("zarr-ocdbt", "ts.open of zarr and zarr3 over kvstore ocdbt; 0.1.86", leaves)
    store: dict[str, Any] = {"driver": "ocdbt", "base": f"file://{path}/"}
    for name, values in leaves.items():
        driver = "zarr3" if name.startswith("opt/") else "zarr"
        chunks = [max(n // 2, 1) for n in values.shape]
        if driver == "zarr":
            metadata: dict[str, Any] = {"chunks": chunks, "compressor": blosc}
        else:
            grid = {"name": "regular", "configuration": {"chunk_shape": chunks}}
            metadata = {"chunk_grid": grid}
        spec = {
            "driver": driver,
            "kvstore": {**store, "path": f"{name}/"},
            "metadata": metadata,
            "create": True,
        }
        array = ts.open(spec, dtype=values.dtype.name, shape=values.shape).result()
        array.write(values).result()
    kv = ts.KvStore.open(store).result()
    kv.write("notes/readme", b"hello").result()
    kv.write("seed", b"7").result()


if __name__ == "__main__":
    {"zarr2": write_zarr2, "zarr3": write_zarr3, "tensorstore": write_tensorstore}[sys.argv[1]]()
