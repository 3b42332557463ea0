"""Hints about the whole tree: where it is, what its leaves are called, and extra leaves."""

from __future__ import annotations

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import templax as tx
from helpers import CHECKPOINT_LIKE_URL as URL
from helpers import checkpoint_like, checkpoint_of, f32
from mismatches import DENSE, MLP, fail_match, follow_hints, has_no_hint

A = jax.ShapeDtypeStruct


def test_at_is_hinted_where_the_checkpoint_wraps_the_template() -> None:
    match = fail_match({"params": MLP, "step": A((), jnp.int32)}, MLP)
    assert str(match) == (
        f"none of 4 leaves found in {URL}; the checkpoint holds the same tree under `params`;"
        ' hint: at="params"'
    )
    assert follow_hints(match, {"params": MLP, "step": A((), jnp.int32)}, MLP).ok


def test_at_is_hinted_with_several_levels() -> None:
    checkpoint = {"state": {"model": {"params": MLP}}}
    match = fail_match(checkpoint, MLP)
    assert match.mismatches[0].hint == 'at="state.model.params"'
    assert follow_hints(match, checkpoint, MLP).ok


def test_a_wrong_at_is_corrected() -> None:
    match = fail_match({"params": MLP}, MLP, at="param")
    assert str(match) == (
        f"none of 4 leaves found in {URL} under `param`; the checkpoint holds the same tree under"
        ' `params`; hint: at="params"'
    )


def test_a_superfluous_at_is_dropped() -> None:
    match = fail_match(MLP, MLP, at="params")
    assert match.mismatches[0].hint == 'at=""'
    assert "holds the same tree at its root" in str(match)
    assert follow_hints(match, MLP, MLP, at="params").ok


def test_a_hint_lists_the_mismatches_it_leaves() -> None:
    template = {**MLP, "Dense_1": {"kernel": f32(8, 5), "bias": f32(4)}}
    match = fail_match({"params": MLP}, template)
    assert str(match) == (
        f"none of 4 leaves found in {URL}; the checkpoint holds the same tree under `params`;"
        ' hint: at="params", which leaves 1 mismatch:\n'
        "  Expected shape `(8, 5)`, got `(8, 4)` - at `Dense_1.kernel`"
    )
    after = follow_hints(match, {"params": MLP}, template)
    assert [(m.problem, m.name) for m in after.mismatches] == [("shape", "Dense_1.kernel")]


def test_rename_is_hinted_where_the_template_wraps_the_checkpoint() -> None:
    match = fail_match(MLP, {"params": MLP})
    assert str(match) == (
        f"none of 4 leaves found in {URL}; the template wraps the checkpoint's tree in `params`;"
        ' hint: rename={"": "params"}'
    )
    assert follow_hints(match, MLP, {"params": MLP}).ok


def test_at_is_hinted_for_a_bare_leaf_that_fits_one_place() -> None:
    checkpoint = {"a": f32(3), "b": f32(4)}
    match = fail_match(checkpoint, f32(4))
    assert match.mismatches[0].hint == 'at="b"'
    assert follow_hints(match, checkpoint, f32(4)).ok


def test_parameters_are_preferred_to_optimizer_moments_of_the_same_shape() -> None:
    """The shallowest place is hinted, the others are listed."""
    moments = {"mu": MLP, "nu": MLP, "count": A((), jnp.int32)}
    checkpoint = {"params": MLP, "opt_state": [moments, {}], "step": A((), jnp.int32)}
    match = fail_match(checkpoint, MLP)
    assert str(match) == (
        f"none of 4 leaves found in {URL}; the checkpoint holds the same tree under `params`"
        ' (as well as under `opt_state.0.mu` and `opt_state.0.nu`); hint: at="params"'
    )
    assert follow_hints(match, checkpoint, MLP).ok


def test_two_equally_good_places_are_both_offered() -> None:
    checkpoint = {"actor": MLP, "critic": MLP}
    match = fail_match(checkpoint, MLP)
    assert str(match) == (
        f"none of 4 leaves found in {URL}; the checkpoint holds the same tree under `actor` and"
        ' under `critic`; hint: at="actor" or at="critic"'
    )
    assert all(tx.check(checkpoint_like(checkpoint), MLP, at=at).ok for at in checkpoint)


def test_weights_are_preferred_to_their_average() -> None:
    match = fail_match({"params": MLP, "ema": MLP}, MLP)
    assert str(match) == (
        f"none of 4 leaves found in {URL}; the checkpoint holds the same tree under `params`"
        ' (as well as under `ema`); hint: at="params"'
    )
    assert fail_match({"ema": MLP, "step": f32()}, MLP).mismatches[0].hint == 'at="ema"'


