"""Templates from pytrees: every kind of leaf, `shardings=` and `specs=`."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding
from msgspec import structs

import templax as tx
from helpers import SET_MESH, checkpoint_of, set_mesh, shard_over, skip_without_dtype
from templax._jax.versions import Format, Layout

A = jax.ShapeDtypeStruct
P = PartitionSpec


def mesh(*axes: str) -> jax.sharding.Mesh:
    return jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), axes or ("x", "y"))


@pytest.mark.slow
def test_none_in_a_template_gets_no_sharding() -> None:
    """None is an empty subtree, in `shardings=` and in `specs=`."""
    model = eqx.nn.MLP(2, 2, 4, 1, use_bias=False, key=jax.random.key(0))
    everywhere = NamedSharding(mesh(), P())
    got = tx.restore(checkpoint_of(model), model, shardings=everywhere)
    assert got.layers[0].weight.sharding == everywhere
    assert got.layers[0].bias is None
    template = tx.template_of(model, mesh=mesh())
    assert template.layers[0].weight.sharding == everywhere
    tree = {"a": jnp.ones(4), "n": None, "b": (None, jnp.ones(8))}
    template = tx.template_of(tree, mesh=mesh(), specs={"a": None, "n": None, "b": P("x")})
    assert template["a"].sharding is None
    assert template["b"][1].sharding == NamedSharding(mesh(), P("x"))


def test_none_in_shardings_keeps_the_templates_own() -> None:
    own = SingleDeviceSharding(jax.devices()[2])
    template = {"a": A((4,), jnp.float32, sharding=own), "b": A((4,), jnp.float32)}
    stored = {"a": jnp.ones(4), "b": jnp.ones(4)}
    got = tx.restore(checkpoint_of(stored), template, shardings={"a": None, "b": jax.devices()[1]})
    assert got["a"].sharding == own
    assert got["b"].devices() == {jax.devices()[1]}


NO_PYTREE = {"pytree": False} if hasattr(nnx, "Pytree") else {}
"""How an NNX module is declared that JAX takes for a leaf: in Flax 0.10, like all others."""


class Opaque(nnx.Module, **NO_PYTREE):
    def __init__(self) -> None:
        self.w = nnx.Param(jnp.zeros(3))


@pytest.mark.parametrize("name", ["", "model"])
def test_a_module_whose_arrays_jax_does_not_see_is_refused(name: str) -> None:
    stored = {"w": {"value": jnp.ones(3)}}
    checkpoint = checkpoint_of({"model": stored} if name else stored)
    template = {"model": Opaque(), "step": A((), jnp.float32)} if name else Opaque()
    with pytest.raises(tx.UsageError) as caught:
        tx.restore(checkpoint, template, extra="ignore")
    assert str(caught.value) == (
        "Expected a pytree, got Opaque, whose variables JAX does not see"
        + (" - at `model`" if name else "")
        + "; hint: restore into nnx.state(module), and put the result into the module by nnx.update"
    )


def test_specs_may_be_a_function_of_name_and_leaf() -> None:
    def specs(name: str, leaf: Any) -> P | None:
        return P("x") if name.endswith("kernel") and leaf.shape[0] == 8 else None

    template = tx.template_of(
        {"kernel": jnp.ones(8), "bias": jnp.ones(8)}, mesh=mesh(), specs=specs
    )
    assert template["kernel"].sharding == NamedSharding(mesh(), P("x"))
    assert template["bias"].sharding is None


def test_specs_use_the_mesh_of_set_mesh() -> None:
    with set_mesh(jax.make_mesh((4, 2), ("x", "y"))):
        template = tx.template_of({"w": jnp.ones(8)}, specs=P("x"))
    assert template["w"].sharding.spec == P("x")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: tx.check(checkpoint_of({}), {"w": A((4,), jnp.float32)}, shardings={"v": None}),
            "`shardings` is not a prefix of the template",
        ),
        (
            lambda: tx.check(
                checkpoint_of({}), {"w": A((4,), jnp.float32)}, shardings={"w": "gpu"}
            ),
            "Expected a jax.sharding.Sharding or a device, got 'gpu'",
        ),
        (
            lambda: tx.template_of({"w": jnp.ones(4)}, specs=P("x")),
            f"`specs` need a mesh; hint: pass mesh=, or call inside {SET_MESH}(mesh)",
        ),
        (
            lambda: tx.template_of({"w": jnp.ones(4)}, jnp.ones(3)),
            "Expected a function to call with arguments, got dict",
        ),
        (
            lambda: tx.check(
                checkpoint_of({}), {"w": SimpleNamespace(shape=None, dtype="float32")}
            ),
            "Expected a shape, got None - at `w`",
        ),
        (
            lambda: tx.check(
                checkpoint_of({}), {"w": SimpleNamespace(shape=(3, None), dtype="float32")}
            ),
            "Expected a shape, got (3, None) - at `w`",
        ),
    ],
)
def test_invalid_arguments_are_refused_by_name(call: Any, text: str) -> None:
    with pytest.raises(tx.UsageError) as caught:
        call()
    assert str(caught.value).startswith(text)


@pytest.mark.skipif(jax.__version_info__ < (0, 7), reason="no PartitionSpec is unreduced")
def test_an_unreduced_sharding_is_refused() -> None:
    """The whole value on each device would add up to a multiple of it."""
    explicit = jax.make_mesh((4, 2), ("x", "y"))
    sharding = NamedSharding(explicit, P("x", unreduced={"y"}))
    match = tx.check(
        checkpoint_of({"w": jnp.ones(8)}), {"w": A((8,), jnp.float32)}, shardings={"w": sharding}
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
def test_the_kind_of_template_leaf_decides_the_kind_of_the_result(leaf: Any, kind: type) -> None:
    got = tx.restore(checkpoint_of({"x": jnp.float32(1.5)}), {"x": leaf})["x"]
    assert isinstance(got, kind)
    assert got == 1.5


@pytest.mark.parametrize("dtype", ["float6_e2m3fn", "float8_e3m4", ">f4", "longdouble"])
def test_numpy_leaves_may_have_dtypes_that_jax_lacks(dtype: str) -> None:
    skip_without_dtype(dtype)
    wanted = np.dtype(getattr(ml_dtypes, dtype, dtype))
    stored = np.array([0.5, 1, -2], np.float32)
    with (
        pytest.warns(tx.CastWarning) if wanted.kind != "f" or wanted.itemsize > 4 else no_warning()
    ):
        got = tx.restore(checkpoint_of({"x": stored}), {"x": np.zeros(3, wanted)})["x"]
    assert got.dtype == wanted
    assert got.astype(np.float32).tolist() == [0.5, 1, -2]


def no_warning() -> Any:
    import contextlib

    return contextlib.nullcontext()


def test_a_dtype_that_jax_does_not_support_is_a_mismatch() -> None:
    wide = np.dtype(np.longdouble)
    match = tx.check(
        checkpoint_of({"x": jnp.ones(3)}), {"x": SimpleNamespace(shape=(3,), dtype=wide)}
    )
    assert [str(m) for m in match.mismatches] == [
        f"Expected dtype `{wide.name}`, got `float32` - at `x`; no jax.Array holds this dtype"
    ]


def test_a_restore_inside_jit_gives_constants() -> None:
    stored = checkpoint_of({"x": jnp.arange(3, dtype=jnp.float16)})

    @jax.jit
    def scaled(by: jax.Array) -> jax.Array:
        with pytest.warns(tx.CastWarning):
            return by * tx.restore(stored, {"x": A((3,), jnp.float32)})["x"]

    assert scaled(jnp.float32(2)).tolist() == [0, 2, 4]


def test_a_tracer_is_an_abstract_leaf() -> None:
    stored = checkpoint_of({"x": jnp.arange(3.0)})

    @jax.jit
    def replaced(x: jax.Array) -> jax.Array:
        return tx.restore(stored, {"x": x})["x"] + x

    assert replaced(jnp.ones(3)).tolist() == [1, 2, 3]


def test_numpy_templates_restore_64_bit_dtypes_without_x64() -> None:
    tree = {"step": np.array(7), "w": np.ones(3), "k": np.ones(2, np.float32)}
    template = tx.template_of(tree)
    assert isinstance(template["w"], np.ndarray)
    assert isinstance(template["k"], jax.ShapeDtypeStruct)
    got = tx.restore(checkpoint_of(tree), template)
    assert got["step"].dtype == np.int64
    assert got["w"].dtype == np.float64


def test_numpy_results_own_their_memory() -> None:
    stored = {f"w{i}": np.full(3, i, np.float32) for i in range(4)}
    got = tx.restore(checkpoint_of(stored), {k: np.zeros_like(v) for k, v in stored.items()})
    got["w0"][:] = 99
    assert [got[f"w{i}"][0] for i in range(1, 4)] == [1, 2, 3]
    assert stored["w0"][0] == 0
    assert all(x.flags.owndata and x.flags.writeable for x in got.values())


@pytest.mark.parametrize("spelled", [(jnp.ones(3), True), (A((3,), jnp.float32), False)])
def test_a_result_is_committed_if_the_template_has_a_device(spelled: Any) -> None:
    leaf, _ = spelled
    assert not tx.restore(checkpoint_of({"x": jnp.ones(3)}), {"x": leaf})["x"].committed
    there = jax.device_put(jnp.ones(3), jax.devices()[5])
    got = tx.restore(checkpoint_of({"x": jnp.ones(3)}), {"x": there})["x"]
    assert got.committed
    assert got.devices() == {jax.devices()[5]}


def test_a_shape_without_numbers_is_refused() -> None:
    """`jax.export` makes symbolic dimensions."""
    import jax.export

    leaf = jax.ShapeDtypeStruct(jax.export.symbolic_shape("batch, 8"), jnp.float32)
    with pytest.raises(tx.UsageError) as caught:
        tx.check(checkpoint_of({}), {"w": leaf})
    assert str(caught.value) == "Expected a shape, got (batch, 8) - at `w`"


def test_targets_of_equal_leaves_differ_only_in_name_and_path() -> None:
    from templax._template.from_pytree import as_template

    make_host_pair = jax.ShapeDtypeStruct((2,), jnp.float32, sharding=shard_over(2, "x"))
    first, second = as_template({"a": make_host_pair, "b": [make_host_pair]}).targets
    assert second == structs.replace(first, name="b.0", path=("b", 0))


@pytest.mark.parametrize(
    "specs",
    [
        lambda name, _: P("x") if name.endswith("kernel") else P(),
        lambda name, _: P("x", None) if name.split(".")[-1] == "kernel" else None,
    ],
)
def test_a_specs_function_that_overlooks_nnx_variables_is_refused(specs: Any) -> None:
    """`kernel.value` does not end with `kernel`; it would be replicated without a word."""
    state = nnx.state(nnx.Linear(8, 8, rngs=nnx.Rngs(0)))
    with pytest.raises(tx.UsageError, match=r"Expected a spec for `kernel\.value`, got ") as caught:
        tx.template_of(state, mesh=mesh(), specs=specs)
    assert "for `kernel`" in str(caught.value)
    template = tx.template_of(
        state, mesh=mesh(), specs=lambda name, leaf: specs(name.removesuffix(".value"), leaf)
    )
    assert jax.tree.leaves(template["kernel"])[0].sharding.spec[0] == "x"


def test_a_specs_function_may_spell_or_overlook_the_value_of_a_variable() -> None:
    state = nnx.state(nnx.Linear(8, 8, rngs=nnx.Rngs(0)))
    known = {"kernel.value": P("x"), "bias.value": P()}
    for specs in (lambda name, _: known[name], lambda name, _: P()):
        assert jax.tree.leaves(tx.template_of(state, mesh=mesh(), specs=specs))
    attention = {"attn": {"query": jnp.ones(8), "value": jnp.ones(8)}}
    template = tx.template_of(
        attention, mesh=mesh(), specs=lambda name, _: P("x") if name.endswith("attn") else P()
    )
    assert template["attn"]["value"].sharding.spec == P()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="this JAX has no such axes or layouts")
def test_shardings_and_layouts_that_jax_refuses_are_mismatches() -> None:
    keys = jax.random.split(jax.random.key(0), (4, 8))
    tree = {"w": np.ones((8, 8), np.float32), "i": np.ones((8, 8), ml_dtypes.int4), "k": keys}
    types = jax.sharding.AxisType
    manual = jax.make_mesh((8,), ("x",), axis_types=(types.Manual,))
    explicit = jax.make_mesh((8,), ("x",), axis_types=(types.Explicit,))
    everywhere = shard_over(8)
    tiled = Format(Layout((0, 1), tiling=((8, 128),)), everywhere)
    turned = Format(Layout((1, 0)), everywhere)
    for name, where, text in (
        ("w", NamedSharding(manual, P()), "Expected mesh axes of type Auto or Explicit, got `x`"),
        ("k", NamedSharding(manual, P()), "Expected mesh axes of type Auto or Explicit, got `x`"),
        ("i", tiled, "Expected a tiled memory layout that says sub_byte_element_size_in_bits"),
        ("k", tiled, "Expected keys in C order, got major_to_minor=(0, 1), tiling=((8, 128),)"),
        ("k", turned, "Expected keys in C order, got major_to_minor=(1, 0)"),
        (
            "k",
            NamedSharding(explicit, P(reduced=frozenset({"x"}))),
            "Expected a sharding that typed keys can have, got one reduced over `x`",
        ),
    ):
        template = {name: A(tree[name].shape, tree[name].dtype)}
        found = tx.check(checkpoint_of(tree), template, extra="ignore", shardings=where)
        assert [m.problem for m in found.mismatches] == ["sharding"]
        assert text in str(found)
        with pytest.raises(tx.TemplateError):
            tx.restore(checkpoint_of(tree), template, extra="ignore", shardings=where)
    for layout in (Layout((0, 1)), Layout((0, 1, 2))):  # what `compile().input_formats` says
        where = Format(layout, everywhere)
        got = tx.restore(checkpoint_of(tree), {"k": keys}, extra="ignore", shardings=where)["k"]
        assert got.sharding.is_equivalent_to(everywhere, 2)


def test_keys_whose_data_has_another_length_do_not_fit() -> None:
    catalog = tx.open(checkpoint_of({"k": jax.random.split(jax.random.key(0), 3)}))
    (entry,) = catalog.entries
    longer = structs.replace(entry, shape=(3, 4))
    found = tx.check(replace(catalog, entries=(longer,)), {"k": A((3,), jax.random.key(0).dtype)})
    impl = "key<threefry2x32>"
    text = f"Expected dtype `{impl} of uint32(3, 2)`, got `{impl} of uint32(3, 4)` - at `k`"
    assert text in str(found)


@pytest.mark.parametrize("dtype", [object(), "foo"])
def test_a_leaf_with_a_dtype_of_another_library_is_refused_by_name(dtype: Any) -> None:
    leaf = SimpleNamespace(shape=(2,), dtype=dtype)
    with pytest.raises(tx.UsageError, match=r"Expected a dtype of numpy or JAX, got .* - at `a`"):
        tx.check(checkpoint_of({"a": np.ones(2)}), {"a": leaf})
