"""Modules of Equinox, saved as their users save them."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import templax as tx
from helpers import assert_same_tree, check_template

KEY = jax.random.key(0)


class Regularised(eqx.Module):
    linear: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    activation: Any
    steps: int
    name: str = eqx.field(static=True)

    def __init__(self, key: Any) -> None:
        self.linear = eqx.nn.Linear(2, 2, key=key)
        self.dropout = eqx.nn.Dropout(0.3)
        self.activation = jax.nn.gelu
        self.steps = 3
        self.name = "regularised"


@pytest.mark.slow
def test_a_module_with_functions_numbers_and_static_fields(saved: Any) -> None:
    """Only its arrays were saved; the rest comes from the template."""
    model = Regularised(KEY)
    path = saved("eqx", eqx.filter(model, eqx.is_array))
    for template in (
        model,
        tx.template_of(Regularised, KEY),
        eqx.filter_eval_shape(Regularised, KEY),
    ):
        restored = tx.restore(path, template)
        assert_same_tree(restored, model)
        assert restored.activation is jax.nn.gelu
        assert (restored.dropout.p, restored.steps, restored.name) == (0.3, 3, "regularised")
    assert tx.check(path, model).ok


def test_numbers_that_were_saved_are_read(saved: Any) -> None:
    model = Regularised(KEY)
    whole = eqx.filter(model, lambda x: not callable(x))
    whole = eqx.tree_at(lambda m: m.dropout.p, whole, 0.9)
    restored = tx.restore(saved("eqx whole", whole), model, extra="ignore")
    assert restored.dropout.p == 0.9


@pytest.mark.slow
def test_missing_arrays_of_a_module_are_an_error(saved: Any) -> None:
    class Deeper(eqx.Module):
        linear: eqx.nn.Linear
        head: eqx.nn.Linear

    path = saved("eqx", eqx.filter(Regularised(KEY), eqx.is_array))
    template = Deeper(eqx.nn.Linear(2, 2, key=KEY), eqx.nn.Linear(2, 1, key=KEY))
    assert check_template(path, template) == [("missing", "head.weight"), ("missing", "head.bias")]


def test_a_state_beside_its_module_is_restored(saved: Any) -> None:
    make = eqx.nn.make_with_state(eqx.nn.BatchNorm)
    model, state = make(4, "batch", mode="batch")
    path = saved("eqx state", (eqx.filter(model, eqx.is_array), state))
    for template in ((model, state), eqx.filter_eval_shape(make, 4, "batch", mode="batch")):
        restored = tx.restore(path, template)
        assert jax.tree.structure(restored) == jax.tree.structure((model, state))
        for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves((model, state)), strict=True):
            if isinstance(b, jax.Array):
                assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_only_modules_supply_missing_numbers(saved: Any) -> None:
    """A number in a module may be configuration, a number in a plain tree is data."""
    path = saved("eqx in dict", {"model": eqx.filter(Regularised(KEY), eqx.is_array)})
    restored = tx.restore(path, {"model": Regularised(KEY)})
    assert (restored["model"].steps, restored["model"].dropout.p) == (3, 0.3)
    assert check_template(path, {"model": Regularised(KEY), "step": 3}) == [("missing", "step")]
    assert check_template(path, {"model": {"linear": ..., "p": 0.3}}) == [("missing", "model.p")]


@pytest.mark.slow
def test_a_restored_model_computes_what_the_saved_one_did(saved: Any) -> None:
    mlp = eqx.nn.MLP(2, 3, 8, 2, activation=jax.nn.gelu, key=KEY)
    path = saved("mlp", eqx.filter(mlp, eqx.is_array))
    template = tx.template_of(eqx.nn.MLP, 2, 3, 8, 2, activation=jax.nn.gelu, key=KEY)
    restored = tx.restore(path, template)
    assert_same_tree(restored, mlp)
    assert (restored(jnp.ones(2)) == mlp(jnp.ones(2))).all()
