"""What `save` writes: every leaf can be restored as it was, and the layout of the files."""

from __future__ import annotations

import base64
import enum
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import templax as tx
from helpers import assert_same_tree, skip_without_dtype
from templax._core import chunk_grid
from templax._core.dtypes import DTYPES
from templax.formats.orbax import checksum_index

COMPRESSIONS = [None, "zstd", "zstd:7"]


def make_values(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> np.ndarray:
    dtype = np.dtype(dtype)
    raw = np.random.default_rng(seed).integers(0, 256, (*shape, dtype.itemsize), np.uint8)
    if dtype.kind == "b":
        raw &= 1
    if "int4" in dtype.name or "float4" in dtype.name:
        raw &= 15
    if "int2" in dtype.name:
        raw &= 3
    if "float6" in dtype.name:
        raw &= 63
    return raw.view(dtype).reshape(shape)


class EmptyState(NamedTuple):
    """A node without children, as in the state of many optimizers."""


@pytest.fixture
def tree() -> dict[str, Any]:
    return {
        "w": jnp.arange(600, dtype=jnp.float32).reshape(30, 20),
        "layers": [{"b": jnp.ones(5, jnp.bfloat16)}, (np.arange(6).reshape(2, 3), np.float16(3))],
        "numbers": {"int": -7, "float": 0.1, "bool": True, "complex": 1j, "text": "hi\nthere"},
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(1, impl="rbg"), 3),
        "int4": jnp.arange(-8, 8).astype(jnp.int4),
        "fp8": jnp.float8_e4m3fn(2.0),
        "nothing": np.zeros((0, 3), np.int8),
        "empty": {"none": None, "dict": {}, "list": [], "tuple": (), "state": EmptyState()},
        "a.b/c d": np.array("2026-11-24", "datetime64[D]").astype(np.int64),
        "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        "strided": np.arange(20, dtype=np.int16)[::3],
        "big endian": np.arange(5, dtype=">i8"),
        "large": np.arange(1_300_000, dtype=np.int32).reshape(1300, 1000),
    }


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("index", [True, False])
def test_every_kind_of_leaf_is_restored(
    tree: Any, tmp_path: Path, compression: str | None, wait: bool, index: bool
) -> None:
    saved = tx.save(tmp_path / "ckpt", tree, compression=compression, wait=wait).wait()
    if not index:  # read the files of Orbax, as other programs do
        (tmp_path / "ckpt" / checksum_index.INDEX_FILE).unlink()
        # Orbax has no complex scalar; without the index it is an array.
        tree["numbers"]["complex"] = np.asarray(1j)
    restored = tx.restore(tmp_path / "ckpt", tree, verify="required" if index else "available")
    assert_same_tree(restored, tree)
    if index:
        assert tx.fingerprint(restored) == saved.fingerprint == tx.fingerprint(tree)


def test_a_cpu_is_recorded_under_the_name_that_orbax_looks_up(tmp_path: Path) -> None:
    tx.save(tmp_path / "ckpt", {"w": jax.device_put(1.0, jax.devices()[3])})
    (sharding,) = json.loads((tmp_path / "ckpt" / "_sharding").read_text()).values()
    assert json.loads(sharding)["device_str"] == "TFRT_CPU_3"


@pytest.mark.parametrize("name", ["ab~", "ab?", "\x83Û\U000e7593"])
def test_shardings_are_recorded_under_the_names_that_orbax_looks_up(
    name: str, tmp_path: Path
) -> None:
    tx.save(tmp_path / "ckpt", {name: jax.device_put(1.0, jax.devices()[3])})
    (found,) = json.loads((tmp_path / "ckpt" / "_sharding").read_text())
    assert found == base64.urlsafe_b64encode(name.encode()).decode()
    assert found != base64.b64encode(name.encode()).decode()
    (tmp_path / "ckpt" / checksum_index.INDEX_FILE).unlink()
    assert tx.open(tmp_path / "ckpt").entries[0].saved_sharding == "single device TFRT_CPU_3"


def test_the_index_agrees_with_the_files_of_orbax(tree: Any, tmp_path: Path) -> None:
    tx.save(tmp_path / "ckpt", tree, metadata={"run": 3})
    ours = tx.open(tmp_path / "ckpt")
    (tmp_path / "ckpt" / checksum_index.INDEX_FILE).unlink()
    theirs = tx.open(tmp_path / "ckpt")
    assert ours.evidence != theirs.evidence

    def facts(catalog: tx.Catalog) -> list[Any]:
        return [
            (e.path, e.shape, e.dtype, e.key_impl, e.value, e.saved_sharding)
            for e in catalog.entries
        ]

    assert facts(ours) == facts(theirs)
    # Orbax 0.6 can't read a tree with an empty type that it does not know.
    names = {"Tuple": "List", "NamedTuple": "None"}
    assert theirs.empties == {path: names.get(e, e) for path, e in ours.empties.items()}
    assert set(names) < set(ours.empties.values())
    assert ours.metadata == theirs.metadata
    assert ours.metadata["custom_metadata"] == {"run": 3}
    a, b = ours.locate(ours.entries), theirs.locate(theirs.entries)
    for name, chunks in a.items():
        places = {(c.extent.key, c.extent.start) for c in chunks}
        assert places <= {(c.extent.key, c.extent.start) for c in b[name]}, name
        assert all(c.checked and c.sums for c in chunks), name


