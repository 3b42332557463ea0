"""Recipes: deterministic functions as checkpoints."""

from __future__ import annotations

import functools
import threading
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import templax as tx
from helpers import assert_same_tree, mark_slow

KEY = jax.random.key(0)
A = jax.ShapeDtypeStruct


class Model(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Dense(16)(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.Conv(4, (3,))(x)
        return nn.LayerNorm()(nn.Embed(7, 4)(jnp.zeros((1, 3), jnp.int32)) + x)


class Net(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs):
        self.linear = nnx.Linear(3, width, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)


def net(width: int) -> Any:
    return nnx.state(Net(width, nnx.Rngs(0)))


def mlp(width: int) -> Any:
    return eqx.nn.MLP(3, 2, width, 2, key=KEY)


def linen(x: Any) -> Any:
    return Model().init(KEY, x, train=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fn", "args"),
    [(net, (8,)), *mark_slow((linen, (jnp.ones((1, 3, 5)),)), (mlp, (8,)))],
    ids=["nnx", "linen", "equinox"],
)
def test_a_recipe_gives_the_bytes_of_a_plain_call(fn: Any, args: Any) -> None:
    template = tx.template_of(fn, *args)
    assert_same_tree(tx.restore(tx.Recipe(fn, *args), template), fn(*args))


@pytest.mark.slow
@pytest.mark.parametrize(
    "draw",
    [
        jax.random.normal,
        *mark_slow(
            jax.random.permutation,
            jax.nn.initializers.lecun_normal(),
            jax.random.uniform,
            jax.random.truncated_normal,
            jax.random.orthogonal,
            jax.nn.initializers.he_uniform(),
            jax.nn.initializers.orthogonal(),
            jax.nn.initializers.delta_orthogonal(),
            jax.nn.initializers.variance_scaling(2.0, "fan_avg", "truncated_normal"),
        ),
    ],
)
def test_initialisers_give_the_same_bits(draw: Any) -> None:
    def init(key: jax.Array) -> Any:
        if draw is jax.random.permutation:
            return {"w": draw(key, 30)}
        if draw is jax.random.truncated_normal:
            return {"w": draw(key, -2.0, 2.0, (6, 5))}
        if draw is jax.random.orthogonal:
            return {"w": draw(key, 5)}
        shape = (3, 3, 4, 5) if "delta" in repr(draw) else (6, 5)
        return {"w": draw(key, shape)}

    assert_same_tree(tx.restore(tx.Recipe(init, KEY), tx.template_of(init, KEY)), init(KEY))


def test_only_requested_leaves_are_computed() -> None:
    calls: list[str] = []

    def counted(name: str) -> jax.Array:
        def count() -> np.ndarray:
            calls.append(name)
            return np.float32(1)

        return jax.pure_callback(count, A((), jnp.float32))

    recipe = tx.Recipe(lambda: {"a": counted("a"), "b": counted("b")})
    assert tx.check(recipe, {"a": A((), jnp.float32), "b": ...}).ok
    assert calls == []
    tx.restore(recipe, {"a": A((), jnp.float32)}, extra="ignore")
    assert calls == ["a"]


def test_as_second_checkpoint_a_recipe_computes_only_missing_leaves() -> None:
    calls: list[str] = []

    def counted(name: str) -> jax.Array:
        def count() -> np.ndarray:
            calls.append(name)
            return np.float32(2)

        return jax.pure_callback(count, A((), jnp.float32))

    init = tx.Recipe(lambda: {"p": {"old": counted("old"), "new": counted("new")}})
    first = tx.Recipe(lambda: {"p": {"old": jnp.float32(1)}})
    template = {"old": A((), jnp.float32), "new": A((), jnp.float32)}
    got = tx.restore(first, template, at="p", missing=init)
    assert (got["old"], got["new"]) == (1, 2)
    assert calls == ["new"]


def test_python_numbers_among_the_arguments_stay_python_numbers() -> None:
    def init(key: jax.Array, width: int, *, flag: bool) -> Any:
        return {"w": jnp.ones(width)} if flag else {}

    assert tx.template_of(init, KEY, 3, flag=True) == {"w": A((3,), jnp.float32)}
    assert (
        tx.restore(tx.Recipe(init, KEY, 3, flag=True), {"w": A((3,), jnp.float32)})["w"].sum() == 3
    )


def test_a_function_of_concrete_values_is_called() -> None:
    def init(x: jax.Array) -> Any:
        n = int(jnp.sum(x))
        return {"w": jnp.ones(n) if jnp.sum(x) > 0 else jnp.zeros(1)}

    got = tx.restore(tx.Recipe(init, jnp.ones(3)), {"w": A((3,), jnp.float32)})
    assert got["w"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "value",
    [
        np.array([2**40 + 5]),
        np.array([2**63], np.uint64),
        np.array([0.1]),
        np.array([1 + 2j]),
        np.float64(0.1),
        np.int64(2**40),
    ],
)
def test_64_bit_numbers_of_numpy_keep_their_precision(value: Any) -> None:
    for recipe in (tx.Recipe(lambda: {"v": value}), tx.Recipe(lambda v: {"v": v}, value)):
        got = tx.restore(recipe, {"v": np.zeros_like(value)})["v"]
        assert got.dtype == value.dtype
        assert np.array_equal(got, value)
    if np.asarray(value).dtype.kind in "iu":
        match = tx.check(tx.Recipe(lambda: {"v": value}), {"v": A(np.shape(value), jnp.int32)})
        assert [m.problem for m in match.mismatches] == ["dtype"]


def test_numbers_strings_and_functions_are_leaves_beside_arrays() -> None:
    tree = {"n": 3, "x": 0.5, "b": True, "s": "text", "f": jax.nn.relu, "w": jnp.ones(2)}
    recipe = tx.Recipe(lambda: tree)
    assert set(tx.open(recipe).leaves) == {"n", "x", "b", "s", "w"}
    got = tx.restore(recipe, {**tree, "w": A((2,), jnp.float32)})
    assert {k: got[k] for k in "nxbsf"} == {k: tree[k] for k in "nxbsf"}


def test_mismatches_casts_and_shardings_work_as_for_other_checkpoints() -> None:
    recipe = tx.Recipe(lambda: {"w": jnp.ones((8, 2))})
    sharding = jax.sharding.NamedSharding(
        jax.make_mesh((8,), ("x",)), jax.sharding.PartitionSpec("x")
    )
    with pytest.warns(tx.CastWarning, match="float32 to bfloat16"):
        got = tx.restore(recipe, {"w": A((8, 2), jnp.bfloat16, sharding=sharding)})["w"]
    assert (got.dtype, got.sharding) == (jnp.bfloat16, sharding)
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(recipe, {"w": A((2, 8), jnp.int8)})
    assert [m.problem for m in caught.value.mismatches] == ["shape", "dtype"]
    assert "Recipe(" in str(caught.value)


def test_exceptions_of_the_function_are_raised() -> None:
    def init() -> Any:
        raise LookupError("no data today")

    with pytest.raises(LookupError, match="no data today"):
        tx.open(tx.Recipe(init))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: tx.Recipe(3), "Expected a function to call, got int"),
        (
            lambda: tx.Recipe(jnp.sin, A((3,), jnp.float32)),
            "Expected arguments with values, got a jax.ShapeDtypeStruct",
        ),
    ],
)
def test_invalid_functions_and_arguments_are_refused(make: Any, text: str) -> None:
    with pytest.raises(tx.UsageError) as caught:
        make()
    assert str(caught.value) == text