def test_at_is_hinted_despite_a_new_leaf() -> None:
    match = fail_match({"params": MLP}, {**MLP, "head": f32(3)})
    assert str(match) == (
        f"none of 5 leaves found in {URL}; the checkpoint holds most under `params`;"
        ' hint: at="params", which leaves 1 mismatch:\n'
        "  Expected a leaf, found none - at `head`"
    )


def test_names_with_quotes_are_quoted_as_in_python() -> None:
    checkpoint = {'it\'s "x"': MLP}
    match = fail_match(checkpoint, MLP)
    assert follow_hints(match, checkpoint, MLP).ok


def test_rename_is_hinted_for_names_in_another_case() -> None:
    template = {"dense_0": MLP["Dense_0"], "dense_1": MLP["Dense_1"]}
    match = fail_match(MLP, template)
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
    assert follow_hints(match, MLP, template).ok


def test_rename_is_hinted_for_one_leaf_with_a_similar_name() -> None:
    checkpoint = {"head": {"biases": f32(4), "kernel": f32(3, 4)}}
    template = {"head": {"bias": f32(4), "kernel": f32(3, 4)}}
    match = fail_match(checkpoint, template)
    assert match.mismatches[0].hint == 'rename={"head.biases": "head.bias"}'
    assert follow_hints(match, checkpoint, template).ok


def test_a_rename_hint_does_not_replace_the_hint_of_another_mismatch() -> None:
    checkpoint = {"Head": f32(4), "w": f32(3, 4)}
    template = {"head": f32(4), "w": f32(4, 3)}
    match = fail_match(checkpoint, template)
    assert [m.hint for m in match.mismatches] == [
        'rename={"Head": "head"}',
        "the checkpoint holds the transpose: ask for shape `(3, 4)` and swap the last two axes of"
        " the result",
        'rename={"Head": "head"}',
    ]


ZEROS = ("", "0", "00")
MIXED = (1, 3, 5, 7, 2, 4, 6)  # in the order of their names with these zeros


def _follow(hint: str, error: tx.TemplateError) -> dict[str, Any]:
    """The keyword arguments of a hint as somebody pastes it after `except ... as error:`."""
    pasted = hint.partition(" (")[0] if "error.match" in hint else hint
    return eval(f"dict({pasted})", {"re": re, "error": error})  # noqa: S307 - hints are Python


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (
            {f"Layer_{i}": f"layer_{i}" for i in range(9)},
            'rename=lambda name: name.replace("Layer", "layer")',
        ),
        (
            {f"Dense_{i}": f"Dense_{i + 2}" for i in range(40)},
            r"""rename=lambda name: re.sub(r"\bDense_(\d+)", lambda m: f"Dense_{int(m[1]) + 2}","""
            " name)",
        ),
        (
            {f"Dense_{i + 1}": f"Dense_{i}" for i in range(8)},
            r"""rename=lambda name: re.sub(r"\bDense_(\d+)", lambda m: f"Dense_{int(m[1]) - 1}","""
            " name)",
        ),
        (
            {f"Layer_{i}": f"layer_{ZEROS[i % 2]}{i}" for i in MIXED},
            "rename={" + ", ".join(f'"Layer_{i}": "layer_{ZEROS[i % 2]}{i}"' for i in MIXED) + "}",
        ),
        (
            {f"Layer_{i}": f"layer_{ZEROS[i % 3]}{i}" for i in range(40)},
            "rename=error.match.rename (40 entries), after `except templax.TemplateError as"
            " error:`",
        ),
    ],
)
def test_a_long_rename_can_be_pasted(names: dict[str, str], hint: str) -> None:
    """Each layer has a shape of its own, or else they could not be told apart."""
    checkpoint = {old: {"w": f32(2 + i, 3)} for i, old in enumerate(names)}
    template = {new: {"w": f32(2 + i, 3)} for i, new in enumerate(names.values())}
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(checkpoint_like(checkpoint), template)
    error = caught.value
    assert str(error).endswith(f"\n  hint: {hint}")
    assert {m.hint for m in error.mismatches} == {hint}
    assert error.match.rename == names
    tx.restore(checkpoint_like(checkpoint), template, **_follow(hint, error))
    tx.restore(checkpoint_like(checkpoint), template, rename=error.match.rename)


