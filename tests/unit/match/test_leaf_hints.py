"""Hints on single leaves: transposed and stacked ones, dtypes and casts."""

from __future__ import annotations

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import templax as tx
from helpers import CHECKPOINT_LIKE_URL as URL
from helpers import checkpoint_like, f32
from mismatches import fail_match, follow_hints, has_no_hint

A = jax.ShapeDtypeStruct


def test_a_hint_counts_a_number_that_does_not_fit_its_dtype() -> None:
    """The value of a stored Python int is also checked when a hint is tried."""
    checkpoint = {"params": {"w": f32(2), "step": 2**40}}
    match = fail_match(checkpoint, {"w": f32(2), "step": A((), jnp.int32)})
    assert str(match).endswith(
        'hint: at="params", which leaves 1 mismatch:\n  Expected dtype `int32`, got'
        f" `int64` - at `step`; the number is {2**40}"
    )
    match = fail_match(
        {"step": 2**40, "Dense": f32(2)}, {"step": A((), jnp.int32), "dense": f32(2)}
    )
    assert {m.name: m.hint for m in match.mismatches}["dense"] == 'rename={"Dense": "dense"}'


def test_a_shape_of_another_rank_is_not_a_transpose() -> None:
    for stored, wanted in [((4, 8), (32,)), ((4, 8), ()), ((32,), (4, 8)), ((2, 3, 4), (4, 3))]:
        match = fail_match({"w": f32(*stored)}, {"w": f32(*wanted)})
        assert [(m.problem, m.hint) for m in match.mismatches] == [("shape", None)]
    assert [m.problem for m in fail_match({"w": f32(4, 8)}, {"w": int}).mismatches] == [
        "shape",
        "dtype",
    ]


def test_a_transpose_is_hinted() -> None:
    match = fail_match({"w": f32(3, 8)}, {"w": f32(8, 3)})
    assert match.mismatches[0].hint == (
        "the checkpoint holds the transpose: ask for shape `(3, 8)` and swap the last two axes"
        " of the result"
    )


def test_layers_stacked_in_the_checkpoint_are_hinted() -> None:
    checkpoint = {"layers": {"w": f32(4, 2, 3), "b": f32(4, 3)}}
    template = {f"layers_{i}": {"w": f32(2, 3), "b": f32(3)} for i in range(4)}
    match = fail_match(checkpoint, template)
    by_name = {m.name: m.hint for m in match.mismatches}
    assert (
        by_name["layers_2.w"]
        == by_name["layers.w"]
        == (
            "the checkpoint stacks these 4 layers along axis 0 of `layers.w`, as scan does:"
            " ask for the stacked leaf and split the result"
        )
    )


def test_layers_stacked_in_the_template_are_hinted_with_their_axis() -> None:
    checkpoint = {"layers": [{"w": f32(2, 3)} for _ in range(4)]}
    match = fail_match(checkpoint, {"layers": {"w": f32(2, 4, 3)}})
    assert match.mismatches[0].hint == (
        "the checkpoint holds `layers.w` as 4 layers, `layers.0.w` to `layers.3.w`:"
        " ask for the layers and stack the results along axis 1"
    )


def test_a_stack_hint_names_no_axis_if_several_are_possible() -> None:
    checkpoint = {"layers": {"w": f32(4, 4)}}
    match = fail_match(checkpoint, {f"layers_{i}": {"w": f32(4)} for i in range(4)})
    assert "stacks these 4 layers along one axis of `layers.w`" in str(match)


@pytest.mark.parametrize(
    "other", [{"other": {"w": A((2, 3), jnp.int32)}}, {"layers": {"w": A((2, 3), jnp.int32)}}]
)
def test_a_leaf_that_only_has_the_size_of_a_stack_gets_no_hint(other: Any) -> None:
    assert has_no_hint(fail_match(other, {"layers": [{"w": f32(3)}, {"w": f32(3)}]}))


def test_cast_float_is_hinted_if_a_stricter_policy_was_chosen() -> None:
    template = {"w": A((2,), jnp.bfloat16)}
    match = fail_match({"w": f32(2)}, template, cast="exact")
    assert match.mismatches[0].hint == 'cast="float"'
    assert follow_hints(match, {"w": f32(2)}, template, cast="exact").ok


def test_cast_widen_is_hinted_if_it_is_enough() -> None:
    template = {"w": f32(2)}
    match = fail_match({"w": A((2,), jnp.bfloat16)}, template, cast="exact")
    assert match.mismatches[0].hint == 'cast="widen"'


