"""A template leaf's weak type is kept: a function that was jitted for it is not compiled again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import templax as tx
from helpers import shard_over


def count_compilations(states: list[Any]) -> int:
    """How often a jitted function is compiled that is called with each of the states."""
    traced = 0

    @jax.jit
    def step(state: Any) -> Any:
        nonlocal traced
        traced += 1
        return jax.tree.map(lambda x: x * 2, state)

    for state in states:
        step(state)
    assert step._cache_size() >= traced
    return step._cache_size()


def make_state() -> Any:
    return {
        "params": {"w": jnp.ones((4, 4)), "scale": jnp.asarray(2.0)},  # the second one is weak
        "step": jnp.asarray(3),
        "full": jnp.broadcast_to(jnp.asarray(1.5), (3,)),
    }


def weak_leaves(tree: Any) -> list[bool]:
    return [leaf.weak_type for leaf in jax.tree.leaves(tree)]


def test_rolling_back_onto_the_live_state_does_not_recompile(tmp_path: Path) -> None:
    live = make_state()
    assert weak_leaves(live) == [True, True, False, True]
    tx.save(tmp_path / "a", live)
    back = tx.restore(tmp_path / "a", live)
    assert weak_leaves(back) == [True, True, False, True]
    assert count_compilations([live, back]) == 1
    assert jax.tree.map(np.asarray, back)["full"].tolist() == [1.5] * 3


@pytest.mark.slow
def test_a_state_that_a_jitted_step_returned_does_not_recompile(tmp_path: Path) -> None:
    live = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s))(make_state())
    tx.save(tmp_path / "a", live)
    assert count_compilations([live, tx.restore(tmp_path / "a", live)]) == 1


@pytest.mark.parametrize("describe", [tx.template_of, lambda x: jax.eval_shape(lambda: x)])
def test_an_abstract_template_keeps_it_too(tmp_path: Path, describe: Any) -> None:
    live = make_state()
    tx.save(tmp_path / "a", live)
    template = describe(live)
    assert weak_leaves(template) == [True, True, False, True]
    assert count_compilations([live, tx.restore(tmp_path / "a", template)]) == 1


def test_a_traced_initialiser_keeps_it_too(tmp_path: Path) -> None:
    tx.save(tmp_path / "a", make_state())
    mesh = jax.make_mesh((1,), ("x",), devices=jax.devices()[:1])
    template = tx.template_of(make_state, mesh=mesh)
    restored = tx.restore(tmp_path / "a", template)
    assert weak_leaves(restored) == weak_leaves(template) == [True, True, False, True]


def test_a_strong_template_gives_strong_leaves_of_a_weak_state(tmp_path: Path) -> None:
    tx.save(tmp_path / "a", make_state())
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), make_state())
    assert not any(weak_leaves(tx.restore(tmp_path / "a", template)))


@pytest.mark.parametrize("count", [1, 4])
def test_a_sharded_leaf_keeps_it(tmp_path: Path, count: int) -> None:
    weak = jnp.broadcast_to(jnp.asarray(1.5), (8, 2))
    live = {"over": jax.device_put(weak, shard_over(count, "x")), "all": jax.device_put(weak)}
    live["all"] = jax.device_put(weak, shard_over(count))
    assert weak_leaves(live) == [True, True]
    tx.save(tmp_path / "a", live)
    back = tx.restore(tmp_path / "a", live)
    assert weak_leaves(back) == [True, True]
    assert [x.sharding for x in jax.tree.leaves(back)] == [x.sharding for x in live.values()][::-1]
    assert back["over"].committed
    assert [s.data.shape for s in back["over"].addressable_shards] == [(8 // count, 2)] * count
    assert count_compilations([live, back]) == 1
    assert np.asarray(back["over"]).tolist() == [[1.5, 1.5]] * 8


def test_a_leaf_that_is_cast_keeps_it(tmp_path: Path) -> None:
    tx.save(tmp_path / "a", {"x": np.float16(1.5)})
    live = {"x": jnp.asarray(2.0)}
    with pytest.warns(tx.CastWarning):
        back = tx.restore(tmp_path / "a", live)
    assert (back["x"].dtype, back["x"].weak_type, float(back["x"])) == (jnp.float32, True, 1.5)


def test_a_weak_leaf_can_be_mapped_donated_and_kept(tmp_path: Path) -> None:
    weak = jnp.broadcast_to(jnp.asarray(1.5), (4096,))
    tx.save(tmp_path / "a", {"x": weak})
    template = {"x": weak, "new": jnp.asarray(1)}
    back = tx.restore(tmp_path / "a", template, mapped=True, missing="keep")
    assert weak_leaves(back) == [True, True]
    doubled = jax.jit(lambda x: x * 2, donate_argnums=0)(back["x"])
    assert doubled.weak_type
    assert float(doubled[0]) == 3.0


def test_under_the_slow_way_it_is_kept_too(tmp_path: Path) -> None:
    """With a guard that logs explicit transfers, JAX's public calls place the leaves."""
    live = make_state()
    tx.save(tmp_path / "a", live)
    with jax.transfer_guard("log_explicit"):
        back = tx.restore(tmp_path / "a", live)
    assert weak_leaves(back) == weak_leaves(live)
    assert count_compilations([live, back]) == 1
