"""Each hint is right when followed; and where none helps, none is given."""

from __future__ import annotations

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import assume, given, settings
from hypothesis import strategies as st

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
        ' hint: at="params", which leaves 1 mismatch:\n'
        "  Expected shape `(8, 5)`, got `(8, 4)` - at `Dense_1.kernel`"
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
        ' hint: at="params", which leaves 1 mismatch:\n'
        "  Expected a leaf, found none - at `head`"
    )


def test_a_number_that_does_not_fit_is_counted_after_a_hint() -> None:
    """A stored Python int is looked at when a hint is tried, too."""
    checkpoint = {"params": {"w": f32(2), "step": 2**40}}
    match = hinted(checkpoint, {"w": f32(2), "step": A((), jnp.int32)})
    assert str(match).endswith(
        'hint: at="params", which leaves 1 mismatch:\n  Expected dtype `int32`, got'
        f" `int64` - at `step`; the number is {2**40}"
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


# --- every hint followed to the end


def test_a_wrong_at_followed_by_restore_gives_the_values() -> None:
    def checkpoint() -> Any:
        return {"params": {"w": jnp.arange(3.0)}}

    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(tx.Recipe(checkpoint), {"w": f32(3)}, at="model.params")
    assert str(caught.value) == (
        "none of 1 leaf found in Recipe(test_a_wrong_at_followed_by_restore_gives_the_values."
        "<locals>.checkpoint) under `model.params`; the checkpoint holds the same tree under"
        ' `params`; hint: at="params"'
    )
    assert tx.restore(tx.Recipe(checkpoint), {"w": f32(3)}, at="params")["w"].tolist() == [0, 1, 2]


def test_the_template_wraps_the_checkpoint_in_several_levels() -> None:
    template = {"state": {"params": MLP}}
    match = hinted(MLP, template)
    assert match.mismatches[0].hint == 'rename={"": "state.params"}'
    assert match.rename == {"": "state.params"}
    assert follow(match, MLP, template).ok


def test_the_template_wraps_what_is_below_at() -> None:
    checkpoint, template = {"model": MLP}, {"params": MLP}
    match = hinted(checkpoint, template, at="model")
    assert str(match) == (
        f"none of 4 leaves found in {URL} under `model`; the template wraps the checkpoint's tree"
        ' in `params`; hint: rename={"": "params"}'
    )
    assert follow(match, checkpoint, template, at="model").ok


def test_a_bare_leaf_of_the_checkpoint_in_a_template_of_one() -> None:
    match = hinted(f32(3), {"w": f32(3)})
    assert follow(match, f32(3), {"w": f32(3)}).ok


def test_at_under_keys_that_hold_dots_slashes_and_quotes() -> None:
    for key in ("a.b", "a/b", "ü", 'say "hi"', "back\\slash", "tab\t"):
        match = hinted({key: MLP, "step": A((), jnp.int32)}, MLP)
        assert match.mismatches[0].hint
        assert follow(match, {key: MLP, "step": A((), jnp.int32)}, MLP).ok, key


def test_rename_of_keys_that_hold_dots_and_quotes() -> None:
    checkpoint = {"He.ad": f32(3), 'We"ight': f32(4)}
    template = {"he.ad": f32(3), 'we"ight': f32(4)}
    match = hinted(checkpoint, template)
    assert follow(match, checkpoint, template).ok


def test_rename_of_one_near_name_whole() -> None:
    match = hinted({"Dense_0": DENSE}, {"dense_0": DENSE})
    assert str(match) == "\n".join(
        [
            f"2 of 2 leaves do not match {URL}, and 2 of its leaves are not in the template",
            "  Expected a leaf, found none - at `dense_0.bias`; nearest: `Dense_0.bias`",
            "  Expected a leaf, found none - at `dense_0.kernel`; nearest: `Dense_0.kernel`",
            "  Expected no leaf, found `float32(8,)` - at `Dense_0.bias`",
            "  Expected no leaf, found `float32(3, 8)` - at `Dense_0.kernel`",
            '  hint: rename={"Dense_0": "dense_0"}',
        ]
    )
    assert follow(match, {"Dense_0": DENSE}, {"dense_0": DENSE}).ok


def test_a_near_name_of_another_float_is_offered_where_the_cast_is() -> None:
    checkpoint, template = {"Dense": f32(3)}, {"dense": A((3,), jnp.bfloat16)}
    match = hinted(checkpoint, template)
    assert match.mismatches[0].hint == 'rename={"Dense": "dense"}'
    assert follow(match, checkpoint, template).ok
    assert silent(hinted(checkpoint, template, cast="exact"))


def test_the_value_level_of_the_template_whole() -> None:
    template = {"kernel": {"value": f32(2)}, "bias": {"value": f32(3)}}
    checkpoint = {"kernel": f32(2), "bias": f32(3)}
    match = hinted(checkpoint, template)
    assert str(match) == (
        f"none of 2 leaves found in {URL}; the template has an extra level `value`"
        ' (an NNX variable or a Flax box); hint: rename=lambda name: name + ".value"'
    )
    assert follow(match, checkpoint, template).ok


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
def test_the_least_cast_that_helps_is_named_and_helps(
    stored: Any, wanted: Any, hint: str, rest: str
) -> None:
    checkpoint, template = {"w": A((2,), stored)}, {"w": A((2,), wanted)}
    match = hinted(checkpoint, template, cast=rest)
    assert str(match) == "\n".join(
        [
            f"1 of 1 leaf does not match {URL}",
            f"  Expected dtype `{np.dtype(wanted).name}`, got `{np.dtype(stored).name}` - at `w`;"
            f" hint: {hint}",
        ]
    )
    assert follow(match, checkpoint, template, cast=rest).ok


def test_a_transposed_leaf_followed_gives_the_values() -> None:
    def checkpoint() -> Any:
        return {"w": jnp.arange(6.0).reshape(2, 3)}

    (m,) = tx.check(tx.Recipe(checkpoint), {"w": f32(3, 2)}).mismatches
    assert m.hint is not None
    shape = eval(re.findall(r"`(.*?)`", m.hint)[0])  # noqa: S307 - as the hint spells it
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
def test_only_the_last_two_axes_swapped_are_a_transpose(
    stored: tuple[int, ...], wanted: tuple[int, ...], turned: bool
) -> None:
    match = hinted({"w": f32(*stored)}, {"w": f32(*wanted)})
    assert silent(match) != turned
    assert [m.problem for m in match.mismatches] == ["shape"]


def _axis(hint: str) -> int:
    found = re.search(r"along axis (\d+)", hint)
    assert found
    return int(found[1])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_stacked_layers_of_the_checkpoint_whole_and_followed(axis: int) -> None:
    shape = [2, 3]
    shape.insert(axis, 4)
    checkpoint = {"layers": {"w": f32(*shape)}}
    template = {f"layers_{i}": {"w": f32(2, 3)} for i in range(4)}
    match = hinted(checkpoint, template)
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
    stacked = tx.restore(holds(checkpoint), {"layers": {"w": f32(*shape)}})["layers"]["w"]
    assert [x.shape for x in jnp.unstack(stacked, axis=_axis(hint))] == [(2, 3)] * 4


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_layers_that_the_template_stacks_whole_and_followed(axis: int) -> None:
    shape = [2, 3]
    shape.insert(axis, 4)
    checkpoint = {f"layers_{i}": {"w": f32(2, 3)} for i in range(4)}
    match = hinted(checkpoint, {"layers": {"w": f32(*shape)}})
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
    layers = tx.restore(holds(checkpoint), {f"layers_{i}": {"w": f32(2, 3)} for i in range(4)})
    stacked = jnp.stack([layers[f"layers_{i}"]["w"] for i in range(4)], _axis(hint))
    assert stacked.shape == tuple(shape)


def test_64_bit_types_once_enabled_make_the_template_fit() -> None:
    wide = A((2,), np.dtype("float64"))
    match = hinted({"w": f32(2)}, {"w": wide})
    first, second = (match.mismatches[0].hint or "").split(", or ")
    assert first == 'jax.config.update("jax_enable_x64", True)'
    assert second == "a numpy array as template leaf"
    assert tx.check(holds({"w": f32(2)}), {"w": np.zeros(2)}).ok
    checkpoint = holds({"w": f32(2)})
    try:
        eval(first)  # noqa: S307 - as the hint spells it
        assert tx.check(checkpoint, {"w": wide}).ok
    finally:
        jax.config.update("jax_enable_x64", False)


def test_extra_ignore_of_many_whole_and_followed() -> None:
    checkpoint = {"w": f32(2), "opt": {"mu": f32(2), "nu": f32(2)}}
    match = hinted(checkpoint, {"w": f32(2)})
    assert str(match).split("\n")[-1] == '  hint: extra="ignore"'
    assert {m.hint for m in match.mismatches} == {'extra="ignore"'}
    assert follow(match, checkpoint, {"w": f32(2)}).ok


# --- silence where an option or another mismatch stands against a hint


@pytest.mark.parametrize(
    ("checkpoint", "template", "options"),
    [
        pytest.param(
            {"w": f32(2), "x": f32(3)}, {"w": f32(4)}, {}, id="ignoring extras alone would not do"
        ),
        pytest.param(
            {"Dense": A((3,), jnp.int32)}, {"dense": f32(3)}, {}, id="a near name of integers"
        ),
        pytest.param({}, {"w": f32(2)}, {}, id="an empty checkpoint"),
        pytest.param({"a": f32(2)}, {"b": f32(2)}, {"at": "nowhere"}, id="unlike names and no at"),
        pytest.param(
            {"Dense": f32(3)}, {"dense": f32(3)}, {"rename": str}, id="a rename was given"
        ),
        pytest.param({"w": "text"}, {"w": f32(5)}, {}, id="a string for an array"),
        pytest.param(
            {"w": A((2,), jnp.complex64)}, {"w": f32(2)}, {"cast": "exact"}, id="complex to real"
        ),
        pytest.param(
            {"w": f32(2)}, {"w": A((2,), jnp.int32)}, {"cast": "exact"}, id="float to int"
        ),
        pytest.param(
            {"w": A((2,), jnp.bool)}, {"w": f32(2)}, {"cast": "widen"}, id="bool to number"
        ),
        pytest.param({"w": f32(3, 3)}, {"w": A((3, 3), jnp.int8)}, {}, id="a square of integers"),
        pytest.param(
            {"layers_0": f32(2), "layers_2": f32(2)},
            {"layers": f32(2, 2)},
            {},
            id="layers with a gap",
        ),
        pytest.param(
            {"layers_0": f32(2), "layers_1": f32(3)},
            {"layers": f32(2, 2)},
            {},
            id="layers of two shapes",
        ),
        pytest.param({"layers_0": f32(2)}, {"layers": f32(1, 2)}, {}, id="one layer is no stack"),
        pytest.param(
            {"a": {"value": f32(2)}, "b": f32(3)},
            {"x": f32(2), "y": f32(3)},
            {},
            id="a value level under other names",
        ),
        pytest.param(
            {"batch_stats": {"mean": f32(4)}},
            {"params": {"scale": f32(4)}},
            {},
            id="another collection",
        ),
    ],
)
def test_no_hint_against_what_stands_in_its_way(
    checkpoint: Any, template: Any, options: dict[str, Any]
) -> None:
    assert silent(hinted(checkpoint, template, **options))


# --- and for any pair of trees


def _wrapped(draw: Any, tree: Any) -> Any:
    return {draw(st.sampled_from(["params", "state", "model.x"])): tree}


def _siblings(draw: Any, tree: Any) -> Any:
    return {**tree, **{f"opt{i}": f32(9) for i in range(draw(st.integers(1, 3)))}}


def _twice(draw: Any, tree: Any) -> Any:
    return {"params": tree, draw(st.sampled_from(["ema", "mu"])): tree}


def _keys(draw: Any, tree: Any) -> Any:
    change = draw(st.sampled_from([str.lower, str.upper, lambda k: f"{k}s"]))
    return {change(k): v for k, v in tree.items()}


def _boxed(draw: Any, tree: Any) -> Any:
    return jax.tree.map(lambda x: {"value": x}, tree)


def _turned(draw: Any, tree: Any) -> Any:
    return jax.tree.map(lambda x: A(x.shape[::-1], x.dtype), tree)


def _narrow(draw: Any, tree: Any) -> Any:
    dtype = draw(st.sampled_from([jnp.bfloat16, jnp.int32, jnp.float64]))
    return jax.tree.map(lambda x: A(x.shape, dtype), tree) if draw(st.booleans()) else tree


def _one_off(draw: Any, tree: Any) -> Any:
    leaves, treedef = jax.tree.flatten(tree)
    i = draw(st.integers(0, len(leaves) - 1))
    leaves[i] = f32(*leaves[i].shape, 2)
    return jax.tree.unflatten(treedef, leaves)


def _dropped(draw: Any, tree: Any) -> Any:
    gone = draw(st.sampled_from(sorted(tree)))
    return {k: v for k, v in tree.items() if k != gone} or tree


_CHANGES = [_wrapped, _siblings, _twice, _keys, _boxed, _turned, _narrow, _one_off, _dropped]


@st.composite
def _cases(draw: Any) -> tuple[Any, Any, dict[str, Any]]:
    names = draw(st.sampled_from([["Dense_0", "Dense_1"], ["enc", "Dec", "head"], ["w"]]))
    base = {name: {"kernel": f32(3, i + 4), "bias": f32(i + 4)} for i, name in enumerate(names)}
    sides = []
    for _ in range(2):
        tree: Any = base
        for change in draw(st.lists(st.sampled_from(_CHANGES), max_size=2)):
            tree = change(draw, tree)
        sides.append(tree)
    stored, wanted = sides
    stored = jax.tree.map(
        lambda x: A(x.shape, jnp.float32 if x.dtype == jnp.float64 else x.dtype), stored
    )
    options: dict[str, Any] = {"cast": draw(st.sampled_from(["float", "widen", "exact"]))}
    if draw(st.booleans()):
        options["at"] = draw(st.sampled_from(["params", "state", "opt0", "parms"]))
    return stored, wanted, options


def _alternatives(match: tx.Match, hint: str) -> list[dict[str, Any]]:
    """The keyword arguments that a hint offers, each by itself; none of a hint in prose."""
    if not re.match(r"(at|rename|extra|cast)=", hint):
        return []
    if "error.match.rename" in hint:
        return [{"rename": match.rename}]
    return [eval(f"dict({one})") for one in hint.split(" or ")]  # noqa: S307 - that is tested


@settings(max_examples=max(150, settings().max_examples))
@given(_cases())
def test_any_hint_followed_removes_what_it_is_printed_on(
    case: tuple[Any, Any, dict[str, Any]],
) -> None:
    checkpoint, template, options = case
    catalog = tx.open(holds(checkpoint))
    match = tx.check(catalog, template, **options)
    assume(not match.ok)
    for hint in {m.hint for m in match.mismatches if m.hint}:
        assert hint in str(match) or len(match.mismatches) > 20
        on = {(m.problem, m.name) for m in match.mismatches if m.hint == hint}
        for changed in _alternatives(match, hint):
            after = tx.check(catalog, template, **{**options, **changed})
            left = {(m.problem, m.name) for m in after.mismatches}
            assert not on & left, (hint, match, after)
            assert len(after.mismatches) < len(match.mismatches), (hint, str(match), str(after))


@settings(max_examples=max(50, settings().max_examples))
@given(_cases())
def test_hints_change_no_fact(case: tuple[Any, Any, dict[str, Any]]) -> None:
    """With hints or without, the same mismatches in the same order."""
    from templax._match import Options, Side, match
    from templax._pytree import as_template

    checkpoint, template, options = case
    catalog = tx.open(holds(checkpoint))
    bare = match(
        catalog.url, Side(catalog.entries), as_template(template), Options(**options), None
    )
    full = tx.check(catalog, template, **options)
    facts = [(m.problem, m.name, m.expected, m.found) for m in bare.mismatches]
    assert [(m.problem, m.name, m.expected, m.found) for m in full.mismatches] == facts
    assert all(m.hint is None for m in bare.mismatches)


# --- on trees of real frameworks, and more silence


def test_layers_in_a_list_of_the_template() -> None:
    match = hinted({"layers": {"w": f32(3, 2)}}, {"layers": [{"w": f32(2)} for _ in range(3)]})
    assert {m.hint for m in match.mismatches} == {
        "the checkpoint stacks these 3 layers along axis 0 of `layers.w`, as scan does:"
        " ask for the stacked leaf and split the result"
    }


def test_real_scanned_layers_of_flax_both_ways() -> None:
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
        match = hinted(checkpoint, jax.tree.map(lambda v: A(v.shape, v.dtype), template))
        assert len({m.hint for m in match.mismatches}) == 2
        assert all(m.hint and words in m.hint for m in match.mismatches)


def test_the_value_level_of_a_real_nnx_state_and_of_a_flax_box() -> None:
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
    boxed = {"kernel": nn.Partitioned(jnp.ones((2, 2)), names=("a", None))}
    for levelled, pure in (
        (state, nnx.to_pure_dict(state)),
        (boxed, {"kernel": jnp.ones((2, 2))}),
    ):
        for checkpoint, template in ((levelled, pure), (pure, levelled)):
            match = hinted(checkpoint, tx.template_of(template))
            assert follow(match, checkpoint, tx.template_of(template)).ok


@pytest.mark.parametrize("policy", ["exact", "widen", "float"])
@pytest.mark.parametrize(
    ("stored", "wanted"), [("float32", "int32"), ("int32", "int8"), ("bool", "int32")]
)
def test_no_cast_hint_where_no_policy_allows_it(policy: Any, stored: str, wanted: str) -> None:
    checkpoint, template = {"w": A((2,), jnp.dtype(stored))}, {"w": A((2,), jnp.dtype(wanted))}
    assert silent(hinted(checkpoint, template, cast=policy))


def test_keep_without_a_value_says_why_it_does_not_help() -> None:
    match = hinted({"a": f32(3)}, {"a": f32(3), "head": f32(2)}, missing="keep")
    assert str(match.mismatches[0]) == (
        "Expected a leaf, found none - at `head`;"
        " the template has no value to keep here, only a shape and dtype"
    )


def test_a_subtree_where_a_leaf_is_wanted_is_said() -> None:
    match = hinted({"a": {"b": f32(2), "c": f32(2)}}, {"a": f32(2)}, extra="ignore")
    assert str(match.mismatches[0]) == ("Expected a leaf, found a subtree of 2 leaves - at `a`")
