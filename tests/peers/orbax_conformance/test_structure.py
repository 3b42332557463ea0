"""Taken from Orbax's own tests: containers, names and kinds of leaves."""

from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import templax as tx
from helpers import (
    CORPUS,
    abstract,
    assert_same_tree,
    catch_mismatches,
    read_expected,
    restore_as_saved,
    save_with_orbax,
)

S = jax.ShapeDtypeStruct


class Point(NamedTuple):
    x: Any
    y: Any


@flax.struct.dataclass
class Struct:
    x: Any
    y: Any


@pytest.mark.parametrize(
    "container",
    [
        lambda x, y: {"x": x, "y": y},
        lambda x, y: flax.core.freeze({"x": x, "y": y}),
        Point,
        Struct,
    ],
    ids=["dict", "FrozenDict", "NamedTuple", "struct"],
)
def test_containers_match_by_the_names_of_their_leaves(tmp_path, container):
    """Saved as a dict, restored as any container with the same names."""
    path = save_with_orbax(tmp_path / "x", {"x": jnp.arange(2), "y": jnp.arange(3.0)})
    restored = tx.restore(path, container(S((2,), jnp.int32), S((3,), jnp.float32)))
    assert_same_tree(restored, container(jnp.arange(2), jnp.arange(3.0)))


def test_named_tuples_come_from_the_template(tmp_path):
    """Without one they are dicts, as the checkpoint does not record their class."""
    tree = {"p": Point(jnp.ones(1), (jnp.zeros(2), [jnp.ones(3)]))}
    path = save_with_orbax(tmp_path / "x", tree)
    assert_same_tree(tx.restore(path, abstract(tree)), tree)
    assert sorted(restore_as_saved(path)["p"]) == ["x", "y"]


@pytest.mark.slow
def test_a_flax_train_state_is_restored(tmp_path):
    """With its dataclass, its functions and the `EmptyState` of optax."""
    model = nn.Dense(3)
    x = jnp.ones((2, 4))

    def init(key: jax.Array) -> TrainState:
        params = model.init(key, x)["params"]
        return TrainState.create(apply_fn=model.apply, params=params, tx=optax.adam(0.1))

    state = init(jax.random.key(0))
    path = save_with_orbax(tmp_path / "x", state)
    template = jax.eval_shape(init, jax.random.key(1))
    # `TrainState.create` sets `step` to a Python int, which `eval_shape` turns into an int32.
    restored = tx.restore(path, template)
    assert (restored.step.dtype, int(restored.step)) == (jnp.int32, 0)
    assert tx.restore(path, template.replace(step=int)).step == 0
    assert_same_tree(restored.params, state.params)
    assert_same_tree(restored.opt_state, state.opt_state)
    assert type(restored.opt_state[1]) is optax.EmptyState
    assert_same_tree(restore_as_saved(path)["params"], state.params)


def test_masked_nodes_of_optax_are_restored(tmp_path):
    """Through a template from `eval_shape`."""
    params = {"w": jnp.ones((2, 3)), "frozen": jnp.ones(2)}
    optimiser = optax.masked(optax.adam(0.1), {"w": True, "frozen": False})
    state = jax.tree.map(lambda x: x + 1, optimiser.init(params))
    path = save_with_orbax(tmp_path / "x", state)
    assert_same_tree(tx.restore(path, jax.eval_shape(optimiser.init, params)), state)


def test_empty_containers_in_a_tree_are_kept(tmp_path):
    """With a template and without."""
    tree = {"e": {}, "l": [], "n": None, "x": jnp.ones(1)}
    path = save_with_orbax(tmp_path / "x", tree)
    assert_same_tree(restore_as_saved(path), tree)
    assert_same_tree(tx.restore(path, tree), tree)


def test_lists_keep_their_order(tmp_path):
    """With more than ten elements, names sort differently from numbers."""
    tree = {"layers": [jnp.full(2, i) for i in range(12)]}
    path = save_with_orbax(tmp_path / "x", tree)
    assert_same_tree(restore_as_saved(path), tree)
    assert_same_tree(tx.restore(path, abstract(tree)), tree)


@pytest.mark.parametrize("use_ocdbt", [True, False])
def test_a_bare_array_is_a_tree(tmp_path, use_ocdbt):
    """Its name is empty, so without OCDBT its files are beside `_METADATA`."""
    path = save_with_orbax(tmp_path / "x", jnp.arange(3), use_ocdbt=use_ocdbt)
    assert_same_tree(tx.restore(path, S((3,), jnp.int32)), jnp.arange(3))
    assert_same_tree(restore_as_saved(path), jnp.arange(3))


