"""Views of checkpoints that Orbax wrote into an OCDBT database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import templax as tx

SHAPE = (24, 16)

RULES: dict[str, Any] = {
    "layers": tx.From("layer_{i}.weight", "(h k) d -> i d h k", h=4),
    "table": tx.From("embed", "v d -> d v", scale=2, pad={"v": -1}, v=12),
    "both": tx.Concat(["bias", tx.From("bias", "d -> d", flip="d")], "[d]"),
    "count": "step",
}


def make_tree() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    tree: dict[str, Any] = {
        f"layer_{i}": {"weight": jnp.asarray(rng.normal(size=SHAPE), jnp.float32)} for i in range(3)
    }
    tree["embed"] = jnp.asarray(rng.normal(size=(10, 16)), jnp.bfloat16)
    tree["bias"] = jnp.arange(40, dtype=jnp.float32)
    tree["step"] = 7
    return tree


def save(path: Path, tree: Any, zarr3: bool, chunk_bytes: int | None) -> None:
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=zarr3))
    how = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=chunk_bytes), tree)
    checkpointer.save(path, args=ocp.args.PyTreeSave(tree, save_args=how))
    checkpointer.close()
    assert (path / "manifest.ocdbt").exists()


def make_expected(tree: Any) -> dict[str, np.ndarray]:
    layers = [np.asarray(tree[f"layer_{i}"]["weight"]) for i in range(3)]
    table = np.asarray(tree["embed"]).astype(np.float32).T * 2
    bias = np.asarray(tree["bias"])
    return {
        "layers": np.stack([w.reshape(4, 6, 16).transpose(2, 0, 1) for w in layers]),
        "table": np.pad(table, ((0, 0), (0, 2)), constant_values=-1),
        "both": np.concatenate([bias, bias[::-1]]),
        "count": np.asarray(7),
    }


@pytest.mark.parametrize("zarr3", [False, True])
@pytest.mark.parametrize("chunk_bytes", [None, 256])
def test_a_view_of_a_database_of_orbax(
    zarr3: bool, chunk_bytes: int | None, tmp_path: Path
) -> None:
    tree = make_tree()
    save(tmp_path / "ckpt", tree, zarr3, chunk_bytes)
    expected = make_expected(tree)
    view = tx.view(tmp_path / "ckpt", tx.Mapping(RULES))
    most = max(len(chunks) for chunks in tx.open(view).locate(tx.open(view).entries).values())
    assert most == (18 if chunk_bytes else 3)
    template: dict[str, Any] = {
        name: jax.ShapeDtypeStruct(values.shape, jnp.float32) for name, values in expected.items()
    }
    template["count"] = 0
    made = tx.restore(view, template)
    for name, values in expected.items():
        np.testing.assert_array_equal(np.asarray(made[name]), values, err_msg=name)
    assert tx.verify(view).ok
    tx.convert(view, tmp_path / "made.safetensors", cast="float32")
    written = tx.restore(
        tmp_path / "made.safetensors",
        {name: np.empty(v.shape, v.dtype) for name, v in expected.items()},
    )
    for name, values in expected.items():
        np.testing.assert_array_equal(written[name], values, err_msg=name)


def test_a_layer_of_a_database_is_read_alone(tmp_path: Path) -> None:
    tree = make_tree()
    save(tmp_path / "ckpt", tree, False, None)
    one = tx.Mapping({"w": tx.From("layer_1.weight", "(h k) d -> d h k", h=4)}, rest="keep")
    view = tx.view(tmp_path / "ckpt", one)
    plan = tx.plan(view, {"w": np.empty((16, 4, 6), np.float32)}, extra="ignore")
    whole = tx.plan(tmp_path / "ckpt", tx.open(tmp_path / "ckpt").template())
    assert 0 < plan.read_bytes < whole.read_bytes / 2
