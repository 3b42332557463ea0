"""The containers, leaves and bits that a restore returns."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, struct
from flax.core import freeze

import templax as tx
from helpers import abstract, assert_same_tree, catch_mismatches, copy_case

A = jax.ShapeDtypeStruct


class Pair(NamedTuple):
    left: Any
    right: Any


@struct.dataclass
class State:
    step: Any
    pair: Any


def test_containers_come_from_the_template(save: Any) -> None:
    """NamedTuples, dataclasses, FrozenDicts, tuples and optax states, never dicts and lists."""
    tree = {
        "state": State(jnp.int32(1), Pair(jnp.ones(2), (jnp.zeros(3), [jnp.ones(1)]))),
        "opt": optax.adam(0.1).init({"w": jnp.ones(2)}),
        "frozen": freeze({"a": {"b": jnp.ones(2)}}),
    }
    got = tx.restore(save(tree), abstract(tree))
    assert_same_tree(got, tree)
    assert type(got["state"].pair) is Pair
    assert type(got["opt"][0]) is type(tree["opt"][0])
    assert type(got["opt"][1]) is optax.EmptyState


def test_empty_containers_come_from_the_template(save: Any) -> None:
    tree = {"w": jnp.ones(2), "none": None, "empty": {}, "state": optax.EmptyState()}
    got = tx.restore(save(tree), {**tree, "w": A((2,), jnp.float32)})
    assert (got["none"], got["empty"], got["state"]) == (None, {}, optax.EmptyState())


def test_a_single_array_is_a_template(save: Any) -> None:
    path = save({"w": jnp.arange(3.0)})
    assert tx.restore(path, A((3,), jnp.float32), at="w").tolist() == [0, 1, 2]


def test_an_array_saved_alone_is_restored_alone(save: Any) -> None:
    for name, options in (("a", {}), ("b", {"use_ocdbt": False}), ("c", {"use_zarr3": True})):
        path = save(jnp.arange(3.0), name, **options)
        assert tx.restore(path, A((3,), jnp.float32)).tolist() == [0, 1, 2]
        assert catch_mismatches(path, A((4,), jnp.float32)) == [("shape", "")]


def test_strings_and_numbers_are_leaves(save: Any) -> None:
    tree = {"s": "text", "n": 3, "x": 0.5, "w": jnp.ones(2)}
    path = save(tree)
    template = {"s": str, "n": int, "x": float, "w": A((2,), jnp.float32)}
    got = tx.restore(path, template)
    assert (got["s"], got["n"], got["x"]) == ("text", 3, 0.5)
    assert catch_mismatches(path, {**template, "s": A((), jnp.float32)}) == [("kind", "s")]


def test_the_step_is_a_leaf(save: Any) -> None:
    """It is read from the state, not guessed from the name of the directory."""
    path = save({"step": jnp.int32(101), "w": jnp.ones(2)}, "100")
    assert tx.restore(path, {"step": int, "w": ...})["step"] == 101
    assert tx.open(path).metadata["step"] == 100


@pytest.mark.slow
def test_typed_keys_and_nnx_states_are_restored(save: Any) -> None:
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.linear = nnx.Linear(2, 3, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

    state = nnx.state(Net(nnx.Rngs(0)))
    path = save(state)
    template = nnx.state(nnx.eval_shape(lambda: Net(nnx.Rngs(1))))
    assert_same_tree(tx.restore(path, template), state)
    keys = {"k": jax.random.key(1, impl="rbg")}
    other = {"k": jax.random.key(1)}
    assert catch_mismatches(save(keys, "keys"), other) == [("dtype", "k")]


def test_numpy_and_jax_arrays_convert_both_ways(save: Any) -> None:
    """The template decides, whatever was saved."""
    tree = {"w": np.arange(6, dtype=np.float32)}
    got = tx.restore(save(tree), {"w": A((6,), jnp.float32)})["w"]
    assert isinstance(got, jax.Array)
    got = tx.restore(save({"w": jnp.arange(6.0)}, "jax"), {"w": np.zeros(6, np.float32)})["w"]
    assert isinstance(got, np.ndarray)
    got[0] = 9  # it is the caller's own


@pytest.mark.parametrize("dtype", ["int4", "float8_e4m3fn", "float8_e5m2", "bfloat16", "int8"])
def test_narrow_dtypes_are_restored_bit_for_bit(save: Any, dtype: str) -> None:
    tree = {"w": jnp.arange(-8, 8).astype(dtype)}
    got = tx.restore(save(tree), abstract(tree))
    assert got["w"].dtype == jnp.dtype(dtype)
    assert_same_tree(got, tree)


def test_arrays_without_elements_are_restored(tmp_path: Path) -> None:
    """Orbax refuses to save one, so a saved array is edited."""
    path = copy_case("orbax-0.12.8-noocdbt", tmp_path / "ckpt")
    array = path / "state.params.zeros"
    metadata = json.loads((array / ".zarray").read_text())
    (array / ".zarray").write_text(json.dumps({**metadata, "shape": [0, 4]}))
    shutil.rmtree(array / "0.0", ignore_errors=True)
    for chunk in array.glob("[0-9]*"):
        chunk.unlink()
    template = {"zeros": A((0, 4), jnp.float32)}
    got = tx.restore(path, template, at="state.params", extra="ignore")
    assert got["zeros"].shape == (0, 4)
