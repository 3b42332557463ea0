"""Template leaves of every kind, shardings= and specs=, and what is refused by name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

import templax as tx

A = jax.ShapeDtypeStruct
P = PartitionSpec


def recipe(tree: Any) -> tx.Recipe:
    return tx.Recipe(lambda: tree)


def mesh(*axes: str) -> jax.sharding.Mesh:
    return jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), axes or ("x", "y"))


def test_none_in_a_template_takes_no_sharding() -> None:
    """None is an empty subtree, in `shardings=` as in `specs=`."""
    model = eqx.nn.MLP(2, 2, 4, 1, use_bias=False, key=jax.random.key(0))
    everywhere = NamedSharding(mesh(), P())
    got = tx.restore(recipe(model), model, shardings=everywhere)
    assert got.layers[0].weight.sharding == everywhere
    assert got.layers[0].bias is None
    template = tx.template_of(model, mesh=mesh())
    assert template.layers[0].weight.sharding == everywhere
    tree = {"a": jnp.ones(4), "n": None, "b": (None, jnp.ones(8))}
    template = tx.template_of(tree, mesh=mesh(), specs={"a": None, "n": None, "b": P("x")})
    assert template["a"].sharding is None
    assert template["b"][1].sharding == NamedSharding(mesh(), P("x"))


def test_none_in_shardings_leaves_the_templates_own() -> None:
    own = SingleDeviceSharding(jax.devices()[2])
    template = {"a": A((4,), jnp.float32, sharding=own), "b": A((4,), jnp.float32)}
    stored = {"a": jnp.ones(4), "b": jnp.ones(4)}
    got = tx.restore(recipe(stored), template, shardings={"a": None, "b": jax.devices()[1]})
    assert got["a"].sharding == own
    assert got["b"].devices() == {jax.devices()[1]}


def test_specs_may_be_a_function_of_name_and_leaf() -> None:
    def specs(name: str, leaf: Any) -> P | None:
        return P("x") if name.endswith("kernel") and leaf.shape[0] == 8 else None

    template = tx.template_of(
        {"kernel": jnp.ones(8), "bias": jnp.ones(8)}, mesh=mesh(), specs=specs
    )
    assert template["kernel"].sharding == NamedSharding(mesh(), P("x"))
    assert template["bias"].sharding is None


def test_the_set_mesh_serves_specs() -> None:
    with jax.set_mesh(jax.make_mesh((4, 2), ("x", "y"))):
        template = tx.template_of({"w": jnp.ones(8)}, specs=P("x"))
    assert template["w"].sharding.spec == P("x")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: tx.check(recipe({}), {"w": A((4,), jnp.float32)}, shardings={"v": None}),
            "`shardings` is no prefix of the template",
        ),
        (
            lambda: tx.check(recipe({}), {"w": A((4,), jnp.float32)}, shardings={"w": "gpu"}),
            "Expected a jax.sharding.Sharding or a device, got 'gpu'",
        ),
        (
            lambda: tx.template_of({"w": jnp.ones(4)}, specs=P("x")),
            "`specs` need a mesh; hint: pass mesh=, or call inside jax.set_mesh(mesh)",
        ),
        (
            lambda: tx.template_of({"w": jnp.ones(4)}, jnp.ones(3)),
            "Expected a function to call with arguments, got dict",
        ),
        (
            lambda: tx.check(recipe({}), {"w": SimpleNamespace(shape=None, dtype="float32")}),
            "Expected a shape, got None - at `w`",
        ),
        (
            lambda: tx.check(recipe({}), {"w": SimpleNamespace(shape=(3, None), dtype="float32")}),
            "Expected a shape, got (3, None) - at `w`",
        ),
    ],
)
def test_arguments_that_mean_nothing_are_refused_by_name(call: Any, text: str) -> None:
    with pytest.raises(tx.UsageError) as caught:
        call()
    assert str(caught.value).startswith(text)


def test_an_unreduced_sharding_is_refused() -> None:
    """Whole values on each device would add up to several times the value."""
    explicit = jax.make_mesh((4, 2), ("x", "y"))
    sharding = NamedSharding(explicit, P("x", unreduced={"y"}))
    match = tx.check(
        recipe({"w": jnp.ones(8)}), {"w": A((8,), jnp.float32)}, shardings={"w": sharding}
    )
    assert [str(m) for m in match.mismatches] == [
        "Expected a sharding of whole values, got one unreduced over `y` - at `w`"
    ]


@pytest.mark.parametrize(
    ("leaf", "kind"),
    [
        (np.float32, np.float32),
        (np.float32(0), np.float32),
        (jnp.float32, jax.Array),
        (float, float),
        (np.zeros((), np.float32), np.ndarray),
        (jnp.float32(0), jax.Array),
        (A((), jnp.float32), jax.Array),
    ],
)
def test_types_and_values_of_numbers_say_what_comes_back(leaf: Any, kind: type) -> None:
    got = tx.restore(recipe({"x": jnp.float32(1.5)}), {"x": leaf})["x"]
    assert isinstance(got, kind)
    assert got == 1.5


@pytest.mark.parametrize("dtype", ["float6_e2m3fn", "float8_e3m4", ">f4", "longdouble"])
def test_numpy_leaves_may_have_dtypes_that_jax_lacks(dtype: str) -> None:
    wanted = np.dtype(getattr(ml_dtypes, dtype, dtype))
    stored = np.array([0.5, 1, -2], np.float32)
    with pytest.warns(tx.CastWarning) if wanted.kind != "f" or wanted.itemsize > 4 else _nothing():
        got = tx.restore(recipe({"x": stored}), {"x": np.zeros(3, wanted)})["x"]
    assert got.dtype == wanted
    assert got.astype(np.float32).tolist() == [0.5, 1, -2]


def _nothing() -> Any:
    import contextlib

    return contextlib.nullcontext()


def test_a_dtype_that_no_jax_array_holds_is_a_mismatch() -> None:
    wide = np.dtype(np.longdouble)
    match = tx.check(recipe({"x": jnp.ones(3)}), {"x": SimpleNamespace(shape=(3,), dtype=wide)})
    assert [str(m) for m in match.mismatches] == [
        f"Expected dtype `{wide.name}`, got `float32` - at `x`; no jax.Array holds this dtype"
    ]


def test_a_restore_inside_jit_gives_constants() -> None:
    stored = recipe({"x": jnp.arange(3, dtype=jnp.float16)})

    @jax.jit
    def scaled(by: jax.Array) -> jax.Array:
        with pytest.warns(tx.CastWarning):
            return by * tx.restore(stored, {"x": A((3,), jnp.float32)})["x"]

    assert scaled(jnp.float32(2)).tolist() == [0, 2, 4]


def test_a_tracer_is_an_abstract_leaf() -> None:
    stored = recipe({"x": jnp.arange(3.0)})

    @jax.jit
    def replaced(x: jax.Array) -> jax.Array:
        return tx.restore(stored, {"x": x})["x"] + x

    assert replaced(jnp.ones(3)).tolist() == [1, 2, 3]


def test_the_template_of_numpy_arrays_restores_on_any_setting_of_x64() -> None:
    tree = {"step": np.array(7), "w": np.ones(3), "k": np.ones(2, np.float32)}
    template = tx.template_of(tree)
    assert isinstance(template["w"], np.ndarray)
    assert isinstance(template["k"], jax.ShapeDtypeStruct)
    got = tx.restore(recipe(tree), template)
    assert got["step"].dtype == np.int64
    assert got["w"].dtype == np.float64


def test_numpy_results_are_of_their_own_memory() -> None:
    stored = {f"w{i}": np.full(3, i, np.float32) for i in range(4)}
    got = tx.restore(recipe(stored), {k: np.zeros_like(v) for k, v in stored.items()})
    got["w0"][:] = 99
    assert [got[f"w{i}"][0] for i in range(1, 4)] == [1, 2, 3]
    assert stored["w0"][0] == 0
    assert all(x.flags.owndata and x.flags.writeable for x in got.values())


@pytest.mark.parametrize("spelled", [(jnp.ones(3), True), (A((3,), jnp.float32), False)])
def test_a_result_is_committed_if_the_template_says_where(spelled: Any) -> None:
    leaf, _ = spelled
    assert not tx.restore(recipe({"x": jnp.ones(3)}), {"x": leaf})["x"].committed
    there = jax.device_put(jnp.ones(3), jax.devices()[5])
    got = tx.restore(recipe({"x": jnp.ones(3)}), {"x": there})["x"]
    assert got.committed
    assert got.devices() == {jax.devices()[5]}


def test_a_shape_without_numbers_is_refused() -> None:
    """A symbolic dimension, as `jax.export` makes them."""
    import jax.export

    leaf = jax.ShapeDtypeStruct(jax.export.symbolic_shape("batch, 8"), jnp.float32)
    with pytest.raises(tx.UsageError) as caught:
        tx.check(recipe({}), {"w": leaf})
    assert str(caught.value) == "Expected a shape, got (batch, 8) - at `w`"
