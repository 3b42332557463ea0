"""Hints on shapes and keys: turned kernels, those that may be, a leading axis, other integers."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import templax as tx
from helpers import checkpoint_like, f32
from mismatches import fail_match, has_no_hint

A = jax.ShapeDtypeStruct


@pytest.mark.parametrize(
    ("stored", "wanted", "axes"),
    [
        ((8, 3, 5, 5), (5, 5, 3, 8), (2, 3, 1, 0)),
        ((5, 5, 3, 8), (8, 3, 5, 5), (3, 2, 0, 1)),
        ((8, 3, 2, 5, 5), (2, 5, 5, 3, 8), (2, 3, 4, 1, 0)),
        ((8, 3, 5), (5, 3, 8), (2, 1, 0)),
    ],
)
def test_the_permutation_of_a_convolution_is_hinted(stored: Any, wanted: Any, axes: Any) -> None:
    match = fail_match({"conv": {"kernel": f32(*stored)}}, {"conv": {"kernel": f32(*wanted)}})
    assert match.mismatches[0].hint == (
        f"the checkpoint holds the axes in another order: ask for shape `{stored}` and take"
        f" `jnp.transpose(x, {axes})` of the result"
    )
    assert jnp.transpose(jnp.zeros(stored), axes).shape == wanted


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        pytest.param(
            {"w1": f32(8, 3), "w2": f32(3, 8)}, {"w1": f32(3, 8), "w2": f32(8, 3)}, id="swapped"
        ),
        pytest.param(
            {"up": f32(8, 3), "gate": f32(3, 8)}, {"up": f32(3, 8), "x": f32(5)}, id="renamed"
        ),
        pytest.param(
            {"kernel": f32(8, 3), "bias": f32(3)},
            {"kernel": f32(3, 8), "bias": f32(8)},
            id="the bias is that of a layer which is not turned",
        ),
        pytest.param(
            {"kernel": f32(5, 5, 3, 8), "b": f32(8)},
            {"kernel": f32(8, 3, 5, 5), "b": f32(3)},
            id="the bias of a convolution has another size",
        ),
    ],
)
def test_no_transpose_is_hinted_where_leaves_may_have_changed_places(
    stored: Any, wanted: Any
) -> None:
    square = {"other": {"w1": f32(4, 4), "kernel": f32(4, 4)}}
    match = fail_match({"l": stored, **square}, {"l": wanted, **square})
    assert "axes" not in str(match)
    assert match.undecidable == ()


def test_transposed_kernels_of_mirrored_layers_are_hinted() -> None:
    stored = {"a": {"kernel": f32(8, 3), "bias": f32(8)}, "b": {"kernel": f32(3, 8)}}
    wanted = {"a": {"kernel": f32(3, 8), "bias": f32(8)}, "b": {"kernel": f32(8, 3)}}
    assert all("transpose" in (m.hint or "") for m in fail_match(stored, wanted).mismatches)


def test_no_unusual_permutation_is_hinted() -> None:
    assert has_no_hint(fail_match({"kernel": f32(8, 3, 5, 6)}, {"kernel": f32(6, 8, 3, 5)}))


class _Net(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(10, name="fc")(nn.Dense(8, name="square")(x))


def test_square_kernels_beside_a_transposed_one_are_named() -> None:
    stored = {
        "square.weight": f32(8, 8),
        "square.bias": f32(8),
        "fc.weight": f32(10, 8),
        "fc.bias": f32(10),
    }
    template = tx.template_of(_Net().init, jax.random.key(0), jnp.ones((1, 8)))

    def rename(name: str) -> str:
        return "params." + name.replace("weight", "kernel")

    match = fail_match(stored, template, rename=rename)
    assert match.undecidable == ("params.square.kernel",)
    assert str(match).split("\n")[-1] == (
        "  Can't tell by its shape whether it is transposed like the above"
        " - at `params.square.kernel`"
    )


@pytest.mark.parametrize(
    ("square", "other"),
    [("q.kernel", "up.kernel"), ("l/q/kernel", "l/up/kernel"), ("l_q_weight", "up.weight")],
)
def test_square_kernels_are_named_in_flat_trees_too(square: str, other: str) -> None:
    stored, template = {square: f32(8, 8), other: f32(32, 8)}, {square: f32(8, 8)}
    match = fail_match(stored, template | {other: f32(8, 32), "embed.embedding": f32(8, 8)})
    assert match.undecidable == (square,)


def test_square_leaves_without_a_common_name_are_named_beside_a_transposed_one() -> None:
    stored = {"attn": {"wq": f32(8, 8), "scale": f32(8, 8)}, "mlp": {"w_up": f32(32, 8)}}
    template = {"attn": {"wq": f32(8, 8), "scale": f32(8, 8)}, "mlp": {"w_up": f32(8, 32)}}
    assert fail_match(stored, template).undecidable == ("attn.wq",)


def test_cubic_kernels_of_convolutions_are_named_beside_a_permuted_one() -> None:
    stored = {"a": {"kernel": f32(8, 3, 5, 5)}, "b": {"kernel": f32(5, 5, 5, 5)}}
    template = {"a": {"kernel": f32(5, 5, 3, 8)}, "b": {"kernel": f32(5, 5, 5, 5)}}
    assert fail_match(stored, template).undecidable == ("b.kernel",)


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ({"fc": {"kernel": f32(3, 8)}}, {"fc": {"kernel": f32(3, 9)}}),  # nothing is transposed
        ({"e": {"embedding": f32(10, 8)}}, {"e": {"embedding": f32(8, 10)}}),  # of another name
        ({}, {"fc": {"kernel": f32(3, 8)}}),
    ],
)
def test_square_kernels_are_not_named_without_a_transposed_one(stored: Any, wanted: Any) -> None:
    square = {"square": {"kernel": f32(8, 8), "bias": f32(8)}}
    match = fail_match({**square, **stored}, {**square, **wanted})
    assert match.undecidable == ()
    assert "Can't tell" not in str(match)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 8])
def test_a_leading_axis_of_every_leaf_is_hinted(n: int) -> None:
    def make() -> Any:
        return {"w": jnp.ones((n, 3, 4)), "b": jnp.ones((n, 4)), "step": jnp.ones(n, jnp.int32)}

    template = {"w": f32(3, 4), "b": f32(4), "step": A((), jnp.int32)}
    match = tx.check(tx.Recipe(make), template)
    (hint,) = {m.hint for m in match.mismatches}
    assert hint is not None
    assert hint.startswith(f"every leaf of the checkpoint has a leading axis of {n}, ")
    restore, take = hint.split("`")[1::2]
    stacked = tx.restore(tx.Recipe(make), eval(restore))  # noqa: S307 - as the hint spells it
    result = eval(take, {"jax": jax, "result": stacked})  # noqa: S307
    assert jax.tree.map(jnp.shape, result) == jax.tree.map(lambda s: s.shape, template)


def test_a_leading_axis_of_some_leaves_is_hinted() -> None:
    checkpoint = {"w": f32(8, 3, 4), "b": f32(8, 4), "step": A((), jnp.int32)}
    template = {"w": f32(3, 4), "b": f32(4), "step": A((), jnp.int32)}
    match = fail_match(checkpoint, template)
    (hint,) = {m.hint for m in match.mismatches}
    assert hint is not None
    assert hint.startswith("2 leaves of the checkpoint have a leading axis of 8, ")
    back = fail_match(template, checkpoint)
    (hint,) = {m.hint for m in back.mismatches}
    assert hint is not None
    assert "2 leaves of the template have a leading axis of 8 that the checkpoint lacks" in hint


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ({"w": f32(8, 3)}, {"w": f32(3)}),
        ({"w": f32(8, 3), "v": f32(7, 3)}, {"w": f32(3), "v": f32(3)}),
        ({"w": f32(3, 8), "v": f32(4, 8)}, {"w": f32(3), "v": f32(4)}),
        ({"w": f32(8, 3), "v": f32(8, 3)}, {k: A((3,), jnp.int8) for k in "wv"}),
    ],
)
def test_no_leading_axis_is_hinted_where_leaves_do_not_share_it(stored: Any, wanted: Any) -> None:
    assert has_no_hint(fail_match(stored, wanted))


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_raw_and_typed_keys_are_hinted_both_ways(impl: str, shape: Any) -> None:
    key = jax.random.split(jax.random.key(0, impl=impl), 3)
    key = key if shape else key[0]
    data = jax.random.key_data(key)
    for checkpoint, template, expected in ((data, key, key), (key, data, data)):
        match = tx.check(tx.Recipe(lambda value=checkpoint: {"k": value}), {"k": template})
        (m,) = match.mismatches
        assert m.problem == "kind"
        assert m.hint is not None
        ask, take = m.hint.split("`")[1::2]
        asked = eval(ask)  # noqa: S307 - as the hint spells it
        got = tx.restore(tx.Recipe(lambda value=checkpoint: {"k": value}), {"k": asked})["k"]
        result = eval(take, {"jax": jax, "key": got, "data": got})  # noqa: S307
        assert result.dtype == expected.dtype
        assert (result == expected).all()


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        (A((4,), jnp.uint32), jax.random.key(0)),
        (A((2,), jnp.int32), jax.random.key(0)),
        (jax.random.key(0), f32(2)),
        (jax.random.key(0), A((4,), jnp.uint32)),
    ],
)
def test_no_key_is_proposed_where_the_data_does_not_fit(stored: Any, wanted: Any) -> None:
    match = tx.check(
        tx.Recipe(lambda: {"k": stored if isinstance(stored, jax.Array) else _zeros(stored)}),
        {"k": wanted},
    )
    assert not match.ok
    assert has_no_hint(match)


def _zeros(s: Any) -> Any:
    return jnp.zeros(s.shape, s.dtype)


def test_numpy_integers_that_eval_shape_made_narrower_are_explained(tmp_path: Any) -> None:
    state = {"i": np.arange(4), "w": np.ones(3)}
    tx.save(tmp_path / "ckpt", state)
    match = tx.check(tmp_path / "ckpt", jax.eval_shape(lambda: state))
    (m,) = match.mismatches
    assert m.hint is not None
    assert m.hint.startswith('a numpy array of dtype "int64" as template leaf, as tx.template_of')
    assert tx.restore(tmp_path / "ckpt", tx.template_of(state))["i"].dtype == np.int64


def test_a_step_of_another_integer_width_is_explained() -> None:
    checkpoint = {"step": A((), jnp.uint32)}
    match = fail_match(checkpoint, {"step": A((), jnp.int32)})
    assert match.mismatches[0].hint == "`int` as template leaf takes an integer of any width"
    assert tx.check(checkpoint_like(checkpoint), {"step": int}).ok


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        (A((), jnp.float32), A((), jnp.int32)),
        (A((3,), jnp.uint32), A((3,), jnp.int32)),
        (A((), jnp.uint32), np.int32(0)),
    ],
)
def test_no_integer_is_explained_that_is_none_or_asked_for(stored: Any, wanted: Any) -> None:
    match = fail_match({"x": stored}, {"x": wanted})
    assert "takes an integer" not in str(match) or isinstance(wanted, np.generic)