def restore(fn: Any, *args: Any, **options: Any) -> Any:
    """Restores a recipe through the template of the same call."""
    return tx.restore(tx.Recipe(fn, *args), tx.template_of(fn, *args), **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda: jnp.asarray(3),
        lambda: jnp.array(2.5),
        lambda: jnp.asarray(1j),
        lambda: jnp.asarray(True),
        lambda: jnp.asarray(3, jnp.int8),
        lambda: jnp.asarray(1, jnp.bfloat16),
        lambda: jnp.zeros((), jnp.int32),
        lambda: jnp.full((), 2),
        lambda: jnp.uint32(7),
        lambda: jnp.asarray(2) + 1,
    ],
    ids=["int", "float", "complex", "bool", "int8", "bfloat16", "zeros", "full", "uint32", "sum"],
)
def test_0d_constants_are_arrays(make: Any) -> None:
    """JAX traces some of them as Python numbers, which are wider than the array."""

    def init() -> Any:
        return {"w": jnp.ones(2), "step": make()}

    assert_same_tree(restore(init), init())


def test_the_step_of_a_train_state_is_an_array() -> None:
    def init(key: jax.Array) -> Any:
        params = Net(4, nnx.Rngs(key)).linear.kernel[...]
        state = TrainState.create(apply_fn=None, params=params, tx=optax.adam(1e-3))
        return state.replace(step=jnp.asarray(0))

    got = restore(init, KEY)
    assert (got.step.dtype, int(got.step)) == (jnp.int32, 0)
    assert got.params.tobytes() == init(KEY).params.tobytes()