def test_a_function_is_hinted_only_if_it_changes_no_other_leaf() -> None:
    names = {f"Layer_{i}": f"layer_{i}" for i in range(9)}
    checkpoint = {**{old: f32(2, 3) for old in names}, "head": {"Layer": f32(5)}}
    template = {**{new: f32(2, 3) for new in names.values()}, "head": {"Layer": f32(5)}}
    match = fail_match(checkpoint, template)
    assert match.rename == names
    (hint,) = {m.hint for m in match.mismatches}
    assert hint == 'rename=lambda name: name.replace("Layer_", "layer_")'
    assert follow_hints(match, checkpoint, template).ok


def test_rename_is_hinted_for_a_value_level_of_the_checkpoint() -> None:
    checkpoint = {"l": {"kernel": {"value": f32(2)}, "bias": {"value": f32(3)}}}
    template = {"l": {"kernel": f32(2), "bias": f32(3)}}
    match = fail_match(checkpoint, template)
    assert str(match) == (
        f"none of 2 leaves found in {URL}; the checkpoint has an extra level `value`"
        " (an NNX variable or a Flax box);"
        ' hint: rename=lambda name: name.removesuffix(".value")'
    )
    assert follow_hints(match, checkpoint, template).ok


def test_rename_is_hinted_for_a_value_level_of_the_template() -> None:
    template = {"l": {"kernel": {"value": f32(2)}, "bias": {"value": f32(3)}}}
    checkpoint = {"l": {"kernel": f32(2), "bias": f32(3)}}
    match = fail_match(checkpoint, template)
    assert match.mismatches[0].hint == 'rename=lambda name: name + ".value"'
    assert follow_hints(match, checkpoint, template).ok


def test_extra_ignore_is_hinted() -> None:
    checkpoint = {"params": MLP, "opt_state": {"mu": f32(3)}}
    match = fail_match(checkpoint, {"params": MLP})
    assert str(match) == "\n".join(
        [
            f"1 leaf of {URL} is not in the template, at `opt_state.mu`",
            '  Expected no leaf, found `float32(3,)` - at `opt_state.mu`; hint: extra="ignore"',
        ]
    )
    assert follow_hints(match, checkpoint, {"params": MLP}).ok


def test_restore_with_the_hinted_at_gives_the_values() -> None:
    def checkpoint() -> Any:
        return {"params": {"w": jnp.arange(3.0)}}

    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(tx.Recipe(checkpoint), {"w": f32(3)}, at="model.params")
    assert str(caught.value) == (
        "none of 1 leaf found in Recipe(test_restore_with_the_hinted_at_gives_the_values."
        "<locals>.checkpoint) under `model.params`; the checkpoint holds the same tree under"
        ' `params`; hint: at="params"'
    )
    assert tx.restore(tx.Recipe(checkpoint), {"w": f32(3)}, at="params")["w"].tolist() == [0, 1, 2]


def test_rename_is_hinted_where_the_template_wraps_in_several_levels() -> None:
    template = {"state": {"params": MLP}}
    match = fail_match(MLP, template)
    assert match.mismatches[0].hint == 'rename={"": "state.params"}'
    assert match.rename == {"": "state.params"}
    assert follow_hints(match, MLP, template).ok


def test_rename_is_hinted_where_the_template_wraps_the_tree_below_at() -> None:
    checkpoint, template = {"model": MLP}, {"params": MLP}
    match = fail_match(checkpoint, template, at="model")
    assert str(match) == (
        f"none of 4 leaves found in {URL} under `model`; the template wraps the checkpoint's tree"
        ' in `params`; hint: rename={"": "params"}'
    )
    assert follow_hints(match, checkpoint, template, at="model").ok


def test_rename_is_hinted_for_a_bare_leaf_of_the_checkpoint() -> None:
    match = fail_match(f32(3), {"w": f32(3)})
    assert follow_hints(match, f32(3), {"w": f32(3)}).ok


def test_at_is_hinted_for_keys_with_dots_slashes_and_quotes() -> None:
    for key in ("a.b", "a/b", "ü", 'say "hi"', "back\\slash", "tab\t"):
        match = fail_match({key: MLP, "step": A((), jnp.int32)}, MLP)
        assert match.mismatches[0].hint
        assert follow_hints(match, {key: MLP, "step": A((), jnp.int32)}, MLP).ok, key


def test_rename_is_hinted_for_keys_with_dots_and_quotes() -> None:
    checkpoint = {"He.ad": f32(3), 'We"ight': f32(4)}
    template = {"he.ad": f32(3), 'we"ight': f32(4)}
    match = fail_match(checkpoint, template)
    assert follow_hints(match, checkpoint, template).ok


