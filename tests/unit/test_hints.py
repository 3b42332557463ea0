"""Each hint is right when followed; and where none helps, none is given."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import templax as tx

A = jax.ShapeDtypeStruct


def f32(*shape: int) -> jax.ShapeDtypeStruct:
    return A(shape, jnp.float32)


def holds(tree: Any) -> tx.Recipe:
    """A checkpoint with the leaves of an abstract tree."""

    def checkpoint() -> Any:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype) if isinstance(x, A) else x, tree)

    return tx.Recipe(checkpoint)


URL = "Recipe(holds.<locals>.checkpoint)"
DENSE = {"kernel": f32(3, 8), "bias": f32(8)}
MLP = {"Dense_0": DENSE, "Dense_1": {"kernel": f32(8, 4), "bias": f32(4)}}


def hinted(checkpoint: Any, template: Any, **options: Any) -> tx.Match:
    match = tx.check(holds(checkpoint), template, **options)
    assert not match.ok
    return match


def follow(match: tx.Match, checkpoint: Any, template: Any, **options: Any) -> tx.Match:
    """Matches again with the keyword arguments that the hints spell."""
    for hint in {m.hint for m in match.mismatches if m.hint}:
        name, value = hint.split("=", 1)
        options[name] = eval(value)  # noqa: S307 - hints are Python, and that is what is tested
    return tx.check(holds(checkpoint), template, **options)


def silent(match: tx.Match) -> bool:
    return "hint" not in str(match) and all(m.hint is None for m in match.mismatches)


# --- where the tree is


def test_at_where_the_checkpoint_wraps_the_template() -> None:
    match = hinted({"params": MLP, "step": A((), jnp.int32)}, MLP)
    assert str(match) == (
        f"none of 4 leaves found in {URL}; the checkpoint holds the same tree under `params`;"
        ' hint: at="params"'
    )
    assert follow(match, {"params": MLP, "step": A((), jnp.int32)}, MLP).ok


def test_at_of_several_levels() -> None:
    checkpoint = {"state": {"model": {"params": MLP}}}
    match = hinted(checkpoint, MLP)
    assert match.mismatches[0].hint == 'at="state.model.params"'
    assert follow(match, checkpoint, MLP).ok


def test_a_wrong_at_is_corrected() -> None:
    match = hinted({"params": MLP}, MLP, at="param")
    assert str(match) == (
        f"none of 4 leaves found in {URL} under `param`; the checkpoint holds the same tree under"
        ' `params`; hint: at="params"'
    )


def test_an_at_too_many_is_dropped() -> None:
    match = hinted(MLP, MLP, at="params")
    assert match.mismatches[0].hint == 'at=""'
    assert "holds the same tree at its root" in str(match)
    assert follow(match, MLP, MLP, at="params").ok


def test_what_is_still_wrong_after_a_hint_is_said_with_it() -> None:
    template = {**MLP, "Dense_1": {"kernel": f32(8, 5), "bias": f32(4)}}
    match = hinted({"params": MLP}, template)
    assert str(match) == (
        f"none of 4 leaves found in {URL}; the checkpoint holds the same tree under `params`;"
        ' hint: at="params" (which leaves 1 mismatch, for instance:'
        " Expected shape `(8, 5)`, got `(8, 4)` - at `Dense_1.kernel`)"
    )
    after = follow(match, {"params": MLP}, template)
    assert [(m.problem, m.name) for m in after.mismatches] == [("shape", "Dense_1.kernel")]


def test_the_template_wraps_the_checkpoint() -> None:
    match = hinted(MLP, {"params": MLP})
    assert str(match) == (
        f"none of 4 leaves found in {URL}; the template wraps the checkpoint's tree in `params`;"
        ' hint: rename={"": "params"}'
    )
    assert follow(match, MLP, {"params": MLP}).ok


def test_a_bare_leaf_in_one_place_only() -> None:
    checkpoint = {"a": f32(3), "b": f32(4)}
    match = hinted(checkpoint, f32(4))
    assert match.mismatches[0].hint == 'at="b"'
    assert follow(match, checkpoint, f32(4)).ok


def test_parameters_of_a_training_state_beside_the_moments_of_its_optimizer() -> None:
    """Adam's moments look like parameters: the shallowest place is meant, the others said."""
    moments = {"mu": MLP, "nu": MLP, "count": A((), jnp.int32)}
    checkpoint = {"params": MLP, "opt_state": [moments, {}], "step": A((), jnp.int32)}
    match = hinted(checkpoint, MLP)
    assert str(match) == (
        f"none of 4 leaves found in {URL}; the checkpoint holds the same tree under `params`"
        ' (as well as under `opt_state.0.mu` and `opt_state.0.nu`); hint: at="params"'
    )
    assert follow(match, checkpoint, MLP).ok