def test_enabling_x64_is_hinted_for_64_bit_dtypes() -> None:
    match = fail_match({"w": f32(2)}, {"w": A((2,), np.dtype("float64"))})
    assert str(match.mismatches[0]) == (
        "Expected dtype `float64`, got `float32` - at `w`; a jax.Array holds no 64-bit numbers"
        ' while jax_enable_x64 is off; hint: jax.config.update("jax_enable_x64", True), or a numpy'
        " array as template leaf"
    )


def test_enabling_x64_is_not_hinted_if_it_would_not_help() -> None:
    assert has_no_hint(fail_match({"w": f32(4)}, {"w": A((4,), np.dtype("int64"))}))


@pytest.mark.parametrize(
    ("stored", "wanted", "hint", "rest"),
    [
        (jnp.float32, jnp.bfloat16, 'cast="float"', "exact"),
        (jnp.float32, jnp.float16, 'cast="float"', "widen"),
        (jnp.bfloat16, jnp.float32, 'cast="widen"', "exact"),
        (jnp.int8, jnp.int32, 'cast="widen"', "exact"),
        (jnp.int8, jnp.float32, 'cast="widen"', "exact"),
    ],
)
def test_the_hinted_cast_is_the_strictest_that_works(
    stored: Any, wanted: Any, hint: str, rest: str
) -> None:
    checkpoint, template = {"w": A((2,), stored)}, {"w": A((2,), wanted)}
    match = fail_match(checkpoint, template, cast=rest)
    assert str(match) == "\n".join(
        [
            f"1 of 1 leaf does not match {URL}",
            f"  Expected dtype `{np.dtype(wanted).name}`, got `{np.dtype(stored).name}` - at `w`;"
            f" hint: {hint}",
        ]
    )
    assert follow_hints(match, checkpoint, template, cast=rest).ok


def test_the_shape_of_a_transpose_hint_can_be_restored() -> None:
    def checkpoint() -> Any:
        return {"w": jnp.arange(6.0).reshape(2, 3)}

    (m,) = tx.check(tx.Recipe(checkpoint), {"w": f32(3, 2)}).mismatches
    assert m.hint is not None
    shape = eval(re.findall(r"`(.*?)`", m.hint)[0])  # noqa: S307 - the shape as the hint spells it
    got = tx.restore(tx.Recipe(checkpoint), {"w": f32(*shape)})["w"]
    assert jnp.swapaxes(got, -1, -2).shape == (3, 2)


@pytest.mark.parametrize(
    ("stored", "wanted", "turned"),
    [
        ((3, 8), (8, 3), True),
        ((5, 3, 8), (5, 8, 3), True),
        ((1, 8), (8, 1), True),
        ((0, 8), (8, 0), True),
        ((3, 5, 8), (8, 5, 3), False),
        ((3, 8, 5), (5, 3, 8), False),
        ((3, 8), (8, 4), False),
        ((3, 8), (8, 3, 1), False),
        ((24,), (8, 3), False),
    ],
)
def test_only_a_swap_of_the_last_two_axes_is_a_transpose(
    stored: tuple[int, ...], wanted: tuple[int, ...], turned: bool
) -> None:
    match = fail_match({"w": f32(*stored)}, {"w": f32(*wanted)})
    assert has_no_hint(match) != turned
    assert [m.problem for m in match.mismatches] == ["shape"]


def _read_axis(hint: str) -> int:
    found = re.search(r"along axis (\d+)", hint)
    assert found
    return int(found[1])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_unstacking_as_hinted_gives_the_layers(axis: int) -> None:
    shape = [2, 3]
    shape.insert(axis, 4)
    checkpoint = {"layers": {"w": f32(*shape)}}
    template = {f"layers_{i}": {"w": f32(2, 3)} for i in range(4)}
    match = fail_match(checkpoint, template)
    hint = (
        f"the checkpoint stacks these 4 layers along axis {axis} of `layers.w`, as scan does:"
        " ask for the stacked leaf and split the result"
    )
    assert str(match) == "\n".join(
        [
            f"4 of 4 leaves do not match {URL}, and 1 of its leaves is not in the template",
            *(f"  Expected a leaf, found none - at `layers_{i}.w`" for i in range(4)),
            f"  Expected no leaf, found `float32{tuple(shape)}` - at `layers.w`",
            f"  hint: {hint}",
        ]
    )
    stacked = tx.restore(checkpoint_like(checkpoint), {"layers": {"w": f32(*shape)}})["layers"]["w"]
    assert [x.shape for x in jnp.unstack(stacked, axis=_read_axis(hint))] == [(2, 3)] * 4


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_stacking_as_hinted_gives_the_shape_of_the_template(axis: int) -> None:
    shape = [2, 3]
    shape.insert(axis, 4)
    checkpoint = {f"layers_{i}": {"w": f32(2, 3)} for i in range(4)}
    match = fail_match(checkpoint, {"layers": {"w": f32(*shape)}})
    hint = (
        "the checkpoint holds `layers.w` as 4 layers, `layers_0.w` to `layers_3.w`: ask for the"
        f" layers and stack the results along axis {axis}"
    )
    assert str(match) == "\n".join(
        [
            f"1 of 1 leaf does not match {URL}, and 4 of its leaves are not in the template",
            "  Expected a leaf, found none - at `layers.w`",
            *(f"  Expected no leaf, found `float32(2, 3)` - at `layers_{i}.w`" for i in range(4)),
            f"  hint: {hint}",
        ]
    )
    layers = tx.restore(
        checkpoint_like(checkpoint), {f"layers_{i}": {"w": f32(2, 3)} for i in range(4)}
    )
    stacked = jnp.stack([layers[f"layers_{i}"]["w"] for i in range(4)], _read_axis(hint))
    assert stacked.shape == tuple(shape)


