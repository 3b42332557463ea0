"""What `convert` writes, read by the libraries of each format, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.flax
import safetensors.numpy

import templax as tx

TREE = {
    "params": {
        "dense": {"kernel": jnp.arange(12.0).reshape(3, 4) / 7, "bias": jnp.ones(4, jnp.bfloat16)},
        "table": jnp.arange(300 * 5, dtype=jnp.int32).reshape(300, 5),
    },
    "count": jnp.asarray(3),
}


def check(tree: Any, wanted: Any = TREE) -> None:
    found, expected = (jax.tree_util.tree_flatten_with_path(each)[0] for each in (tree, wanted))
    assert [path for path, _ in found] == [path for path, _ in expected]
    for (_, a), (_, b) in zip(found, expected, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def flatten(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {".".join(str(key.key) for key in path): leaf for path, leaf in leaves}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of stock Orbax: one zstd chunk for each array."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "orbax", TREE)
    return tmp_path / "orbax"


@pytest.mark.slow
def test_orbax_becomes_safetensors_and_comes_back(saved: Path, tmp_path: Path) -> None:
    tx.convert(saved, tmp_path / "m.safetensors")
    check(safetensors.numpy.load_file(tmp_path / "m.safetensors"), flatten(TREE))
    check(safetensors.flax.load_file(tmp_path / "m.safetensors"), flatten(TREE))
    tx.convert(tmp_path / "m.safetensors", tmp_path / "back", to="orbax")
    with ocp.StandardCheckpointer() as checkpointer:
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, TREE)
        check(checkpointer.restore(tmp_path / "back", abstract))
    with ocp.PyTreeCheckpointer() as checkpointer:
        check(checkpointer.restore(tmp_path / "back"))


@pytest.mark.slow
def test_flax_reads_msgpack(saved: Path, tmp_path: Path) -> None:
    tx.convert(saved, tmp_path / "m.msgpack")
    data = (tmp_path / "m.msgpack").read_bytes()
    check(flax.serialization.from_bytes(jax.tree.map(jnp.zeros_like, TREE), data))
    check(flax.serialization.msgpack_restore(data))


def test_numpy_reads_npz(saved: Path, tmp_path: Path) -> None:
    tx.convert(saved, tmp_path / "m.npz", cast="float32")
    wanted = jax.tree.map(lambda x: x.astype("float32") if x.dtype == jnp.bfloat16 else x, TREE)
    with np.load(tmp_path / "m.npz") as archive:
        check({name: archive[name] for name in archive.files}, flatten(wanted))


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_orbax_reads_chunks_of_another_size(
    saved: Path, tmp_path: Path, compression: str | None
) -> None:
    tx.convert(saved, tmp_path / "x", to="orbax", chunk_size=64, compression=compression)
    with ocp.StandardCheckpointer() as checkpointer:
        check(checkpointer.restore(tmp_path / "x", jax.tree.map(np.asarray, TREE)))