def test_two_equally_good_places_are_both_offered() -> None:
    checkpoint = {"params": MLP, "ema": MLP}
    match = hinted(checkpoint, MLP)
    assert str(match) == (
        f"none of 4 leaves found in {URL}; the checkpoint holds the same tree under `ema` and"
        ' under `params`; hint: at="ema" or at="params"'
    )
    assert all(tx.check(holds(checkpoint), MLP, at=at).ok for at in checkpoint)


def test_a_new_leaf_does_not_hide_where_the_others_are() -> None:
    match = hinted({"params": MLP}, {**MLP, "head": f32(3)})
    assert str(match) == (
        f"none of 5 leaves found in {URL}; the checkpoint holds most under `params`;"
        ' hint: at="params" (which leaves 1 mismatch, for instance:'
        " Expected a leaf, found none - at `head`)"
    )


def test_a_number_that_does_not_fit_is_counted_after_a_hint() -> None:
    """A stored Python int is looked at when a hint is tried, too."""
    checkpoint = {"params": {"w": f32(2), "step": 2**40}}
    match = hinted(checkpoint, {"w": f32(2), "step": A((), jnp.int32)})
    assert str(match).endswith(
        'hint: at="params" (which leaves 1 mismatch, for instance: Expected dtype `int32`, got'
        f" `int64` - at `step`; the number is {2**40})"
    )
    match = hinted({"step": 2**40, "Dense": f32(2)}, {"step": A((), jnp.int32), "dense": f32(2)})
    assert {m.name: m.hint for m in match.mismatches}["dense"] == 'rename={"Dense": "dense"}'


def test_a_shape_of_another_rank_is_no_transpose() -> None:
    for stored, wanted in [((4, 8), (32,)), ((4, 8), ()), ((32,), (4, 8)), ((2, 3, 4), (4, 3))]:
        match = hinted({"w": f32(*stored)}, {"w": f32(*wanted)})
        assert [(m.problem, m.hint) for m in match.mismatches] == [("shape", None)]
    assert [m.problem for m in hinted({"w": f32(4, 8)}, {"w": int}).mismatches] == [
        "shape",
        "dtype",
    ]


def test_names_with_quotes_are_spelled_as_python() -> None:
    checkpoint = {'it\'s "x"': MLP}
    match = hinted(checkpoint, MLP)
    assert follow(match, checkpoint, MLP).ok


# --- what leaves are called


def test_rename_for_another_case() -> None:
    template = {"dense_0": MLP["Dense_0"], "dense_1": MLP["Dense_1"]}
    match = hinted(MLP, template)
    assert str(match) == "\n".join(
        [
            f"4 of 4 leaves do not match {URL}, and 4 of its leaves are not in the template",
            "  Expected a leaf, found none - at `dense_0.bias`; nearest: `Dense_0.bias`",
            "  Expected a leaf, found none - at `dense_0.kernel`; nearest: `Dense_0.kernel`",
            "  Expected a leaf, found none - at `dense_1.bias`; nearest: `Dense_1.bias`",
            "  Expected a leaf, found none - at `dense_1.kernel`; nearest: `Dense_1.kernel`",
            "  Expected no leaf, found `float32(8,)` - at `Dense_0.bias`",
            "  Expected no leaf, found `float32(3, 8)` - at `Dense_0.kernel`",
            "  Expected no leaf, found `float32(4,)` - at `Dense_1.bias`",
            "  Expected no leaf, found `float32(8, 4)` - at `Dense_1.kernel`",
            '  hint: rename={"Dense_0": "dense_0", "Dense_1": "dense_1"}',
        ]
    )
    assert follow(match, MLP, template).ok


def test_rename_of_one_leaf_by_a_near_name() -> None:
    checkpoint = {"head": {"biases": f32(4), "kernel": f32(3, 4)}}
    template = {"head": {"bias": f32(4), "kernel": f32(3, 4)}}
    match = hinted(checkpoint, template)
    assert match.mismatches[0].hint == 'rename={"head.biases": "head.bias"}'
    assert follow(match, checkpoint, template).ok