def test_enabling_x64_as_hinted_makes_the_template_match() -> None:
    wide = A((2,), np.dtype("float64"))
    match = fail_match({"w": f32(2)}, {"w": wide})
    first, second = (match.mismatches[0].hint or "").split(", or ")
    assert first == 'jax.config.update("jax_enable_x64", True)'
    assert second == "a numpy array as template leaf"
    assert tx.check(checkpoint_like({"w": f32(2)}), {"w": np.zeros(2)}).ok
    checkpoint = checkpoint_like({"w": f32(2)})
    try:
        eval(first)  # noqa: S307 - the shape as the hint spells it
        assert tx.check(checkpoint, {"w": wide}).ok
    finally:
        jax.config.update("jax_enable_x64", False)


def test_a_stack_is_hinted_for_a_list_of_layers() -> None:
    match = fail_match({"layers": {"w": f32(3, 2)}}, {"layers": [{"w": f32(2)} for _ in range(3)]})
    assert {m.hint for m in match.mismatches} == {
        "the checkpoint stacks these 3 layers along axis 0 of `layers.w`, as scan does:"
        " ask for the stacked leaf and split the result"
    }


@pytest.mark.slow
def test_stack_hints_work_for_layers_scanned_by_flax() -> None:
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x: Any, _: Any) -> Any:
            return nn.Dense(3)(x), None

    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            over = nn.scan(
                Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=4
            )
            return over(name="layers")(x, None)[0]

    class Looped(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            for i in range(4):
                x, _ = Block(name=f"layers_{i}")(x, None)
            return x

    key, x = jax.random.key(0), jnp.ones((1, 3))
    scanned, looped = Scanned().init(key, x), Looped().init(key, x)
    for checkpoint, template, words in (
        (scanned, looped, "ask for the stacked leaf and split the result"),
        (looped, scanned, "ask for the layers and stack the results along axis 0"),
    ):
        match = fail_match(checkpoint, jax.tree.map(lambda v: A(v.shape, v.dtype), template))
        assert len({m.hint for m in match.mismatches}) == 2
        assert all(m.hint and words in m.hint for m in match.mismatches)


@pytest.mark.parametrize("policy", ["exact", "widen", "float"])
@pytest.mark.parametrize(
    ("stored", "wanted"), [("float32", "int32"), ("int32", "int8"), ("bool", "int32")]
)
def test_no_cast_is_hinted_if_no_policy_allows_it(policy: Any, stored: str, wanted: str) -> None:
    checkpoint, template = {"w": A((2,), jnp.dtype(stored))}, {"w": A((2,), jnp.dtype(wanted))}
    assert has_no_hint(fail_match(checkpoint, template, cast=policy))


def test_missing_keep_without_a_value_to_keep_is_explained() -> None:
    match = fail_match({"a": f32(3)}, {"a": f32(3), "head": f32(2)}, missing="keep")
    assert str(match.mismatches[0]) == (
        "Expected a leaf, found none - at `head`;"
        " the template has no value to keep here, only a shape and dtype;"
        " hint: missing=tx.Recipe(init, ...), where init(...) makes such a tree"
    )


def test_a_subtree_in_place_of_a_leaf_is_named() -> None:
    match = fail_match({"a": {"b": f32(2), "c": f32(2)}}, {"a": f32(2)}, extra="ignore")
    assert str(match.mismatches[0]) == ("Expected a leaf, found a subtree of 2 leaves - at `a`")
