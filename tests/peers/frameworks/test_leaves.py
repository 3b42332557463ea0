"""What the leaves of a template request, and the memory of the results."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import templax as tx
from helpers import assert_same_tree, check_template, save_with_orbax

A = jax.ShapeDtypeStruct


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_typed_keys_of_each_implementation(saved: Any, impl: str) -> None:
    value = {
        "one": jax.random.key(1, impl=impl),
        "many": jax.random.split(jax.random.key(2, impl=impl), 8),
    }
    path = saved(impl, value)
    template = jax.eval_shape(lambda: value)
    assert_same_tree(tx.restore(path, template), value)
    mesh = jax.make_mesh((8,), ("x",))
    spread = NamedSharding(mesh, P("x"))
    restored = tx.restore(path, template, shardings={"one": None, "many": spread})
    assert_same_tree(restored, value)
    assert restored["many"].sharding.is_equivalent_to(spread, 1)
    other = "rbg" if impl != "rbg" else "threefry2x32"
    wrong = {**template, "one": jax.eval_shape(lambda: jax.random.key(1, impl=other))}
    assert check_template(path, wrong) == [("dtype", "one")]
    raw = {**template, "one": A(jax.random.key_data(value["one"]).shape, jnp.uint32)}
    assert check_template(path, raw) == [("kind", "one")]


def test_values_and_types_of_python_are_templates(saved: Any) -> None:
    value = {"s": "words", "i": 3, "f": 0.5, "b": True, "w": jnp.ones(2), "m": {"v": jnp.ones(2)}}
    path = saved("values", value)
    assert_same_tree(tx.restore(path, value), value)
    types = {"s": str, "i": int, "f": float, "b": bool, "w": ..., "m": ...}
    restored = tx.restore(path, types)
    assert restored == {"s": "words", "i": 3, "f": 0.5, "b": True, "w": ..., "m": ...}
    assert [type(restored[k]) for k in "sifb"] == [str, int, float, bool]
    assert check_template(path, {**types, "s": int}) == [("kind", "s")]
    assert check_template(path, {**types, "w": str}) == [("kind", "w")]


@pytest.mark.parametrize("wanted", [jnp.float32, np.float32, "python", "array", "numpy", "0d"])
def test_the_template_decides_the_type_of_a_number(saved: Any, wanted: Any) -> None:
    path = saved("numbers", {"n": jnp.float32(1.5)})
    leaf, kind = {
        "python": (float, float),
        "array": (A((), jnp.float32), jax.Array),
        "numpy": (np.float32(0), np.float32),
        "0d": (np.zeros((), np.float32), np.ndarray),
        jnp.float32: (jnp.float32, jax.Array),
        np.float32: (np.float32, np.float32),
    }[wanted]
    restored = tx.restore(path, {"n": leaf})["n"]
    assert isinstance(restored, kind)
    assert restored == 1.5
    assert np.shape(restored) == ()


def test_numbers_of_another_class_are_refused(saved: Any) -> None:
    value = {"s": "words", "i": 3, "f": 0.5, "b": True, "w": jnp.ones(2), "m": {"v": jnp.ones(2)}}
    path = saved("values", value)
    for name, leaf in (("i", bool), ("b", int), ("f", int), ("i", str), ("i", A((), jnp.bool_))):
        rest = dict.fromkeys("sifbwm", ...)
        assert [n for _, n in check_template(path, rest | {name: leaf})] == [name]


@pytest.mark.slow
def test_a_single_leaf_of_each_kind_is_a_template(saved: Any, variables: Any) -> None:
    path = saved("linen", variables)
    want = variables["params"]["Dense_0"]["kernel"]
    at = "params.Dense_0.kernel"
    assert (tx.restore(path, A((3, 8), jnp.float32), at=at) == want).all()
    assert isinstance(tx.restore(path, np.zeros((3, 8), np.float32), at=at), np.ndarray)
    assert tx.restore(path, ..., at=at) is ...


def test_a_leaf_that_was_saved_alone_is_restored_alone(saved: Any) -> None:
    path = saved("bare", jnp.arange(3))
    assert tx.restore(path, A((3,), jnp.int32)).tolist() == [0, 1, 2]
    assert isinstance(tx.restore(path, np.zeros(3, np.int32)), np.ndarray)
    assert tx.restore(path, ...) is ...
    assert str(tx.check(path, A((4,), jnp.int32))).endswith(
        "Expected shape `(4,)`, got `(3,)` - at the leaf itself"
    )


@pytest.mark.parametrize("placed", [False, True])
def test_array_types_of_jax_are_templates(saved: Any, placed: bool) -> None:
    """`jax.typeof` gives shape, dtype and, inside a mesh, a sharding."""
    value = {"w": jnp.arange(16.0), "n": jnp.int32(3)}
    path = saved("types", value)
    template = jax.tree.map(jax.typeof, value)
    mesh = jax.make_mesh((8,), ("x",))
    if not placed:
        assert_same_tree(tx.restore(path, template), value)
        return
    spread = jax.device_put(value, NamedSharding(mesh, P()))
    with jax.set_mesh(mesh):
        restored = tx.restore(path, jax.tree.map(jax.typeof, spread))
    assert_same_tree(restored, value)
    assert restored["w"].sharding.is_equivalent_to(NamedSharding(mesh, P()), 1)


def test_metadata_of_orbax_is_a_template(saved: Any) -> None:
    """The saved sharding in it is ignored."""
    path = saved("line", {"w": jnp.linspace(-3, 3, 16)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ocp.PyTreeCheckpointer() as checkpointer:
            metadata = checkpointer.metadata(path).item_metadata.tree
    restored = tx.restore(path, metadata)
    assert_same_tree(restored, {"w": jnp.linspace(-3, 3, 16)})
    assert not restored["w"].committed


def test_deleted_arrays_are_templates(saved: Any, variables: Any) -> None:
    """A training step may have consumed the state that is restored into."""
    third = jax.devices()[3]
    value = jax.device_put(variables, third)
    for leaf in jax.tree.leaves(value):
        leaf.delete()
    restored = tx.restore(saved("linen", variables), value)
    assert_same_tree(restored, variables)
    assert {leaf.sharding.device_set.pop() for leaf in jax.tree.leaves(restored)} == {third}
    assert check_template(saved("linen", variables), {**value, "new": None}) == []


@pytest.mark.slow
def test_arrays_of_a_template_are_neither_used_nor_changed(saved: Any, variables: Any) -> None:
    template = jax.tree.map(jnp.zeros_like, variables)
    tx.restore(saved("linen", variables), template)
    assert not any(leaf.any() for leaf in jax.tree.leaves(template))


def test_numpy_results_are_writable_copies(saved: Any, variables: Any) -> None:
    template = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), variables)
    restored = tx.restore(saved("linen", variables), template)
    for leaf, given in zip(jax.tree.leaves(restored), jax.tree.leaves(template), strict=True):
        assert leaf.flags.writeable
        assert leaf.flags.c_contiguous
        assert leaf is not given
        leaf[...] = 7
        assert not given.any()
    assert_same_tree(tx.restore(saved("linen", variables), tx.template_of(variables)), variables)


@pytest.mark.parametrize("order", ["<f4", ">f4"])
def test_numpy_results_have_the_byte_order_of_the_template(saved: Any, order: str) -> None:
    path = saved("line", {"w": jnp.linspace(-3, 3, 16)})
    restored = tx.restore(path, {"w": np.zeros(16, order)})["w"]
    assert restored.dtype == np.dtype(order)
    assert restored.tolist() == jnp.linspace(-3, 3, 16).tolist()


@pytest.mark.slow
def test_results_share_no_memory(saved: Any) -> None:
    """With each other, with those of a second restore, or with the template."""
    value = {"small": [jnp.arange(4.0) + i for i in range(8)], "large": jnp.arange(50_000.0)}
    path = saved("apart", value)
    template = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), value)
    catalog = tx.open(path)
    one, two = tx.restore(catalog, template), tx.restore(catalog, template)
    arrays = [*jax.tree.leaves(one), *jax.tree.leaves(two), *jax.tree.leaves(template)]
    for i, a in enumerate(arrays):
        assert not any(np.shares_memory(a, b) for b in arrays[:i])
    for a in jax.tree.leaves(one):
        assert a.flags.writeable
        a[...] = -1
    assert_same_tree(two, jax.tree.map(np.asarray, value))
    assert_same_tree(tx.restore(catalog, tx.template_of(value)), value)


def test_results_do_not_depend_on_the_files(tmp_path: Path) -> None:
    value = {"small": jnp.arange(4.0), "large": jnp.arange(300_000.0)}
    path = save_with_orbax(tmp_path / "x", value, use_compression=False)
    restored = tx.restore(path, tx.template_of(value))
    for file in path.rglob("*"):
        if file.is_file():
            file.write_bytes(b"\xff" * file.stat().st_size)  # would show in a mapped result
    shutil.rmtree(path)
    assert_same_tree(restored, value)