def test_rename_beside_another_mismatch_leaves_the_other_its_own_hint() -> None:
    checkpoint = {"Head": f32(4), "w": f32(3, 4)}
    template = {"head": f32(4), "w": f32(4, 3)}
    match = hinted(checkpoint, template)
    assert [m.hint for m in match.mismatches] == [
        'rename={"Head": "head"}',
        "the checkpoint holds the transpose: ask for shape `(3, 4)` and swap the last two axes of"
        " the result",
        'rename={"Head": "head"}',
    ]


def test_a_long_rename_is_whole_on_the_match() -> None:
    checkpoint = {f"Layer_{i}": f32(2) for i in range(9)}
    template = {f"layer_{i}": f32(2) for i in range(9)}
    match = hinted(checkpoint, template)
    assert "(9 entries, whole in `error.match.rename`)" in str(match)
    assert match.rename == {f"Layer_{i}": f"layer_{i}" for i in range(9)}
    assert tx.check(holds(checkpoint), template, rename=match.rename).ok


def test_the_value_level_of_the_checkpoint() -> None:
    checkpoint = {"l": {"kernel": {"value": f32(2)}, "bias": {"value": f32(3)}}}
    template = {"l": {"kernel": f32(2), "bias": f32(3)}}
    match = hinted(checkpoint, template)
    assert str(match) == (
        f"none of 2 leaves found in {URL}; the checkpoint has an extra level `value`"
        " (an NNX variable or a Flax box);"
        ' hint: rename=lambda name: name.removesuffix(".value")'
    )
    assert follow(match, checkpoint, template).ok


def test_the_value_level_of_the_template() -> None:
    template = {"l": {"kernel": {"value": f32(2)}, "bias": {"value": f32(3)}}}
    checkpoint = {"l": {"kernel": f32(2), "bias": f32(3)}}
    match = hinted(checkpoint, template)
    assert match.mismatches[0].hint == 'rename=lambda name: name + ".value"'
    assert follow(match, checkpoint, template).ok


# --- how leaves are laid out


def test_a_transposed_leaf() -> None:
    match = hinted({"w": f32(3, 8)}, {"w": f32(8, 3)})
    assert match.mismatches[0].hint == (
        "the checkpoint holds the transpose: ask for shape `(3, 8)` and swap the last two axes"
        " of the result"
    )


def test_layers_that_the_checkpoint_stacks() -> None:
    checkpoint = {"layers": {"w": f32(4, 2, 3), "b": f32(4, 3)}}
    template = {f"layers_{i}": {"w": f32(2, 3), "b": f32(3)} for i in range(4)}
    match = hinted(checkpoint, template)
    by_name = {m.name: m.hint for m in match.mismatches}
    assert (
        by_name["layers_2.w"]
        == by_name["layers.w"]
        == (
            "the checkpoint stacks these 4 layers along axis 0 of `layers.w`, as scan does:"
            " ask for the stacked leaf and split the result"
        )
    )


def test_layers_that_the_template_stacks_along_another_axis() -> None:
    checkpoint = {"layers": [{"w": f32(2, 3)} for _ in range(4)]}
    match = hinted(checkpoint, {"layers": {"w": f32(2, 4, 3)}})
    assert match.mismatches[0].hint == (
        "the checkpoint holds `layers.w` as 4 layers, `layers.0.w` to `layers.3.w`:"
        " ask for the layers and stack the results along axis 1"
    )


def test_a_stack_along_one_of_several_equal_axes_names_none() -> None:
    checkpoint = {"layers": {"w": f32(4, 4)}}
    match = hinted(checkpoint, {f"layers_{i}": {"w": f32(4)} for i in range(4)})
    assert "stacks these 4 layers along one axis of `layers.w`" in str(match)


@pytest.mark.parametrize(
    "other", [{"other": {"w": A((2, 3), jnp.int32)}}, {"layers": {"w": A((2, 3), jnp.int32)}}]
)
def test_what_merely_has_the_size_of_a_stack_is_none(other: Any) -> None:
    assert silent(hinted(other, {"layers": [{"w": f32(3)}, {"w": f32(3)}]}))


# --- what is asked for besides