@pytest.mark.slow
def test_arguments_and_arrays_may_be_returned_several_times() -> None:
    def init(key: jax.Array, x: jax.Array) -> Any:
        w = jax.random.normal(key, (4,))
        return {"x": x, "key": key, "w": w, "tied": w, "pair": (w, x)}

    x = jnp.arange(3.0)
    assert_same_tree(restore(init, KEY, x), init(KEY, x))
    host = {"w": np.zeros(4, np.float32), "tied": np.zeros(4, np.float32)}
    got = tx.restore(tx.Recipe(init, KEY, x), host, extra="ignore")
    got["w"][:] = 0
    assert got["tied"].tobytes() == np.asarray(init(KEY, x)["tied"]).tobytes()


@pytest.mark.parametrize("size", [4, 100_000])
def test_results_do_not_share_memory_with_arguments(size: int) -> None:
    """Small leaves share an arena, large ones have their own buffers."""
    for value in (np.arange(size, dtype=np.float32), jnp.arange(size, dtype=jnp.float32)):
        before = np.asarray(value).copy()
        got = tx.restore(tx.Recipe(lambda v: {"v": v}, value), {"v": np.zeros(size, np.float32)})
        got["v"][:] = -1
        assert np.array_equal(value, before)


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["threefry2x32", *mark_slow("rbg", "unsafe_rbg")])
def test_typed_prng_keys_are_computed(impl: str) -> None:
    def init(key: jax.Array) -> Any:
        return {"one": key, "many": jax.random.split(key, 8)}

    key = jax.random.key(3, impl=impl)
    assert_same_tree(restore(init, key), init(key))
    spread = jax.sharding.NamedSharding(
        jax.make_mesh((8,), ("x",)), jax.sharding.PartitionSpec("x")
    )
    got = restore(init, key, shardings={"one": None, "many": spread})
    assert_same_tree(got, init(key))
    assert got["many"].sharding.is_equivalent_to(spread, 1)
    another = "rbg" if impl == "threefry2x32" else "threefry2x32"
    other = jax.eval_shape(lambda: jax.random.key(0, impl=another))
    match = tx.check(tx.Recipe(init, key), {"one": other, "many": ...})
    assert [(m.problem, m.name) for m in match.mismatches] == [("dtype", "one")]


@pytest.mark.slow
def test_a_jitted_function_gives_the_same_values() -> None:
    @jax.jit
    def init(key: jax.Array) -> Any:
        return {"w": jax.random.normal(key, (3,)) * 3, "b": jnp.ones(2), "n": jnp.asarray(0)}

    assert_same_tree(restore(init, KEY), init(KEY))
    got = tx.restore(tx.Recipe(init, KEY), {"w": A((3,), jnp.float32)}, extra="ignore")
    assert got["w"].tobytes() == init(KEY)["w"].tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("stored", ["float32", "int8", "complex64"])
def test_casts_are_those_of_jax(stored: str) -> None:
    wanted = {"float32": "bfloat16", "int8": "int32", "complex64": "complex64"}[stored]

    def init(key: jax.Array) -> Any:
        return {"w": (jax.random.normal(key, (65, 3)) * 100).astype(stored)}

    recipe, template = tx.Recipe(init, KEY), {"w": A((65, 3), wanted)}
    if stored == wanted:
        got = tx.restore(recipe, template)
    else:
        with pytest.warns(tx.CastWarning, match=f"{stored} to {wanted}"):
            got = tx.restore(recipe, template)
        with pytest.raises(tx.TemplateError):
            tx.restore(recipe, template, cast="exact")
    assert_same_tree(got, {"w": init(KEY)["w"].astype(wanted)})


def test_at_applies_to_the_second_checkpoint() -> None:
    """`rename` does not: it is about the names of the first checkpoint."""
    first = tx.Recipe(lambda: {"params": {"old": jnp.ones(2)}})
    second = tx.Recipe(lambda: {"params": {"head": jnp.full(2, 5.0)}, "head": jnp.zeros(2)})
    template = {"body": A((2,), jnp.float32), "head": A((2,), jnp.float32)}
    renames = {"old": "body", "head": "elsewhere"}

    def rename(name: str) -> str:
        return renames.get(name, name)

    got = tx.restore(first, template, at="params", rename=rename, missing=second)
    assert (got["body"].tolist(), got["head"].tolist()) == ([1, 1], [5, 5])


def test_leaves_of_the_second_checkpoint_are_matched() -> None:
    first = tx.Recipe(lambda: {"a": jnp.ones(2)})
    template = {"a": A((2,), jnp.float32), "b": A((2,), jnp.float32), "c": A((), jnp.float32)}
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(first, template, missing=tx.Recipe(lambda: {"b": jnp.ones(3)}))
    assert [(m.problem, m.name) for m in caught.value.mismatches] == [
        ("shape", "b"),
        ("missing", "c"),
    ]
    assert "Expected shape `(2,)`, got `(3,)` - at `b`; in Recipe(" in str(caught.value)


