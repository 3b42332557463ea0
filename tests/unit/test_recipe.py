"""A deterministic function is a checkpoint: the same bytes, and only what is asked for."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import templax as tx

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


def same(got: Any, want: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        if isinstance(b, jax.Array) and jnp.issubdtype(b.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        if isinstance(b, (jax.Array, np.ndarray)):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
        else:
            assert a == b


@pytest.mark.parametrize(
    ("fn", "args"),
    [(linen, (jnp.ones((1, 3, 5)),)), (net, (8,)), (mlp, (8,))],
    ids=["linen", "nnx", "equinox"],
)
def test_the_bytes_are_those_of_a_plain_call(fn: Any, args: Any) -> None:
    template = tx.template_of(fn, *args)
    same(tx.restore(tx.Recipe(fn, *args), template), fn(*args))


@pytest.mark.parametrize(
    "draw",
    [
        jax.random.normal,
        jax.random.uniform,
        jax.random.truncated_normal,
        jax.random.orthogonal,
        jax.random.permutation,
        jax.nn.initializers.lecun_normal(),
        jax.nn.initializers.he_uniform(),
        jax.nn.initializers.orthogonal(),
        jax.nn.initializers.delta_orthogonal(),
        jax.nn.initializers.variance_scaling(2.0, "fan_avg", "truncated_normal"),
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

    same(tx.restore(tx.Recipe(init, KEY), tx.template_of(init, KEY)), init(KEY))


def test_only_what_is_asked_for_is_computed() -> None:
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


def test_as_the_second_checkpoint_it_computes_what_is_missing() -> None:
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


def test_a_function_that_looks_at_values_is_called() -> None:
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
def test_64_bit_numbers_of_numpy_are_not_cut(value: Any) -> None:
    for recipe in (tx.Recipe(lambda: {"v": value}), tx.Recipe(lambda v: {"v": v}, value)):
        got = tx.restore(recipe, {"v": np.zeros_like(value)})["v"]
        assert got.dtype == value.dtype
        assert np.array_equal(got, value)
    if np.asarray(value).dtype.kind in "iu":
        match = tx.check(tx.Recipe(lambda: {"v": value}), {"v": A(np.shape(value), jnp.int32)})
        assert [m.problem for m in match.mismatches] == ["dtype"]


def test_numbers_strings_and_functions_beside_arrays() -> None:
    tree = {"n": 3, "x": 0.5, "b": True, "s": "text", "f": jax.nn.relu, "w": jnp.ones(2)}
    recipe = tx.Recipe(lambda: tree)
    assert set(tx.open(recipe).leaves) == {"n", "x", "b", "s", "w"}
    got = tx.restore(recipe, {**tree, "w": A((2,), jnp.float32)})
    assert {k: got[k] for k in "nxbsf"} == {k: tree[k] for k in "nxbsf"}


def test_mismatches_casts_and_shardings_are_as_of_any_checkpoint() -> None:
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


def test_what_the_function_raises_is_raised() -> None:
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
def test_what_can_not_be_called_is_refused(make: Any, text: str) -> None:
    with pytest.raises(tx.UsageError) as caught:
        make()
    assert str(caught.value) == text