def test_the_report_of_a_rename_hint() -> None:
    match = fail_match({"Dense_0": DENSE}, {"dense_0": DENSE})
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
    assert follow_hints(match, {"Dense_0": DENSE}, {"dense_0": DENSE}).ok


def test_a_similar_name_of_another_float_dtype_is_hinted_if_the_cast_is_allowed() -> None:
    checkpoint, template = {"Dense": f32(3)}, {"dense": A((3,), jnp.bfloat16)}
    match = fail_match(checkpoint, template)
    assert match.mismatches[0].hint == 'rename={"Dense": "dense"}'
    assert follow_hints(match, checkpoint, template).ok
    assert has_no_hint(fail_match(checkpoint, template, cast="exact"))


def test_the_report_of_a_value_level_hint() -> None:
    template = {"kernel": {"value": f32(2)}, "bias": {"value": f32(3)}}
    checkpoint = {"kernel": f32(2), "bias": f32(3)}
    match = fail_match(checkpoint, template)
    assert str(match) == (
        f"none of 2 leaves found in {URL}; the template has an extra level `value`"
        ' (an NNX variable or a Flax box); hint: rename=lambda name: name + ".value"'
    )
    assert follow_hints(match, checkpoint, template).ok


def test_extra_ignore_is_hinted_once_for_many_leaves() -> None:
    checkpoint = {"w": f32(2), "opt": {"mu": f32(2), "nu": f32(2)}}
    match = fail_match(checkpoint, {"w": f32(2)})
    assert str(match).split("\n")[-1] == '  hint: extra="ignore"'
    assert {m.hint for m in match.mismatches} == {'extra="ignore"'}
    assert follow_hints(match, checkpoint, {"w": f32(2)}).ok


def test_value_level_hints_work_for_nnx_states_and_flax_boxes() -> None:
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
    boxed = {"kernel": nn.Partitioned(jnp.ones((2, 2)), names=("a", None))}
    for levelled, pure in (
        (state, nnx.to_pure_dict(state)),
        (boxed, {"kernel": jnp.ones((2, 2))}),
    ):
        for checkpoint, template in ((levelled, pure), (pure, levelled)):
            match = fail_match(checkpoint, tx.template_of(template))
            assert follow_hints(match, checkpoint, tx.template_of(template)).ok


def test_an_at_with_nothing_under_it_is_said_so() -> None:
    """No hint: none of the places that do exist holds the template's leaves."""
    match = fail_match({"a,x": f32(2), "b": f32(3), "c": f32(4)}, {"w": f32(2)}, at="params")
    assert str(match) == (
        f"none of 1 leaf found in {URL} under `params`, where nothing is;"
        " the checkpoint holds `a,x`, `b`, `c`"
    )
    assert has_no_hint(match)
    assert "where nothing is" not in str(fail_match({"a": {"v": f32(2)}}, {"w": f32(2)}, at="a"))


def _train_state(params: Any, optimizer: Any, trained: Any = None) -> Any:
    trained = params if trained is None else trained
    return {"params": params, "opt_state": jax.eval_shape(optimizer.init, trained)}


_LORA = {"q_lora": f32(4, 2), "v_lora": f32(4, 2)}
_ADAM = optax.adam(1e-3)


@pytest.mark.parametrize(
    ("checkpoint", "template"),
    [
        pytest.param(
            _train_state({**_LORA, "base": f32(4, 4)}, _ADAM, _LORA), _LORA, id="adapters"
        ),
        pytest.param(
            _train_state({**MLP, "old": f32(2)}, _ADAM, MLP), MLP, id="a leaf less in the moments"
        ),
        pytest.param(
            _train_state({**MLP, "frozen": DENSE}, optax.sgd(0.1, momentum=0.9), MLP),
            MLP,
            id="masked layers",
        ),
        pytest.param(
            {**_train_state(MLP, _ADAM), "params": {**MLP, "Dense_1": {"kernel": f32(8, 4)}}},
            MLP,
            id="a bias that the parameters lost",
        ),
        pytest.param(
            {"params": {**MLP, "old": f32(2)}, "a": {"acc_grads": MLP}},
            MLP,
            id="accumulated gradients",
        ),
    ],
)
def test_moments_are_not_offered_as_weights_though_they_fit_better(
    checkpoint: Any, template: Any
) -> None:
    match = fail_match(checkpoint, template)
    assert match.mismatches[0].hint == 'at="params"'
    assert not any(f"{name}`" in str(match) for name in ("mu", "nu", "trace", "acc_grads"))


