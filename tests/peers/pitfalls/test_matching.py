"""Templates that do not match: nothing is filled in, cast or left out silently."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import templax as tx
from helpers import abstract, assert_same_tree, catch_mismatches
from templax.storage import Local
from templax.testing import Watched

A = jax.ShapeDtypeStruct
KEY = jax.random.key(0)
X = jnp.ones((1, 8))


@pytest.mark.slow
def test_a_partial_match_is_an_error(save: Any, model: Any) -> None:
    """Three layers in the checkpoint, and a model of four or of two."""
    path = save(model(3).init(KEY, X))
    deeper = tx.template_of(model(4).init, KEY, X)
    assert catch_mismatches(path, deeper) == [
        ("missing", "params.Dense_3.bias"),
        ("missing", "params.Dense_3.kernel"),
    ]
    shallower = tx.template_of(model(2).init, KEY, X)
    assert catch_mismatches(path, shallower) == [
        ("extra", "params.Dense_2.bias"),
        ("extra", "params.Dense_2.kernel"),
    ]


def test_missing_extra_and_wrong_leaves_are_in_one_error(save: Any, model: Any) -> None:
    """Missing, extra, wrong shape and wrong dtype at once, and nothing is filled in."""
    path = save(model(3).init(KEY, X))
    template = tx.template_of(model(2).init, KEY, X)
    template["params"]["Dense_1"] = {
        "kernel": A((8, 9), jnp.float32),
        "bias": A((8,), jnp.int32),
        "scale": A((8,), jnp.float32),
    }
    before = jax.tree.leaves(template)
    assert catch_mismatches(path, template) == [
        ("dtype", "params.Dense_1.bias"),
        ("shape", "params.Dense_1.kernel"),
        ("missing", "params.Dense_1.scale"),
        ("extra", "params.Dense_2.bias"),
        ("extra", "params.Dense_2.kernel"),
    ]
    assert jax.tree.leaves(template) == before


def test_a_wrong_subtree_never_returns_the_template(save: Any, model: Any) -> None:
    """Not even with the most lenient options."""
    path = save(model(1).init(KEY, X))
    target = model(1).init(jax.random.key(1), X)["params"]
    lenient = {"missing": "keep", "extra": "ignore"}
    assert {problem for problem, _ in catch_mismatches(path, target, **lenient)} == {"missing"}
    again = {"encoder": target}
    assert {problem for problem, _ in catch_mismatches(path, again, **lenient)} == {"missing"}


def test_policies_report_what_was_kept_and_ignored(save: Any) -> None:
    path = save({"w": jnp.ones(2), "old": jnp.ones(3)})
    match = tx.check(path, {"w": jnp.zeros(2), "new": jnp.zeros(1)}, missing="keep", extra="ignore")
    assert (match.ok, match.kept, match.ignored) == (True, ("new",), ("old",))
    assert "1 kept from the template: `new`" in str(match)
    assert "1 of the checkpoint ignored: `old`" in str(match)


def test_an_error_has_one_line_per_leaf(save: Any) -> None:
    path = save({"a": {"kernel": jnp.ones((64, 64)), "bias": jnp.ones(3)}})
    template = {"a": {"kernel": A((65, 64), jnp.float32), "bias": A((3,), jnp.int8)}}
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(path, template)
    assert str(caught.value) == (
        f"2 of 2 leaves do not match {path}\n"
        "  Expected dtype `int8`, got `float32` - at `a.bias`\n"
        "  Expected shape `(65, 64)`, got `(64, 64)` - at `a.kernel`"
    )


@pytest.mark.slow
def test_an_error_about_many_leaves_fits_on_a_screen(save: Any) -> None:
    path = save({"l": {f"w{i:03}": jnp.ones(1) for i in range(200)}})
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(path, {"l": {f"w{i:03}": A((2,), jnp.float32) for i in range(200)}})
    lines = str(caught.value).splitlines()
    assert len(caught.value.mismatches) == 200
    assert lines[0] == f"200 of 200 leaves do not match {path}"
    assert lines[1] == "  Expected shape `(2,)`, got `(1,)` - at `l.w000`"
    assert lines[21:] == [
        "  and 180 more: 180 shape all under `l` (`error.mismatches` has them all)"
    ]


def test_no_cast_is_silent(save: Any) -> None:
    """Float to float is announced once; anything that loses more than precision is refused."""
    path = save({"w": jnp.ones(4), "n": jnp.int32([16777217]), "m": jnp.ones(3)})
    template = {"w": A((4,), jnp.bfloat16), "n": A((1,), jnp.int32), "m": A((3,), jnp.bfloat16)}
    with pytest.warns(tx.CastWarning) as caught:
        tx.restore(path, template)
    assert len(caught) == 1
    assert "2 of 3 leaves" in str(caught[0].message)
    assert "float32 to bfloat16 (2: `" in str(caught[0].message)
    template["n"] = A((1,), jnp.float32)
    assert catch_mismatches(path, template) == [("dtype", "n")]
    assert catch_mismatches(path, template, cast="exact") == [("dtype", n) for n in "mnw"]


@pytest.mark.slow
def test_integers_keep_their_last_digit(save: Any) -> None:
    """No option casts 16777217 to float32, which can't hold it; casts to bfloat16 are JAX's own."""
    path = save({"n": jnp.int32([16777217]), "w": jnp.linspace(-1e-3, 1e3, 1001)})
    for cast in ("float", "widen", "exact"):
        wide = {"n": A((1,), jnp.float32), "w": ...}
        assert catch_mismatches(path, wide, cast=cast) == [("dtype", "n")]
        narrow = {"n": A((1,), jnp.int16), "w": ...}
        assert catch_mismatches(path, narrow, cast=cast) == [("dtype", "n")]
    template = {"n": ..., "w": A((1001,), jnp.bfloat16)}
    with pytest.warns(tx.CastWarning, match="1 of 1 leaf"):
        got = tx.restore(path, template)
    assert_same_tree(got["w"], jnp.linspace(-1e-3, 1e3, 1001).astype(jnp.bfloat16))
    assert catch_mismatches(path, template, cast="widen") == [("dtype", "w")]
    assert catch_mismatches(path, {"n": ..., "w": A((1001,), jnp.int32)}) == [("dtype", "w")]


def test_a_subtree_is_one_argument(save: Any, model: Any) -> None:
    """The parameters of a training state; the rest may be damaged."""
    state = TrainState.create(
        apply_fn=print, params=model().init(KEY, X)["params"], tx=optax.adam(0.1)
    )
    path = save(state, use_ocdbt=False)
    for directory in path.iterdir():
        if directory.name.startswith("opt_state") and directory.name.endswith("kernel"):
            for chunk in directory.glob("[0-9]*"):
                chunk.write_bytes(b"not a chunk")  # would fail if it were read
    got = tx.restore(path, abstract(state.params), at="params")
    assert_same_tree(got, state.params)


def test_only_the_bytes_of_the_subtree_are_read(save: Any) -> None:
    value = {k: {"w": jnp.asarray(np.random.default_rng(0).random((64, 64)))} for k in "ab"}
    path = save(value, use_ocdbt=False)
    source = Watched(Local(path))
    tx.restore(source, {"w": A((64, 64), jnp.float32)}, at="a")
    arrays = {key.split("/")[0] for key, *_ in source.reads if key.endswith("/0.0")}
    assert arrays == {"a.w"}


@pytest.mark.slow
def test_a_new_head_on_old_parameters(save: Any, model: Any) -> None:
    """In one call: saved leaves are read, new ones computed, unwanted ones ignored."""
    old, new = model(2).init(KEY, X), model(3).init(jax.random.key(1), X)
    path = save({**old, "opt": jnp.ones(4)})
    init = tx.Recipe(model(3).init, jax.random.key(1), X)
    template = tx.template_of(model(3).init, KEY, X)["params"]
    got = tx.restore(path, template, at="params", missing=init, extra="ignore")
    assert_same_tree(got["Dense_0"], old["params"]["Dense_0"])
    assert_same_tree(got["Dense_1"], old["params"]["Dense_1"])
    assert_same_tree(got["Dense_2"], new["params"]["Dense_2"])


def test_layers_stacked_in_the_checkpoint_are_named(save: Any) -> None:
    path = save({"layers": {"w": jnp.ones((4, 2, 3))}})
    match = tx.check(path, {f"layers_{i}": {"w": A((2, 3), jnp.float32)} for i in range(4)})
    assert "the checkpoint stacks these 4 layers along axis 0 of `layers.w`" in str(match)


def test_layers_stacked_in_the_template_are_named(save: Any) -> None:
    path = save({f"layers_{i}": {"w": jnp.ones((2, 3))} for i in range(4)})
    match = tx.check(path, {"layers": {"w": A((4, 2, 3), jnp.float32)}})
    (hint,) = {m.hint for m in match.mismatches}
    assert hint == (
        "the checkpoint holds `layers.w` as 4 layers, `layers_0.w` to `layers_3.w`:"
        " ask for the layers and stack the results along axis 0"
    )


def test_a_mapping_renames_keys(save: Any) -> None:
    """And is checked for collisions."""
    path = save({"Dense_0": {"kernel": jnp.ones(2)}, "Dense_1": {"kernel": jnp.zeros(2)}})
    template = {
        "dense_0": {"kernel": A((2,), jnp.float32)},
        "out": {"kernel": A((2,), jnp.float32)},
    }
    rename = {"Dense_0": "dense_0", "Dense_1": "out"}
    assert tx.restore(path, template, rename=rename)["out"]["kernel"].sum() == 0
    collision = {"Dense_0": "out", "Dense_1": "out"}
    assert ("ambiguous", "out.kernel") in catch_mismatches(path, template, rename=collision)


def test_similar_names_come_with_a_mapping_that_works(save: Any) -> None:
    value = {"Dense_0": {"kernel": jnp.ones(2)}, "LayerNorm_0": {"scale": jnp.zeros(3)}}
    path = save(value)
    template = {
        "dense_0": {"kernel": A((2,), jnp.float32)},
        "layer_norm_0": {"scale": A((3,), jnp.float32)},
    }
    match = tx.check(path, template)
    assert match.rename == {"Dense_0": "dense_0", "LayerNorm_0": "layer_norm_0"}
    assert 'rename={"Dense_0": "dense_0", "LayerNorm_0": "layer_norm_0"}' in str(match)
    got = tx.restore(path, template, rename=match.rename)
    assert_same_tree(got["layer_norm_0"], value["LayerNorm_0"])


def test_integer_keys_match_their_spelling(save: Any) -> None:
    path = save({"layers": {0: jnp.ones(2), 1: jnp.zeros(2)}})
    got = tx.restore(path, {"layers": {0: A((2,), jnp.float32), 1: A((2,), jnp.float32)}})
    assert list(got["layers"]) == [0, 1]
    both = {"layers": {"0": A((2,), jnp.float32), "1": A((2,), jnp.float32)}}
    assert list(tx.restore(path, both)["layers"]) == ["0", "1"]


def test_two_spellings_of_one_key_are_ambiguous(save: Any) -> None:
    """Two leaves of a template have one name, and neither is preferred."""
    path = save({"layers": {0: jnp.ones(2)}})
    twice = {"layers": {0: A((2,), jnp.float32)}, "layers.0": A((2,), jnp.float32)}
    assert catch_mismatches(path, twice) == [("ambiguous", "layers.0")]


def test_a_dict_with_both_spellings_is_refused(save: Any) -> None:
    """JAX can't sort its keys, so it can't be a template."""
    path = save({"layers": {0: jnp.ones(2)}})
    leaf = A((2,), jnp.float32)
    with pytest.raises(tx.TemplaxError):
        tx.restore(path, {"layers": {0: leaf, "0": leaf}})


def test_a_leaf_for_an_empty_value_says_which_value(save: Any) -> None:
    """The template has a leaf where `None` or `{}` was saved."""
    path = save({"w": jnp.ones(2), "none": None, "empty": {}})
    template = {"w": ..., "none": A((2,), jnp.float32), "empty": A((2,), jnp.float32)}
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(path, template)
    assert [m.fact for m in caught.value.mismatches] == [
        "Expected a leaf, found `Dict` - at `empty`",
        "Expected a leaf, found `None` - at `none`",
    ]
    assert catch_mismatches(path, {"w": None, "none": None}) == [("extra", "w")]


def test_a_leaf_that_cannot_be_restored_is_named(save: Any) -> None:
    path = save({"rng": {"state": jnp.ones(2), "name": "PCG64"}})
    for leaf in (np.zeros(2, object), np.zeros(2, "U3"), np.zeros(2, "M8[s]")):
        problems = catch_mismatches(path, {"rng": {"state": leaf, "name": str}})
        assert {name for _, name in problems} == {"rng.state"}
        assert "kind" in {problem for problem, _ in problems}
    assert catch_mismatches(path, {"rng": {"state": ..., "name": int}}) == [("kind", "rng.name")]
    got = tx.restore(path, {"rng": {"state": ..., "name": "MT19937"}})
    assert got["rng"]["name"] == "PCG64"