def test_keys_with_slashes_are_not_nested(tmp_path):
    """`a/b` is one key."""
    tree = {"a/b": jnp.ones(1), "a": {"b": jnp.zeros(2)}, "/": {"c/": jnp.ones(3)}}
    path = save_with_orbax(tmp_path / "x", tree)
    assert_same_tree(tx.restore(path, abstract(tree)), tree)
    assert_same_tree(restore_as_saved(path), tree)


@pytest.mark.parametrize("use_ocdbt", [True, False])
def test_a_backslash_in_a_key_is_stored_as_tensorstore_stores_it(tmp_path, use_ocdbt):
    """As a slash where arrays are files, as a backslash in an OCDBT database."""
    tree = {"a\\b": jnp.arange(3), "c\\": jnp.arange(5)}
    restored = tx.restore(save_with_orbax(tmp_path / "x", tree, use_ocdbt=use_ocdbt), tree)
    np.testing.assert_array_equal(restored["a\\b"], tree["a\\b"])
    np.testing.assert_array_equal(restored["c\\"], tree["c\\"])


def test_the_template_decides_between_numpy_and_jax(tmp_path):
    """For each leaf, whichever of the two was saved."""
    tree = {"n": np.arange(4, dtype=np.float32), "j": jnp.arange(4)}
    path = save_with_orbax(tmp_path / "x", tree)
    swapped = tx.restore(path, {"n": S((4,), jnp.float32), "j": np.zeros(4, np.int32)})
    assert isinstance(swapped["n"], jax.Array)
    assert isinstance(swapped["j"], np.ndarray)
    assert_same_tree(swapped, {"n": jnp.asarray(tree["n"]), "j": np.asarray(tree["j"])})
    everything = tx.restore(path, jax.tree.map(np.asarray, tree))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(everything))


def test_strings_numbers_and_complex_arrays_are_leaves(tmp_path):
    """Orbax's own test expects complex arrays to be rejected."""
    tree = {"s": "hällo", "b": True, "i": -7, "f": 0.1, "x": jnp.ones(1), "c": jnp.full(2, 1j)}
    path = save_with_orbax(tmp_path / "x", tree)
    restored = restore_as_saved(path)
    assert [restored[k] for k in "sbif"] == ["hällo", True, -7, 0.1]
    assert [type(restored[k]) for k in "sbif"] == [str, bool, int, float]
    assert_same_tree(restored["c"], tree["c"])
    assert catch_mismatches(path, tree | {"s": 0}) == [("kind", "s")]


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_random_keys_of_each_implementation(tmp_path, impl):
    """Single keys and arrays of them; another implementation is refused."""
    tree = {
        "one": jax.random.key(3, impl=impl),
        "many": jax.random.split(jax.random.key(4, impl=impl), 3),
    }
    path = save_with_orbax(tmp_path / "x", tree)
    assert_same_tree(tx.restore(path, jax.eval_shape(lambda: tree)), tree)
    other = "rbg" if impl == "threefry2x32" else "threefry2x32"
    template = jax.eval_shape(lambda: tree | {"one": jax.random.key(0, impl=other)})
    assert catch_mismatches(path, template) == [("dtype", "one")]


def test_arrays_without_elements(tmp_path, saved, golden_template):
    """Orbax refuses to save them, so a `Recipe` supplies one."""
    tree = tx.restore(tx.Recipe(lambda: {"z": jnp.zeros((0, 3))}), {"z": S((0, 3), jnp.float32)})
    assert_same_tree(tree, {"z": jnp.zeros((0, 3))})
    with pytest.raises(ValueError, match="zero size"):
        save_with_orbax(tmp_path / "x", tree)
    template = golden_template | {"a": S((0,), jnp.int32)}
    assert catch_mismatches(saved.v0, template) == [("shape", "a")]


@pytest.mark.parametrize("case", ["orbax-0.2.3-aggregate", "orbax-0.4.4-aggregate"])
def test_aggregate_files_of_old_versions_are_read(case):
    """Their values are in the msgpack file `checkpoint`."""
    tree = restore_as_saved(CORPUS / case / "ckpt")
    scale = read_expected(case)["state/params/scale"]
    assert tree["state"]["params"]["scale"].dtype.name == scale["dtype"]
