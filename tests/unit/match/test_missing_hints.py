"""Hints on `missing=`, and templates that ask for nothing."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import templax as tx
from helpers import checkpoint_like, f32
from mismatches import DENSE, MLP, fail_match, has_no_hint

A = jax.ShapeDtypeStruct
RECIPE_HINT = "missing=tx.Recipe(init, ...), where init(...) makes such a tree"


@pytest.mark.parametrize(
    ("checkpoint", "template", "new"),
    [
        pytest.param({"w": f32(2)}, {"w": f32(2), "new": f32(3)}, {"new"}, id="a leaf"),
        pytest.param(
            {"params": MLP},
            {"params": MLP, "ema": MLP},
            {f"ema.{d}.{k}" for d in MLP for k in ("kernel", "bias")},
            id="an average",
        ),
        pytest.param(
            {"body": DENSE, "opt": f32(5)},
            {"body": DENSE, "head": {"kernel": f32(8, 2)}},
            {"head.kernel"},
            id="a head",
        ),
    ],
)
def test_missing_is_hinted_for_leaves_that_only_the_template_has(
    checkpoint: Any, template: Any, new: set[str]
) -> None:
    match = fail_match(checkpoint, template)
    assert {m.name for m in match.mismatches if m.hint == RECIPE_HINT} == new
    init = tx.Recipe(lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), template))
    after = tx.check(checkpoint_like(checkpoint), template, missing=init)
    assert {m.problem for m in after.mismatches} <= {"extra"}


def test_missing_is_hinted_below_at() -> None:
    template = {**MLP, "new": f32(5)}
    match = fail_match({"params": MLP}, template, at="params")
    assert [(m.name, m.hint) for m in match.mismatches] == [("new", RECIPE_HINT)]
    init = tx.Recipe(lambda: {"params": {"new": jnp.zeros(5)}})
    assert tx.check(checkpoint_like({"params": MLP}), template, at="params", missing=init).ok


def test_missing_keep_is_hinted_where_the_template_has_the_values() -> None:
    template = {"w": np.zeros(2, "f4"), "new": np.ones(3, "f4")}
    match = fail_match({"w": f32(2)}, template)
    assert [m.hint for m in match.mismatches] == ['missing="keep"']
    assert tx.check(checkpoint_like({"w": f32(2)}), template, missing="keep").ok


@pytest.mark.parametrize(
    ("checkpoint", "template"),
    [
        pytest.param({"a": f32(2)}, {"b": f32(3), "c": f32(4)}, id="nothing is taken"),
        pytest.param(
            {"w": f32(2), "old": f32(3, 4)}, {"w": f32(2), "new": f32(3, 4)}, id="a new name"
        ),
        pytest.param(
            {"w": f32(2), "old": f32(3, 4)}, {"w": f32(2), "new": f32(4, 3)}, id="a turned leaf"
        ),
        pytest.param({"w": f32(2), "x": {"y": f32(1)}}, {"w": f32(2), "x": f32(3)}, id="a subtree"),
        pytest.param(
            {"a": f32(3, 8), "b": f32(8, 4)},
            {"a": f32(3, 8), "b": f32(8, 8), "c": f32(8, 4)},
            id="an inserted layer",
        ),
    ],
)
def test_missing_is_not_hinted_where_a_name_may_be_wrong(checkpoint: Any, template: Any) -> None:
    assert has_no_hint(fail_match(checkpoint, template))


class _Net(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(2)(x)


@pytest.mark.parametrize(
    ("template", "got"),
    [(_Net(), "_Net"), (None, "no leaves"), ({}, "no leaves"), ({"f": jnp.sin}, "PjitFunction")],
)
def test_a_template_without_arrays_is_told_how_to_make_one(template: Any, got: str) -> None:
    match = fail_match({"w": f32(2)}, template)
    assert str(match) == (
        f"Expected a template with arrays, got {got}; hint: tx.template_of(model.init, ...) makes"
        " one of what a function returns, tx.open(checkpoint).template() of what is stored"
    )
    assert all(m.hint is None for m in match.mismatches)  # `extra="ignore"` would restore nothing


def test_a_template_that_leaves_everything_out_is_no_mistake() -> None:
    assert tx.check(checkpoint_like({"w": f32(2)}), ...).ok
    assert tx.check(checkpoint_like({}), {}).ok


@pytest.mark.parametrize("rename", [{"a": "c", "b": "c"}, lambda name: name.replace("a", "b")])
def test_a_rename_that_collides_names_both_origins(rename: Any) -> None:
    checkpoint = {"a": {"w": f32(2)}, "b": {"w": f32(2)}}
    template = {"c" if isinstance(rename, dict) else "b": {"w": f32(2)}}
    (m,) = fail_match(checkpoint, template, rename=rename).mismatches
    assert m.problem == "ambiguous"
    assert m.found == "2 in the checkpoint: ('a', 'w') and ('b', 'w')"
