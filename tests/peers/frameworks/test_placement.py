"""Placement of results: devices, shardings, memory kinds, meshes, traced functions."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.layout import Format, Layout
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

import templax as tx
from helpers import assert_same_tree, check_template

A = jax.ShapeDtypeStruct
KEY = jax.random.key(0)


def test_arrays_are_committed_if_a_sharding_is_given(saved: Any, variables: Any) -> None:
    path, third = saved("linen", variables), jax.devices()[3]
    plain = tx.restore(path, tx.template_of(variables))
    assert not any(leaf.committed for leaf in jax.tree.leaves(plain))
    placed = tx.restore(path, tx.template_of(variables), shardings=third)
    assert all(leaf.committed and leaf.devices() == {third} for leaf in jax.tree.leaves(placed))
    again = tx.restore(path, placed)
    assert all(leaf.committed and leaf.devices() == {third} for leaf in jax.tree.leaves(again))


def test_every_kind_of_sharding_is_obeyed(saved: Any) -> None:
    value = {"w": jnp.arange(64.0).reshape(8, 8)}
    path = saved("square", value)
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    odd = Mesh(np.array(jax.devices())[[6, 1, 3]].reshape(1, 3), ("a", "b"))
    shardings = [
        SingleDeviceSharding(jax.devices()[4]),
        NamedSharding(mesh, P("y", "x")),
        NamedSharding(mesh, P(None, ("x", "y"))),
        NamedSharding(odd, P("a")),
        NamedSharding(mesh, P("x"), memory_kind="pinned_host"),
        jax.pmap(lambda x: x)(jnp.zeros((8, 1))).sharding,
    ]
    for sharding in shardings:
        for restored in (
            tx.restore(path, {"w": A((8, 8), jnp.float32, sharding=sharding)}),
            tx.restore(path, tx.template_of(value), shardings=sharding),
            tx.restore(path, {"w": jax.device_put(value["w"], sharding)}),
        ):
            assert restored["w"].sharding.is_equivalent_to(sharding, 2)
            assert restored["w"].sharding.memory_kind == sharding.memory_kind
            assert restored["w"].committed
            for shard in restored["w"].addressable_shards:
                assert (np.asarray(shard.data) == np.asarray(value["w"])[shard.index]).all()


@pytest.mark.slow
def test_arrays_of_keys_are_sharded(saved: Any) -> None:
    keys = jax.random.split(jax.random.key(3, impl="rbg"), (8, 2))
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    template = jax.eval_shape(lambda: {"k": keys})
    path = saved("key matrix", {"k": keys})
    for spec in (P("x"), P("x", "y"), P(None, "y"), P(("x", "y"))):
        sharding = NamedSharding(mesh, spec)
        restored = tx.restore(path, template, shardings=sharding)
        assert_same_tree(restored, {"k": keys})
        assert restored["k"].sharding.is_equivalent_to(sharding, 2)
        assert restored["k"].committed
    wrong = NamedSharding(mesh, P(None, "x"))
    assert check_template(path, template, shardings=wrong) == [("sharding", "k")]
    assert check_template(path, jax.eval_shape(lambda: {"k": keys[:, 0]})) == [("shape", "k")]
    assert not tx.restore(path, template)["k"].committed


@pytest.mark.parametrize("kind", ["device", "pinned_host", "unpinned_host"])
def test_memory_kinds_are_obeyed(saved: Any, kind: str, variables: Any) -> None:
    if kind not in {m.kind for m in jax.devices()[0].addressable_memories()}:
        pytest.skip(f"no {kind} memory")
    mesh = jax.make_mesh((8,), ("x",))
    sharding = NamedSharding(mesh, P(None, "x"), memory_kind=kind)
    template = A((3, 8), jnp.float32, sharding=sharding)
    restored = tx.restore(saved("linen", variables), template, at="params.Dense_0.kernel")
    assert restored.sharding == sharding
    assert restored.sharding.memory_kind == kind
    assert (np.asarray(restored) == np.asarray(variables["params"]["Dense_0"]["kernel"])).all()


@pytest.mark.slow
def test_a_format_applies_to_a_whole_subtree(saved: Any) -> None:
    value = {"a": jnp.arange(12.0).reshape(3, 4), "b": [jnp.arange(6.0).reshape(2, 3)]}
    wanted = Format(Layout((1, 0)), SingleDeviceSharding(jax.devices()[2]))
    restored = tx.restore(saved("formats", value), tx.template_of(value), shardings=wanted)
    assert_same_tree(restored, value)
    for leaf in jax.tree.leaves(restored):
        assert leaf.format.layout.major_to_minor == (1, 0)
        assert leaf.devices() == {jax.devices()[2]}


def test_an_abstract_mesh_resolves_to_the_current_one(saved: Any, variables: Any) -> None:
    mesh = jax.make_mesh((8,), ("x",))
    template = A((3, 8), jnp.float32, sharding=NamedSharding(mesh.abstract_mesh, P(None, "x")))
    path, at = saved("linen", variables), "params.Dense_0.kernel"
    with jax.set_mesh(mesh):
        restored = tx.restore(path, template, at=at)
    assert restored.sharding == NamedSharding(mesh, P(None, "x"))
    assert check_template(path, template, at=at) == [("sharding", "")]


def test_an_abstract_mesh_of_another_shape_is_a_mismatch(saved: Any, variables: Any) -> None:
    mesh, other = jax.make_mesh((8,), ("x",)), jax.make_mesh((4, 2), ("x", "y"))
    template = A((3, 8), jnp.float32, sharding=NamedSharding(mesh.abstract_mesh, P(None, "x")))
    path, at = saved("linen", variables), "params.Dense_0.kernel"
    with jax.set_mesh(other):
        assert check_template(path, template, at=at) == [("sharding", "")]
        with pytest.raises(tx.TemplateError, match="no mesh of its shape is set"):
            tx.restore(path, template, at=at)


@pytest.mark.parametrize("kind", ["Explicit", "Auto"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
def test_casts_inside_a_mesh(saved: Any, kind: str, dtype: str) -> None:
    """Training scripts set a mesh first, and some casts are computed by XLA on one device."""
    value = jnp.linspace(-3, 3, 16)
    path = saved("line", {"w": value})
    mesh = jax.make_mesh((8,), ("x",), axis_types=(getattr(AxisType, kind),))
    sharding = NamedSharding(mesh, P("x"))
    for template in (A((16,), dtype), A((16,), dtype, sharding=sharding)):
        with jax.set_mesh(mesh), warnings.catch_warnings():
            warnings.simplefilter("ignore", tx.CastWarning)
            restored = tx.restore(path, {"w": template})
        assert_same_tree(restored, {"w": value.astype(dtype)})


def test_leaves_without_a_sharding_go_to_one_device_inside_a_mesh(saved: Any) -> None:
    value = {"w": jnp.arange(3.0), "key": jax.random.key(1), "keys": jax.random.split(KEY, 8)}
    path = saved("no sharding", value)
    template = jax.eval_shape(lambda: value)
    with jax.set_mesh(jax.make_mesh((8,), ("x",))):
        restored = tx.restore(path, template)
    assert_same_tree(restored, value)
    assert [leaf.devices() for leaf in restored.values()] == [{jax.devices()[0]}] * 3
    assert not any(leaf.committed for leaf in restored.values())


@pytest.mark.slow
def test_leaves_without_a_sharding_are_usable_inside_a_mesh(saved: Any) -> None:
    """Functions jitted under the mesh would refuse arrays committed to one device."""
    value = {"w": jnp.arange(3.0), "key": jax.random.key(1)}
    path = saved("default device", value)
    with jax.set_mesh(jax.make_mesh((8,), ("x",))):
        restored = tx.restore(path, jax.eval_shape(lambda: value))
        doubled = jax.jit(lambda w: w * 2)(restored["w"])
        bits = jax.jit(jax.random.bits)(restored["key"])
    assert doubled.tolist() == [0, 2, 4]
    assert int(bits) == int(jax.random.bits(value["key"]))


def test_the_default_device_of_the_context_is_used(saved: Any) -> None:
    value = {"w": jnp.arange(3.0), "key": jax.random.key(1)}
    path = saved("default device", value)
    with jax.default_device(jax.devices()[3]):
        restored = tx.restore(path, jax.eval_shape(lambda: value))
    assert_same_tree(restored, value)
    assert [leaf.devices() for leaf in restored.values()] == [{jax.devices()[3]}] * 2


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_restore_inside_a_traced_function_returns_constants(saved: Any, dtype: str) -> None:
    value = {"w": jnp.linspace(-3, 3, 16), "key": jax.random.key(1)}
    path = saved("traced", value)
    template = {"w": A((16,), dtype), "key": jax.eval_shape(lambda: jax.random.key(1))}

    @jax.jit
    def step(x: Any) -> Any:
        restored = tx.restore(path, template)
        return x * restored["w"], jax.random.bits(restored["key"])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tx.CastWarning)
        scaled, bits = step(jnp.ones((), dtype))
    assert (scaled == value["w"].astype(dtype)).all()
    assert bits == jax.random.bits(value["key"])