def test_the_first_checkpoint_takes_precedence() -> None:
    """Even if only the leaf of the second one would match."""
    first = tx.Recipe(lambda: {"a": jnp.ones(3), "b": jnp.ones(2)})
    second = tx.Recipe(lambda: {"a": jnp.zeros(2)})
    match = tx.check(first, {"a": A((2,), jnp.float32), "b": ...}, missing=second)
    assert [(m.problem, m.found) for m in match.mismatches] == [("shape", "(3,)")]


def test_exceptions_of_the_second_function_are_raised() -> None:
    def broken() -> Any:
        raise LookupError("no data today")

    first, template = tx.Recipe(lambda: {"a": jnp.ones(2)}), {"a": A((2,), jnp.float32)}
    with pytest.raises(LookupError, match="no data today"):
        tx.restore(first, template, missing=tx.Recipe(broken))


@pytest.mark.filterwarnings("ignore")
def test_exceptions_while_computing_are_raised_and_leave_no_thread() -> None:
    def fail() -> Any:
        raise RuntimeError("out of numbers")

    def init() -> Any:
        return {"a": jax.pure_callback(fail, A((), jnp.float32)), "b": jnp.ones(2)}

    before = set(threading.enumerate())
    with pytest.raises(jax.errors.JaxRuntimeError, match="out of numbers"):
        tx.restore(tx.Recipe(init), {"a": A((), jnp.float32), "b": ...})
    assert {t for t in threading.enumerate() if t.name.startswith("templax")} <= before
    got = tx.restore(tx.Recipe(init), {"a": ..., "b": A((2,), jnp.float32)})  # `a` is not computed
    assert got["b"].tolist() == [1, 1]


def test_a_function_is_traced_once_per_open() -> None:
    traced = []

    def init(key: jax.Array) -> Any:
        traced.append(1)
        return {"w": jax.random.normal(key, (3,))}

    catalog = tx.open(tx.Recipe(init, KEY))
    assert len(traced) == 1
    template = {"w": A((3,), jnp.float32)}
    first, second = tx.restore(catalog, template), tx.restore(catalog, template)
    assert len(traced) == 1
    assert_same_tree(first, second)


def test_a_function_of_concrete_values_is_called_once_per_open() -> None:
    called = []

    def init(x: jax.Array) -> Any:
        called.append(1)
        return {"a": jnp.ones(int(x.sum())), "n": 3, "f": jnp.sin, "k": KEY}

    catalog = tx.open(tx.Recipe(jax.tree_util.Partial(init), jnp.ones(2)))
    assert set(catalog.leaves) == {"a", "n", "k"}
    n = len(called)
    got = tx.restore(catalog, {"a": A((2,), jnp.float32), "n": int, "f": None, "k": KEY})
    assert (got["a"].tolist(), got["n"]) == ([1, 1], 3)
    assert len(called) == n


class Maker:
    def make(self) -> Any:
        return {"w": jnp.ones(2)}

    __call__ = make


def make_named() -> Any:
    return {"w": jnp.ones(2)}


@pytest.mark.parametrize(
    ("fn", "url"),
    [
        (make_named, "Recipe(make_named)"),
        (Maker(), "Recipe(Maker)"),
        (functools.partial(make_named), "Recipe(partial)"),
        (Maker().make, "Recipe(Maker.make)"),
    ],
    ids=["function", "object", "partial", "method"],
)
def test_a_recipe_is_named_after_its_function(fn: Any, url: str) -> None:
    recipe = tx.Recipe(fn)
    assert (repr(recipe), recipe.url) == (url, url)
    assert str(tx.check(recipe, {"w": A((2,), jnp.float32)})) == f"the leaf matches {url}"
    assert str(tx.check(recipe, {"w": A((3,), jnp.float32)})) == (
        f"1 of 1 leaf does not match {url}\n  Expected shape `(3,)`, got `(2,)` - at `w`"
    )


def test_the_template_of_a_recipe_restores_all_of_it() -> None:
    tree = {"n": 3, "s": "text", "l": [jnp.ones(2), {"k": KEY}], "wide": np.array([2**40])}
    catalog = tx.open(tx.Recipe(lambda: tree))
    assert_same_tree(tx.restore(catalog, catalog.template()), tree)


@pytest.mark.parametrize("value", [{}, [], None, (), {"f": jnp.sin}])
def test_a_function_that_returns_no_data_has_no_leaves(value: Any) -> None:
    catalog = tx.open(tx.Recipe(lambda: value))
    assert dict(catalog.leaves) == {}
    assert tx.restore(catalog, value) == value


def test_a_bare_array_can_be_restored() -> None:
    assert restore(lambda: jnp.arange(3)).tolist() == [0, 1, 2]
