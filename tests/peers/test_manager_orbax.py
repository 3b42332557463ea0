"""Runs that are shared with the managers of the installed Orbax; each continues the other's."""

import math
import shutil

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from orbax.checkpoint import v1

import templax as tx
from templax._runs.steps import read_run
from templax.storage import Local, open_source, stores
from templax.storage.leftovers import temporary_path

TREE = {"w": jnp.arange(8.0), "b": jnp.zeros(3, jnp.bfloat16)}


def open_with_orbax(path, **options):
    options = ocp.CheckpointManagerOptions(best_fn=lambda m: m["loss"], best_mode="min", **options)
    return ocp.CheckpointManager(path, options=options)


def save_run(path, steps=(1, 2, 3), **options):
    """Saves a run with Orbax, whose loss decreases."""
    with open_with_orbax(path, **options) as manager:
        for step in steps:
            metrics = {"loss": 1 / step, "odd": math.nan}
            manager.save(step, args=ocp.args.StandardSave(TREE), metrics=metrics)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"step_prefix": "ckpt", "step_format_fixed_length": 6}])
def test_steps_and_metrics_of_orbax_are_listed(tmp_path, options):
    found = read_run(Local(save_run(tmp_path / "run", **options)))
    assert list(found.committed) == [1, 2, 3]
    assert [d.metrics["loss"] for d in found.steps] == [1, 1 / 2, 1 / 3]
    assert all(math.isnan(d.metrics["odd"]) for d in found.steps)
    assert all(d.items == {"default": "pytree", "metrics": "json"} for d in found.steps)
    assert found.leftovers == ()


def test_steps_and_metrics_of_orbax_v1_are_listed(tmp_path):
    with v1.training.Checkpointer(tmp_path / "run") as checkpointer:
        checkpointer.save(1, TREE, metrics={"loss": 0.5})
        checkpointer.save(2, TREE)
    found = read_run(Local(tmp_path / "run"))
    assert {d.step: d.metrics for d in found.steps} == {1: {"loss": 0.5}, 2: {}}


ABSTRACT = jax.tree.map(ocp.utils.to_shape_dtype_struct, TREE)


def is_saved_tree(tree):
    return all(
        a.dtype == b.dtype and (a == b).all()
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(TREE), strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"step_prefix": "ckpt", "step_format_fixed_length": 6}])
def test_orbax_lists_and_restores_what_a_manager_saves(tmp_path, options):
    """In a run that Orbax began, with its prefix and length of step names."""
    path = save_run(tmp_path / "run", (1,), **options)
    with tx.Manager(path) as manager:
        for step, loss in ((2, 0.25), (3, 0.75), (4, 1.5)):
            manager.save(step, TREE, metrics={"loss": loss, "odd": math.nan})
    with open_with_orbax(path, **options) as manager:
        assert list(manager.all_steps()) == [1, 2, 3, 4]
        assert (manager.latest_step(), manager.best_step()) == (4, 2)
        assert manager.metrics(3)["loss"] == 0.75
        for step in (2, 4):
            restored = manager.restore(step, args=ocp.args.StandardRestore(ABSTRACT))
            assert is_saved_tree(restored)
        assert is_saved_tree(manager.restore(3, args=ocp.args.StandardRestore()))
        manager.save(5, args=ocp.args.StandardSave(TREE), metrics={"loss": 0.1})
    manager = tx.Manager(path)
    assert (manager.steps(), manager.best("loss")) == ([1, 2, 3, 4, 5], 5)
    assert is_saved_tree(manager.restore(ABSTRACT))


def test_orbax_restores_a_run_that_a_manager_began(tmp_path):
    with tx.Manager(tmp_path / "run", item="state") as manager:
        manager.save(1, TREE, metrics={"loss": 0.5}, metadata={"seed": 3})
        manager.save(2, TREE)
    with open_with_orbax(tmp_path / "run") as manager:
        assert (manager.latest_step(), list(manager.all_steps())) == (2, [1, 2])
        restored = manager.restore(
            1, args=ocp.args.Composite(state=ocp.args.StandardRestore(ABSTRACT))
        )
        assert is_saved_tree(restored["state"])
    handlers = {"state": ocp.StandardCheckpointHandler()}
    with ocp.CheckpointManager(tmp_path / "run", item_handlers=handlers) as manager:
        assert manager.item_metadata(1)["state"]["w"].shape == (8,)
        assert manager.metadata(1).custom_metadata == {"seed": 3}
    with v1.training.Checkpointer(tmp_path / "run") as checkpointer:
        assert checkpointer.latest.step == 2
        assert is_saved_tree(checkpointer.load(2, ABSTRACT))