def test_moments_are_not_offered_for_weights_of_another_dtype() -> None:
    params = jax.tree.map(lambda s: A(s.shape, jnp.bfloat16), MLP)
    checkpoint = _train_state(params, _ADAM, MLP)
    match = fail_match(checkpoint, MLP, cast="exact")
    assert match.mismatches[0].hint == 'at="params"'
    assert "which leaves 4 mismatches" in str(match)
    assert has_no_hint(fail_match(checkpoint, MLP, cast="exact", extra="ignore"))


@pytest.mark.parametrize(
    ("checkpoint", "template", "at"),
    [
        pytest.param({"opt": {"mu": MLP, "nu": MLP}}, MLP, "", id="there are only moments"),
        pytest.param({"params": MLP, "opt": {"nu": MLP}}, MLP, "opt.mu", id="moments are wanted"),
        pytest.param(
            {"kernel": f32(3, 8), "opt": {"mu": DENSE}}, DENSE, "", id="half of it is at the root"
        ),
        pytest.param(
            {"Dense_0": DENSE, "target": MLP}, MLP, "", id="a deeper copy has what is missing"
        ),
    ],
)
def test_no_at_is_hinted_that_leads_to_other_values(
    checkpoint: Any, template: Any, at: str
) -> None:
    assert "at=" not in str(fail_match(checkpoint, template, at=at))


def test_weights_restored_as_hinted_are_the_weights() -> None:
    def checkpoint() -> Any:
        lora = {"q_lora": jnp.full((4, 2), 5.0), "v_lora": jnp.full((4, 2), 6.0)}
        params = {**lora, "base": jnp.zeros((4, 4))}
        return {"params": params, "opt_state": _ADAM.init(lora)}

    match = tx.check(tx.Recipe(checkpoint), _LORA)
    assert match.mismatches[0].hint == 'at="params"'
    got = tx.restore(tx.Recipe(checkpoint), _LORA, at="params", extra="ignore")
    assert (got["q_lora"].max(), got["v_lora"].max()) == (5, 6)


@pytest.mark.parametrize("halves", [("online", "target"), ("actor", "critic")])
def test_no_half_of_a_template_is_chosen_for_the_tree_of_a_checkpoint(halves: Any) -> None:
    template = {half: {k: {**v} for k, v in MLP.items()} for half in halves}
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), template)
    for options in ({}, {"missing": tx.Recipe(lambda: zeros)}, {"missing": "keep"}):
        assert "rename" not in str(fail_match(MLP, zeros, **options))
    longer = {**zeros, halves[1]: {**zeros[halves[1]], "new": jnp.zeros(2)}}
    assert "rename" not in str(fail_match(MLP, longer, missing="keep"))


def test_weights_are_wrapped_though_the_optimizer_has_their_tree_as_well() -> None:
    template = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype), _train_state(MLP, optax.adam(1e-3))
    )
    match = fail_match(MLP, template, missing="keep")
    assert match.rename == {"": "params"}
    assert tx.check(checkpoint_like(MLP), template, missing="keep", rename=match.rename).ok


def test_a_level_value_below_the_weights_is_not_sought_below_the_moments() -> None:
    boxed = jax.tree.map(lambda x: {"value": x}, MLP)
    match = fail_match({"aux": {"mu": MLP}, "params": MLP}, boxed)
    assert match.mismatches[0].hint == 'rename=lambda name: name + ".value", at="params"'


def test_extra_ignore_is_not_hinted_over_patterns() -> None:
    checkpoint = {"w": f32(2), "a": f32(2), "b": f32(2)}
    match = fail_match(checkpoint, {"w": f32(2)}, extra={"a": "ignore"})
    assert [m.name for m in match.mismatches] == ["b"]
    assert has_no_hint(match)


def test_numbers_of_any_length_in_names_get_hints():
    """Python refuses to convert numbers of more than 4300 digits."""
    names = [f"a{'9' * 5000}{i}" for i in range(3)]
    found = tx.check(checkpoint_of(dict.fromkeys(names, np.ones(2))), {"w": np.ones(2)})
    assert [m.problem for m in found.mismatches] == ["missing", *["extra"] * 3]


def test_a_report_says_that_no_hints_were_looked_for():
    deep = checkpoint_of({f"{i}.{'a.' * 250}b": np.ones(1) for i in range(40)})
    found = tx.check(deep, {"w": np.ones(2)})
    assert found.mismatches[0].note == "no hints are looked for in so deep a tree"
