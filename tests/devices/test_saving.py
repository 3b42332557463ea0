"""Saves with any sharding, restored with any other; both have one fingerprint."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

import templax as tx
from helpers import count_examples
from templax._core import chunk_grid
from templax.formats.orbax import checksum_index
from templax.testing import strategies

ARRAYS = strategies.arrays()
TREES = strategies.trees(ARRAYS)


def _place(data: st.DataObject, tree: Any) -> Any:
    def place(array: np.ndarray) -> Any:
        if data.draw(st.booleans()):
            return array
        sharding = data.draw(strategies.shardings(array.shape))
        return jnp.asarray(array) if sharding is None else jax.device_put(array, sharding)

    return jax.tree.map(place, tree)


def _make_template(data: st.DataObject, tree: Any) -> Any:
    def leaf(array: np.ndarray) -> jax.ShapeDtypeStruct:
        sharding = data.draw(strategies.shardings(array.shape))
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    return jax.tree.map(leaf, tree)


@count_examples(60)
@given(
    TREES,
    st.data(),
    st.sampled_from([None, "zstd"]),
    st.booleans(),
    st.sampled_from([4 << 20, 64, 24, 7]),
    st.booleans(),
)
def test_a_tree_saved_with_any_shardings_is_restored_with_any_others(
    tree: Any, data: st.DataObject, compression: str | None, wait: bool, chunk: int, index: bool
) -> None:
    """Random trees, dtypes, bits, meshes, shardings on both sides, and chunk sizes."""
    value, template = _place(data, tree), _make_template(data, tree)
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk_grid, "CHUNK_BYTES", chunk)
        chunk_grid.chunk_shape.cache_clear()
        path = Path(directory) / "ckpt"
        saved = tx.save(path, value, compression=compression, wait=wait).wait()
        if not index:
            (path / checksum_index.INDEX_FILE).unlink()
        restored = tx.restore(path, template, verify="required" if index else "available")
    chunk_grid.chunk_shape.cache_clear()
    assert saved.fingerprint == tx.fingerprint(tree) == tx.fingerprint(restored)
    assert jax.tree.structure(restored) == jax.tree.structure(template)
    for got, want, leaf in zip(*map(jax.tree.leaves, (restored, tree, template)), strict=True):
        assert np.asarray(got).tobytes() == want.tobytes()
        assert leaf.sharding is None or got.sharding == leaf.sharding


@pytest.mark.parametrize("spec", [("x",), (None, "x"), ("y", "x"), (("x", "y"),), ()])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_sharded_leaf_is_one_range_of_the_file(
    spec: tuple[Any, ...], compression: str | None, tmp_path: Path
) -> None:
    """Whatever its sharding, so a restore to other devices reads whole ranges."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    host = np.random.default_rng(0).standard_normal((2048, 1536)).astype(np.float32)
    array = jax.device_put(host, NamedSharding(mesh, PartitionSpec(*spec)))
    saved = tx.save(tmp_path / "ckpt", {"w": array}, compression=compression)
    catalog = tx.open(tmp_path / "ckpt")
    chunks = catalog.locate(catalog.entries)["w"]
    assert len(chunks) == (1 if compression is None else 4)
    assert saved.fingerprint == tx.fingerprint({"w": host})
    np.testing.assert_array_equal(tx.restore(catalog, {"w": host})["w"], host)