@pytest.mark.slow
def test_a_manager_restores_and_prunes_what_orbax_saved(tmp_path):
    path = save_run(tmp_path / "run", range(1, 7), max_to_keep=None)
    with tx.Manager(path, keep=tx.Keep(last=1, best=1, metric="loss", mode="max")) as manager:
        assert (manager.latest(), manager.best("loss")) == (6, 6)
        assert is_saved_tree(manager.restore(ABSTRACT, 2))
        manager.save(7, TREE, metrics={"loss": 0.0})
    with open_with_orbax(path) as manager:
        assert list(manager.all_steps()) == [1, 7]
        assert is_saved_tree(manager.restore(1, args=ocp.args.StandardRestore(ABSTRACT)))


def test_orbax_prunes_what_a_manager_saved(tmp_path):
    with tx.Manager(tmp_path / "run") as manager:
        for step in (1, 2, 3):
            manager.save(step, TREE, metrics={"loss": float(step)})
    with open_with_orbax(tmp_path / "run", max_to_keep=2) as manager:
        manager.save(4, args=ocp.args.StandardSave(TREE), metrics={"loss": 4.0})
        manager.wait_until_finished()
        assert list(manager.all_steps()) == [1, 2]
    assert tx.Manager(tmp_path / "run").steps() == [1, 2]


def test_orbax_ignores_what_a_killed_save_of_a_manager_left(tmp_path):
    with tx.Manager(tmp_path / "run") as manager:
        manager.save(1, TREE)
    shutil.copytree(tmp_path / "run" / "1", temporary_path(str(tmp_path / "run" / "2")))
    with open_with_orbax(tmp_path / "run") as manager:
        assert list(manager.all_steps()) == [1]


def copy_to_store(path, url):
    """Uploads a directory, as `gsutil cp -r` does."""
    location = stores.ProcessMemory().locate(url)
    store, prefix = stores.ProcessMemory().make(location), location.path
    for file in path.rglob("*"):
        if file.is_file() and not file.name.startswith("."):
            store.put(f"{prefix}/{file.relative_to(path).as_posix()}", file.read_bytes())


def copy_from_store(url, path):
    """Downloads the objects below a URL."""
    source = open_source(url)
    for info in source.walk():
        (path / info.key).parent.mkdir(parents=True, exist_ok=True)
        (path / info.key).write_bytes(source.read(info.key))


@pytest.mark.slow
@pytest.mark.parametrize("marked", [False, True])
def test_a_run_in_a_store_is_continued_after_orbax_and_before_it(tmp_path, marked):
    """Orbax writes `commit_success.txt` to stores; what it wrote to a disk may lack it."""
    save_run(tmp_path / "run")
    for step in (tmp_path / "run").iterdir():
        for place in (step, step / "default", step / "metrics"):
            if step.name.isdigit():
                (place / "commit_success.txt").unlink(missing_ok=True)
                if marked:
                    (place / "commit_success.txt").write_text("Checkpoint commit was successful")
    url = f"memory://{tmp_path.name}-{marked}/run"
    copy_to_store(tmp_path / "run", url)
    with tx.Manager(url, keep=tx.Keep(last=3)) as manager:
        assert manager.steps() == [1, 2, 3]
        assert (manager.best("loss"), manager.metrics(2)["loss"]) == (3, 1 / 2)
        assert is_saved_tree(manager.restore(ABSTRACT))
        manager.save(4, TREE, metrics={"loss": 1 / 4})
        assert manager.steps() == [2, 3, 4]
    copy_from_store(url, tmp_path / "back")
    with open_with_orbax(tmp_path / "back") as manager:
        assert manager.all_steps() == [2, 3, 4]
        assert (manager.best_step(), manager.metrics(4)["loss"]) == (4, 1 / 4)
        for step in (2, 3, 4):
            assert is_saved_tree(manager.restore(step, args=ocp.args.StandardRestore(ABSTRACT)))