@pytest.mark.parametrize("name", sorted(DTYPES))
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_every_dtype_is_restored_bit_for_bit(
    name: str, compression: str | None, tmp_path: Path
) -> None:
    array = make_values((7, 5), DTYPES[name])
    saved = tx.save(tmp_path / "ckpt", {"x": array}, compression=compression)
    restored = tx.restore(tmp_path / "ckpt", {"x": np.empty_like(array)})["x"]
    assert restored.tobytes() == array.tobytes()
    assert tx.fingerprint({"x": restored}) == saved.fingerprint


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int2", "float4_e2m1fn"])
def test_padding_bits_of_small_dtypes_are_cleared(dtype: str, tmp_path: Path) -> None:
    """An element smaller than a byte occupies one; the upper bits are not part of its value."""
    skip_without_dtype(dtype)
    dirty = np.arange(256, dtype=np.uint8).view(np.dtype(getattr(ml_dtypes, dtype)))
    clean = (np.arange(256) & (3 if "2" in dtype[-1] else 15)).astype(np.uint8).view(dirty.dtype)
    tx.save(tmp_path / "ckpt", {"x": dirty})
    restored = tx.restore(tmp_path / "ckpt", {"x": dirty})["x"]
    assert restored.tobytes() == clean.tobytes()
    assert tx.fingerprint({"x": dirty}) == tx.fingerprint({"x": clean})


def test_an_opened_checkpoint_has_the_recorded_fingerprint(tree: Any, tmp_path: Path) -> None:
    saved = tx.save(tmp_path / "ckpt", tree)
    assert tx.fingerprint(tx.open(tmp_path / "ckpt")) == saved.fingerprint
    for path in (tmp_path / "ckpt", str(tmp_path / "ckpt")):
        with pytest.raises(tx.UsageError, match="got a path"):
            tx.fingerprint(path)
    (tmp_path / "ckpt" / checksum_index.INDEX_FILE).unlink()
    with pytest.raises(tx.UsageError, match="that templax saved"):
        tx.fingerprint(tx.open(tmp_path / "ckpt"))


def test_a_bare_leaf_and_an_empty_tree_can_be_saved(tmp_path: Path) -> None:
    tx.save(tmp_path / "leaf", jnp.arange(3))
    np.testing.assert_array_equal(tx.restore(tmp_path / "leaf", jnp.zeros(3, int)), [0, 1, 2])
    saved = tx.save(tmp_path / "nothing", {})
    assert saved.leaves == 0
    assert tx.open(tmp_path / "nothing").empties == {(): "Dict"}


def test_functions_come_from_the_template(tmp_path: Path) -> None:
    """A whole model as template has functions, which hold no data."""
    model = {"w": jnp.ones(3), "act": jax.nn.relu, "norm": np.float32}
    assert tx.save(tmp_path / "ckpt", model).leaves == 1
    restored = tx.restore(tmp_path / "ckpt", {"w": jnp.zeros(3), "act": jax.nn.relu})
    assert restored["act"] is jax.nn.relu


def test_a_string_enum_is_saved_as_its_value(tmp_path: Path) -> None:
    class Colour(str, enum.Enum):  # noqa: UP042  (whose str() is another)
        RED = "red"

    tx.save(tmp_path / "ckpt", {"c": Colour.RED})
    assert tx.restore(tmp_path / "ckpt", {"c": ""}) == {"c": "red"}


def test_a_leaf_is_one_aligned_range_that_can_be_mapped(tree: Any, tmp_path: Path) -> None:
    tx.save(tmp_path / "ckpt", tree)
    catalog = tx.open(tmp_path / "ckpt")
    for name, chunks in catalog.locate(catalog.entries).items():
        leaf = catalog.leaves[name]
        if leaf.nbytes and leaf.kind != "string":
            (chunk,) = chunks
            assert chunk.extent.start % 64 == 0
            assert chunk.extent.nbytes == leaf.nbytes
            assert chunk.box == tuple((0, n) for n in leaf.shape)
            assert chunk.block <= chunk_grid.CHUNK_BYTES
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    template = {"large": jax.ShapeDtypeStruct((1300, 1000), np.int32, sharding=here)}
    plan = tx.plan(catalog, template, extra="ignore", mapped=True)
    assert plan.mapped_bytes == plan.placed_bytes == 5_200_000


@pytest.mark.slow
def test_small_leaves_share_files(tmp_path: Path) -> None:
    tx.save(tmp_path / "ckpt", {f"w{i}": np.full(100, i, np.float32) for i in range(3000)})
    assert sum(f.is_file() for f in (tmp_path / "ckpt").rglob("*")) <= 8
    catalog = tx.open(tmp_path / "ckpt")
    assert tx.plan(catalog, catalog.template()).requests <= 2


def test_compression_reduces_the_size(tmp_path: Path) -> None:
    tree = {"w": jnp.zeros((1000, 1000))}
    raw = tx.save(tmp_path / "raw", tree).nbytes
    small = tx.save(tmp_path / "zstd", tree, compression="zstd").nbytes
    assert small < raw / 100
    (chunk,) = (catalog := tx.open(tmp_path / "zstd")).locate(catalog.entries)["w"]
    assert chunk.codecs == ("zstd",)
