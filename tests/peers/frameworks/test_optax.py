"""States of optimizers, alone and in a `TrainState` of Flax."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import templax as tx
from helpers import assert_same_tree, check_template


def optimizer() -> optax.GradientTransformation:
    """Its state has `EmptyState`, `MaskedNode`, a count, moments and the step of a schedule."""
    mask = {"Dense_0": True, "Dense_1": False}
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.masked(optax.adamw(optax.linear_schedule(1e-3, 0.0, 10)), mask),
    )


@pytest.fixture(scope="module")
def train_state(variables: Any, mlp: Any) -> TrainState:
    return TrainState.create(apply_fn=mlp.apply, params=variables["params"], tx=optimizer())


@pytest.mark.slow
def test_a_train_state_with_empty_and_masked_optimizer_states(saved: Any, train_state: Any) -> None:
    grads = jax.tree.map(jnp.ones_like, train_state.params)
    state = train_state.apply_gradients(grads=grads)
    path = saved("train_state", state)
    template = jax.eval_shape(lambda: state)
    restored = tx.restore(path, template)
    assert isinstance(restored, TrainState)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b, np.asarray(a).dtype).tobytes()
    assert restored.apply_fn == state.apply_fn
    again, want = (each.apply_gradients(grads=grads) for each in (restored, state))
    assert_same_tree(again.params, want.params)


def test_a_train_state_as_its_own_template_keeps_a_python_step(
    saved: Any, train_state: Any
) -> None:
    """`step` is an int in a new state, so it is restored as one, with the saved number."""
    grads = jax.tree.map(jnp.ones_like, train_state.params)
    later = train_state.apply_gradients(grads=grads)
    path = saved("own template", later)
    restored = tx.restore(path, train_state)
    assert_same_tree(restored, later)
    assert (type(restored.step), restored.step) == (int, 1)
    assert restored.tx is train_state.tx


def test_a_part_of_a_train_state_is_restored(saved: Any, train_state: Any) -> None:
    path = saved("new", train_state)
    params, adam = train_state.params, train_state.opt_state[1]
    assert_same_tree(tx.restore(path, tx.template_of(params), at="params"), params)
    assert_same_tree(tx.restore(path, tx.template_of(adam), at="opt_state.1"), adam)


def test_another_optimizer_is_refused(saved: Any, train_state: Any) -> None:
    sgd = optax.sgd(0.1, momentum=0.9)
    other = TrainState.create(apply_fn=None, params=train_state.params, tx=sgd)
    problems = check_template(saved("new", train_state), jax.eval_shape(lambda: other))
    assert {p for p, _ in problems} == {"missing", "extra"}
    assert all(name.startswith("opt_state") for _, name in problems)


OPTIMIZERS = {
    "multi_transform": lambda: optax.multi_transform(
        {"a": optax.adam(1e-3), "b": optax.sgd(1e-2)}, {"kernel": "a", "bias": "b"}
    ),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(1e-3),
    "multi_steps": lambda: optax.MultiSteps(optax.adam(1e-3), 4),
    "adafactor": lambda: optax.adafactor(1e-3),
    "masked": lambda: optax.masked(optax.lion(1e-3), {"kernel": True, "bias": False}),
    "identity": optax.identity,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_of_optimizers_are_restored(saved: Any, name: str) -> None:
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
    init = OPTIMIZERS[name]().init
    state = jax.tree.map(lambda x: x + jnp.ones_like(x) if hasattr(x, "dtype") else x, init(params))
    path = saved(name, {"opt": state, "other": jnp.ones(1)})
    template = {"opt": tx.template_of(init, params), "other": ...}
    restored = tx.restore(path, template)["opt"]
    assert_same_tree(restored, state)
    for leaf in jax.tree.leaves(restored):
        assert isinstance(leaf, jax.Array)
    assert_same_tree(tx.restore(path, {"opt": init(params), "other": ...})["opt"], state)


def test_masked_nodes_request_nothing(saved: Any) -> None:
    """What an unmasked optimizer saved in their place is extra."""
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
    full = optax.masked(optax.trace(0.9), {"kernel": True, "bias": True}).init(params)
    half = optax.masked(optax.trace(0.9), {"kernel": True, "bias": False}).init(params)
    path = saved("unmasked", full)
    template = tx.template_of(half)
    assert check_template(path, template) == [("extra", "inner_state.trace.bias")]
    restored = tx.restore(path, template, extra="ignore")
    assert_same_tree(restored, half)
    assert type(restored.inner_state.trace["bias"]) is optax.MaskedNode
