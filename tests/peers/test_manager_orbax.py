"""Runs shared with Orbax's managers, the installed ones: what each writes, the other takes on."""

import math

import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from orbax.checkpoint import v1

from templax._steps import run
from templax.sources import Local

TREE = {"w": jnp.arange(8.0), "b": jnp.zeros(3, jnp.bfloat16)}


def orbax_run(path, steps=(1, 2, 3), **options):
    """A run that Orbax's CheckpointManager writes, with a loss that falls."""
    options = ocp.CheckpointManagerOptions(best_fn=lambda m: m["loss"], best_mode="min", **options)
    with ocp.CheckpointManager(path, options=options) as manager:
        for step in steps:
            metrics = {"loss": 1 / step, "odd": math.nan}
            manager.save(step, args=ocp.args.StandardSave(TREE), metrics=metrics)
    return path


@pytest.mark.parametrize("options", [{}, {"step_prefix": "ckpt", "step_format_fixed_length": 6}])
def test_steps_and_metrics_of_orbax_are_listed(tmp_path, options):
    found = run(Local(orbax_run(tmp_path / "run", **options)))
    assert list(found.committed) == [1, 2, 3]
    assert [d.metrics["loss"] for d in found.steps] == [1, 1 / 2, 1 / 3]
    assert all(math.isnan(d.metrics["odd"]) for d in found.steps)
    assert all(d.items == {"default": "pytree", "metrics": "json"} for d in found.steps)
    assert found.leftovers == ()


def test_steps_and_metrics_of_orbax_v1_are_listed(tmp_path):
    with v1.training.Checkpointer(tmp_path / "run") as checkpointer:
        checkpointer.save(1, TREE, metrics={"loss": 0.5})
        checkpointer.save(2, TREE)
    found = run(Local(tmp_path / "run"))
    assert {d.step: d.metrics for d in found.steps} == {1: {"loss": 0.5}, 2: {}}