def test_extra_ignore() -> None:
    checkpoint = {"params": MLP, "opt_state": {"mu": f32(3)}}
    match = hinted(checkpoint, {"params": MLP})
    assert str(match) == "\n".join(
        [
            f"1 leaf of {URL} is not in the template, at `opt_state.mu`",
            '  Expected no leaf, found `float32(3,)` - at `opt_state.mu`; hint: extra="ignore"',
        ]
    )
    assert follow(match, checkpoint, {"params": MLP}).ok


def test_cast_float_where_a_stricter_one_was_chosen() -> None:
    template = {"w": A((2,), jnp.bfloat16)}
    match = hinted({"w": f32(2)}, template, cast="exact")
    assert match.mismatches[0].hint == 'cast="float"'
    assert follow(match, {"w": f32(2)}, template, cast="exact").ok


def test_cast_widen_where_that_is_enough() -> None:
    template = {"w": f32(2)}
    match = hinted({"w": A((2,), jnp.bfloat16)}, template, cast="exact")
    assert match.mismatches[0].hint == 'cast="widen"'


def test_64_bit_types_that_jax_would_cut() -> None:
    match = hinted({"w": f32(2)}, {"w": A((2,), np.dtype("float64"))})
    assert str(match.mismatches[0]) == (
        "Expected dtype `float64`, got `float32` - at `w`; a jax.Array holds no 64-bit numbers"
        ' while jax_enable_x64 is off; hint: jax.config.update("jax_enable_x64", True), or a numpy'
        " array as template leaf"
    )


# --- silence


@pytest.mark.parametrize(
    ("checkpoint", "template"),
    [
        pytest.param(dict.fromkeys("abcd", MLP), MLP, id="four places fit equally well"),
        pytest.param(
            {f"x{i}": f32(3) for i in range(20)}, f32(3), id="a bare leaf in twenty places"
        ),
        pytest.param({"scale": f32(3)}, {"bias": f32(3)}, id="one shape, unlike names"),
        pytest.param({"Dense": f32(3)}, {"dense": f32(4)}, id="a near name of another shape"),
        pytest.param(
            {"Dense_0": f32(3), "DENSE_0": f32(3)}, {"dense_0": f32(3)}, id="two near names"
        ),
        pytest.param({"x": {"q": f32(2)}}, {"y": {"r": f32(5)}}, id="unrelated trees"),
        pytest.param({"w": f32(3, 3)}, {"w": f32(3, 4)}, id="a shape that is no transpose"),
        pytest.param({"w": f32(2)}, {"w": A((2,), jnp.int8)}, id="a cast that none allows"),
        pytest.param(
            {"layers": f32(3, 2)},
            {f"layers_{i}": f32(2) for i in range(4)},
            id="a stack of another height",
        ),
        pytest.param({"w": f32(2)}, {"w": f32(2), "new": f32(3)}, id="a leaf that is nowhere"),
        pytest.param(
            {"encoder": {"w": f32(2)}, "decoder": {"w": f32(2)}},
            {"coder": {"w": f32(2)}},
            id="two subtrees of the same look",
        ),
    ],
)
def test_no_hint_where_none_works(checkpoint: Any, template: Any) -> None:
    assert silent(hinted(checkpoint, template))


def test_a_hint_never_hides_a_mismatch_that_remains() -> None:
    """After any hint is followed, what it was attached to is gone."""
    checkpoint = {"params": {"Dense_0": DENSE, "extra": f32(1)}, "opt": f32(9)}
    template = {"dense_0": DENSE}
    match = hinted(checkpoint, template)
    for m in match.mismatches:
        if m.hint and re.match(r"(at|rename|extra|cast)=", m.hint):
            after = follow(match, checkpoint, template)
            assert (m.problem, m.name) not in [(a.problem, a.name) for a in after.mismatches]


def test_a_number_in_a_name_is_no_spelling() -> None:
    """`layers_3` for `layers_4` would load another layer."""
    checkpoint = {f"layers_{i}": f32(3) for i in (0, 1, 2, 3)}
    template = {f"layers_{i}": f32(3) for i in (0, 1, 2, 4)}
    assert silent(hinted(checkpoint, template))


def test_64_bit_types_would_not_help_against_another_mismatch() -> None:
    assert silent(hinted({"w": f32(4)}, {"w": A((4,), np.dtype("int64"))}))
