"""Transfer guards of JAX: a restore is an explicit transfer from the host to devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import templax as tx
from helpers import assert_same_tree, shard_over

REFUSED = (
    "Expected a transfer guard that allows explicit transfers to devices, such as a restore, got"
    ' "disallow_explicit"; hint: restore inside `with'
    ' jax.transfer_guard_host_to_device("allow"):`, or with a template of numpy arrays'
)

GUARDS = [jax.transfer_guard, jax.transfer_guard_host_to_device]


@pytest.fixture
def saved(tmp_path: Path) -> Any:
    tree = {
        "key": jax.random.key(7),
        "keys": jax.random.split(jax.random.key(8), 4),
        "w": jnp.arange(8.0),
        "weak": jnp.asarray(2.0),
        "bf16": jnp.ones(4, jnp.bfloat16),
        "step": 3,
    }
    tx.save(tmp_path / "a", tree)
    return tmp_path / "a", tree


@pytest.mark.parametrize("name", ["key", "keys", "w", "weak"])
@pytest.mark.parametrize("guard", GUARDS)
def test_explicit_transfers_that_are_forbidden_are_named_before_a_byte_is_read(
    saved: Any, name: str, guard: Any
) -> None:
    path, tree = saved
    plan = tx.plan(path, {name: tree[name]}, extra="ignore")
    (path / "d").rename(path / "gone")  # reading would fail
    with guard("disallow_explicit"), pytest.raises(tx.UsageError) as caught:
        tx.run(plan)
    assert str(caught.value) == REFUSED


def test_both_ways_that_the_message_names_work(saved: Any) -> None:
    path, tree = saved
    with jax.transfer_guard("disallow_explicit"):
        with jax.transfer_guard_host_to_device("allow"):
            restored = tx.restore(path, tree)
        numpy = {"w": np.zeros(8, np.float32), "step": int}
        assert tx.restore(path, numpy, extra="ignore")["w"].tolist() == list(range(8))
    assert_same_tree(restored, tree)


@pytest.mark.parametrize("level", ["allow", "log", "disallow", "log_explicit"])
@pytest.mark.parametrize("guard", GUARDS)
def test_any_other_guard_lets_keys_and_arrays_pass(saved: Any, level: str, guard: Any) -> None:
    path, tree = saved
    with guard(level):
        restored = tx.restore(path, tree)
        cast = tx.restore(path, {"w": jax.ShapeDtypeStruct((8,), jnp.float32)}, extra="ignore")
        split = tx.restore(path, {"w": tree["w"]}, shardings=shard_over(4, "x"), extra="ignore")
    assert_same_tree(restored, tree)
    assert cast["w"].tolist() == split["w"].tolist() == list(range(8))


def test_guards_for_other_directions_do_not_matter(saved: Any) -> None:
    path, tree = saved
    with (
        jax.transfer_guard_device_to_device("disallow"),
        jax.transfer_guard_device_to_host("disallow_explicit"),
    ):
        restored = tx.restore(path, tree)
    assert_same_tree(restored, tree)


def test_looking_at_a_checkpoint_is_no_transfer(saved: Any) -> None:
    path, tree = saved
    with jax.transfer_guard("disallow_explicit"):
        assert tx.check(path, tree).ok
        assert tx.verify(path).ok
        assert tx.open(path).template()["w"].shape == (8,)
        assert tx.template_of(tree)["key"].dtype == tree["key"].dtype
