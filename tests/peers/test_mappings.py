"""Ready-made mappings between trees that Flax and optax make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.jax_utils
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import templax as tx
from templax import mappings

X = jnp.linspace(-1.0, 1.0, 8).reshape(2, 4)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x: Any, _: Any = None) -> Any:
        return nn.tanh(nn.Dense(4)(x)), None


class Loop(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        for i in range(3):
            x, _ = Layer(name=f"layers_{i}")(x)
        return nn.Dense(2, name="head")(x)


class Scan(nn.Module):
    axis: int = 0

    @nn.compact
    def __call__(self, x: Any) -> Any:
        split = {"params": True}
        scanned = nn.scan(Layer, variable_axes={"params": self.axis}, split_rngs=split, length=3)
        x, _ = scanned(name="layers")(x, None)
        return nn.Dense(2, name="head")(x)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Dense(3, name="dense")(x)
        return nn.BatchNorm(use_running_average=True, name="norm")(x)


class NNX(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.dense = nnx.Linear(4, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, use_running_average=True, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.norm(self.dense(x))


def assert_equal(one: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.slow
@pytest.mark.parametrize("axis", [0, 1])
def test_layers_of_a_loop_are_restored_into_a_scan_and_back(axis: int, tmp_path: Path) -> None:
    loop, scan = Loop(), Scan(axis)
    variables = loop.init(jax.random.key(0), X)
    tx.save(tmp_path / "loop", variables)
    stack = mappings.stack_layers("layers_{i}", "layers", under="params", axis=axis)
    template = tx.template_of(scan.init, jax.random.key(1), X)
    scanned = tx.restore(tx.view(tmp_path / "loop", stack), template)
    np.testing.assert_allclose(
        scan.apply(scanned, X), loop.apply(variables, X), rtol=1e-5, atol=1e-6
    )
    tx.save(tmp_path / "scan", scanned)
    unstack = mappings.unstack_layers("layers", "layers_{i}", under="params", axis=axis)
    template = tx.template_of(loop.init, jax.random.key(1), X)
    assert_equal(tx.restore(tx.view(tmp_path / "scan", unstack), template), variables)
    assert stack.inverse() == unstack


def test_layers_are_stacked_in_the_state_of_an_optimizer_too(tmp_path: Path) -> None:
    optimizer = optax.adam(1e-3)
    params = Loop().init(jax.random.key(0), X)["params"]
    tx.save(tmp_path / "loop", {"params": params, "opt": optimizer.init(params)})
    under = ["params", "opt.0.mu", "opt.0.nu"]
    stack = mappings.stack_layers("layers_{i}", "layers", under=under)
    wanted = tx.template_of(Scan().init, jax.random.key(0), X)["params"]
    template = {"params": wanted, "opt": tx.template_of(optimizer.init, wanted)}
    state = tx.restore(tx.view(tmp_path / "loop", stack), template)
    assert state["opt"][0].mu["layers"]["Dense_0"]["kernel"].shape == (3, 4, 4)
    assert state["params"]["head"]["bias"].shape == (2,)


@pytest.mark.slow
def test_a_replica_is_taken_of_a_replicated_state_and_replicas_are_added(tmp_path: Path) -> None:
    state = {"params": Loop().init(jax.random.key(0), X)["params"], "step": jnp.int32(7)}
    replicated = flax.jax_utils.replicate(state)
    n = jax.local_device_count()
    tx.save(tmp_path / "replicated", replicated)
    view = tx.view(tmp_path / "replicated", mappings.take_replica())
    assert_equal(tx.restore(view, jax.eval_shape(lambda: state)), state)
    tx.save(tmp_path / "single", state)
    view = tx.view(tmp_path / "single", mappings.add_replicas(n))
    back = tx.restore(
        view, jax.eval_shape(lambda: jax.tree.map(lambda x: jnp.stack([x] * n), state))
    )
    assert_equal(back, jax.tree.map(lambda x: jnp.stack([x] * n), state))
    view = tx.view(tmp_path / "single", mappings.add_replicas(2, under="params"))
    assert tx.open(view).leaves["params.head.bias"].shape == (2, 2)
    assert tx.open(view).leaves["step"].shape == ()


@pytest.mark.slow
def test_the_state_of_an_optimizer_that_was_wrapped_since_is_restored(tmp_path: Path) -> None:
    params = Loop().init(jax.random.key(0), X)["params"]
    before, after = optax.adam(1e-3), optax.chain(optax.clip(1.0), optax.adam(1e-3))
    grads = jax.tree.map(jnp.ones_like, params)
    _, state = before.update(grads, before.init(params), params)
    tx.save(tmp_path / "ckpt", {"params": params, "opt_state": state})
    view = tx.view(tmp_path / "ckpt", mappings.move_subtree("opt_state.0", "opt_state.1.0"))
    template = jax.eval_shape(lambda: {"params": params, "opt_state": after.init(params)})
    assert_equal(tx.restore(view, template)["opt_state"][1][0], state[0])


@pytest.mark.slow
@pytest.mark.parametrize("value", [False, True])
def test_variables_of_linen_are_restored_into_nnx_and_back(value: bool, tmp_path: Path) -> None:
    linen = Linen()
    variables = linen.init(jax.random.key(0), X)
    stats = {"norm": {"mean": jnp.arange(3.0), "var": jnp.arange(1.0, 4.0)}}
    variables = {**variables, "batch_stats": stats}
    tx.save(tmp_path / "linen", variables)
    graph, state = nnx.split(NNX(nnx.Rngs(1)))
    pure = nnx.to_pure_dict(state)
    if value:
        pure = jax.tree.map(lambda leaf: {"value": leaf}, pure)
    mapping = mappings.linen_to_nnx(batch_stats=("mean", "var"), value=value)
    template = jax.eval_shape(lambda: pure)
    restored = tx.restore(tx.view(tmp_path / "linen", mapping), template)
    tx.save(tmp_path / "nnx", restored)
    if value:
        restored = jax.tree.map(
            lambda leaf: leaf["value"], restored, is_leaf=lambda leaf: "value" in leaf
        )
    nnx.replace_by_pure_dict(state, restored)
    model = nnx.merge(graph, state)
    np.testing.assert_allclose(model(X), linen.apply(variables, X), rtol=1e-5, atol=1e-6)
    back = mappings.nnx_to_linen(batch_stats=("mean", "var"), value=value)
    template = jax.eval_shape(lambda: variables)
    assert_equal(tx.restore(tx.view(tmp_path / "nnx", back), template), variables)
    assert mapping.inverse() == back


def test_arguments_that_mean_nothing_are_refused() -> None:
    with pytest.raises(tx.UsageError, match="index"):
        mappings.take_replica(-1)
    with pytest.raises(tx.UsageError, match="count"):
        mappings.add_replicas(0)
    with pytest.raises(tx.UsageError, match="axis"):
        mappings.stack_layers("l_{i}", "l", axis=-1)
    with pytest.raises(tx.UsageError, match="at most 16"):
        mappings.unstack_layers("l", "l_{i}", axis=17)
    with pytest.raises(tx.MappingError, match=r"`i` is on the right of `\.\.\. -> i \.\.\.` only"):
        mappings.stack_layers("l", "l")
