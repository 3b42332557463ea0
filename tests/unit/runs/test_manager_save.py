"""Manager.save: the next save, failures in the background, metrics and refused arguments."""

import errno
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import templax as tx
from run_directories import copy_steps, list_run
from templax._runs.steps import read_run
from templax._save import job as job_module
from templax.storage.disk import Disk

TREE = {"w": jnp.arange(12.0).reshape(3, 4), "b": jnp.zeros(4, jnp.bfloat16)}


WANT = {"w": jax.ShapeDtypeStruct((3, 4), jnp.float32), "b": TREE["b"]}


def test_a_background_save_can_be_restored(tmp_path):
    with tx.Manager(tmp_path / "a" / "run") as manager:
        saved = manager.save(7, TREE, metrics={"loss": 0.5}, metadata={"from": "x"})
        assert isinstance(saved, tx.Saved)
        assert saved.wait().path == manager.path(7) == str(tmp_path / "a" / "run" / "7")
        tree = manager.restore(WANT)
        assert tx.fingerprint(tree) == saved.fingerprint
        assert manager.metrics(7) == {"loss": 0.5}
    catalog = tx.open(tmp_path / "a" / "run" / "7")
    assert catalog.metadata["custom_metadata"] == {"from": "x"}
    assert catalog.metadata["step"] == 7
    (found,) = read_run(tx.storage.Local(tmp_path / "a" / "run")).steps
    assert (found.committed, found.items) == (True, {"default": "pytree", "metrics": "json"})


def test_manager_save_takes_the_options_of_save(tmp_path):
    told = []
    with tx.Manager(tmp_path, item="state") as manager:
        saved = manager.save(
            1,
            {"w": jnp.zeros(10_000)},
            wait=True,
            compression="zstd",
            threads=1,
            memory=1 << 20,
            on_progress=lambda done, total: told.append((done, total)),
        )
        assert saved.done()
        assert saved.nbytes < 10_000
        assert told[-1][0] == told[-1][1] > 0
        for wrong in ({"compression": "gzip"}, {"threads": 0}, {"metadata": {"a": {1}}}):
            with pytest.raises(tx.UsageError, match=next(iter(wrong))):
                manager.save(2, TREE, **wrong)
    assert tx.open(tmp_path / "1").metadata["item"] == "state"
    assert list_run(tmp_path) == {"1"}


def test_an_existing_step_is_replaced_only_with_overwrite(tmp_path):
    with tx.Manager(tmp_path) as manager:
        manager.save(1, TREE, wait=True)
        with pytest.raises(tx.AlreadyExists):
            manager.save(1, {"w": jnp.ones(3)})
        assert manager.restore(WANT)["w"][0, 1] == 1
        manager.save(1, {"w": jnp.ones(3)}, overwrite=True)
        manager.wait()
        assert manager.restore({"w": jnp.zeros(3)})["w"].tolist() == [1, 1, 1]
        assert list_run(tmp_path) == {"1"}


def test_a_save_waits_for_the_previous_one(tmp_path):
    """So do `wait` and `close`; each step is complete when they return."""
    with tx.Manager(tmp_path) as manager:
        for step in range(4):
            saved = manager.save(step, {"w": jnp.full(100_000, step)})
            assert manager.steps()[:step] == list(range(step))
        manager.wait()
        assert saved.done()
    assert tx.Manager(tmp_path).steps() == [0, 1, 2, 3]


def test_a_background_failure_is_raised_once_by_the_next_call(tmp_path, monkeypatch):
    def refuse(self, *arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for then in ("save", "wait", "close"):
        (tmp_path / then).mkdir()
        manager = tx.Manager(tmp_path / then)
        with monkeypatch.context() as patched:
            patched.setattr(Disk, "fsync", refuse)
            saved = manager.save(1, TREE)
            with pytest.raises(tx.SaveError, match="No space left on device"):
                manager.save(2, TREE) if then == "save" else getattr(manager, then)()
        assert saved.done()
        assert list_run(tmp_path / then) == set()
        manager.save(1, TREE)
        manager.close()
        assert manager.steps() == [1]


def test_a_failed_save_does_not_hide_the_exception_that_ends_the_block(tmp_path, monkeypatch):
    def refuse(self, *arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def interrupt():
        with tx.Manager(tmp_path) as manager:
            manager.save(1, TREE)
            raise KeyError("mine")

    with monkeypatch.context() as patched:
        patched.setattr(Disk, "fsync", refuse)
        with pytest.raises(KeyError, match="mine") as caught:
            interrupt()
    (note,) = caught.value.__notes__
    assert note.startswith("Besides, can't ")
    tx.Manager(tmp_path).save(1, TREE).wait()


def test_new_steps_are_named_like_the_existing_ones(tmp_path):
    copy_steps(tmp_path, ["ckpt_0007", "ckpt_0020"])
    with tx.Manager(tmp_path) as manager:
        manager.save(30, TREE)
        manager.save(7, TREE, overwrite=True)
    assert list_run(tmp_path) == {"ckpt_0007", "ckpt_0020", "ckpt_0030"}


@pytest.mark.parametrize(
    ("metrics", "stored"),
    [
        (None, {}),
        ({}, {}),
        (
            {"a": 1, "b": 0.5, "c": np.float32(0.25), "d": jnp.int8(3)},
            {"a": 1, "b": 0.5, "c": 0.25},
        ),
        ({"a": jnp.bfloat16(2), "b": np.array(7, np.uint64), "c": np.inf}, {"a": 2, "c": np.inf}),
    ],
)
def test_metrics_may_be_scalars_of_numpy_and_jax(tmp_path, metrics, stored):
    with tx.Manager(tmp_path) as manager:
        manager.save(1, TREE, metrics=metrics, wait=True)
        found = manager.metrics(1)
    assert found == {name: np.asarray(value).item() for name, value in (metrics or {}).items()}
    assert found | stored == found
    assert all(type(value) in (int, float) for value in found.values())


def test_a_nan_metric_is_stored_but_never_the_best(tmp_path):
    with tx.Manager(tmp_path) as manager:
        manager.save(1, TREE, metrics={"loss": math.nan}, wait=True)
        assert manager.best("loss") is None
        manager.save(2, TREE, metrics={"loss": 9.0}, wait=True)
        assert math.isnan(manager.metrics(1)["loss"])
        assert manager.best("loss") == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"step": -1}, "Expected step= an int of at least 0, got -1"),
        ({"step": True}, "Expected step= an int of at least 0, got True"),
        ({"step": 1.0}, "Expected step= an int of at least 0, got 1.0"),
        ({"step": 10**18}, f"Expected step= below {10**18}, got {10**18}"),
        ({"metrics": [1]}, "Expected metrics= a dict of numbers, got [1]"),
        ({"metrics": {1: 1}}, "Expected names (str) in metrics=, got 1"),
        ({"metrics": {"a": "x"}}, "Expected a number in metrics=, got 'x' for `a`"),
        ({"metrics": {"a": True}}, "Expected a number in metrics=, got True for `a`"),
        ({"metrics": {"a": [1, [2]]}}, "Expected a number in metrics=, got [1, [2]] for `a`"),
        ({"metrics": {"a": None}}, "Expected a number in metrics=, got None for `a`"),
    ],
)
def test_invalid_arguments_of_save_are_refused_before_anything_is_made(tmp_path, arguments, says):
    with pytest.raises(tx.UsageError) as caught:
        tx.Manager(tmp_path / "run").save(**({"step": 1, "tree": TREE} | arguments))
    assert str(caught.value) == says
    assert not (tmp_path / "run").exists()


def test_nothing_is_saved_into_a_checkpoint(tmp_path):
    tx.save(tmp_path / "ckpt", TREE)
    with tx.Manager(tmp_path / "ckpt") as manager, pytest.raises(tx.UsageError, match="got the"):
        manager.save(1, TREE)


def test_a_save_uses_the_item_name_of_the_run(tmp_path):
    """Orbax's v1 API names the item `state` here, and so do many scripts."""
    with tx.Manager(tmp_path, item="state") as manager:
        manager.save(1, {"w": np.ones(3)})
    with tx.Manager(tmp_path) as manager:
        manager.save(2, {"w": np.full(3, 2.0)}, wait=True)
        assert manager.restore({"w": np.zeros(3)})["w"][0] == 2
    assert (tmp_path / "2" / "state").is_dir()
    with pytest.raises(tx.NotFound, match=r"Expected the item `ema`, found `state`"):
        tx.Manager(tmp_path, item="ema").restore({"w": np.zeros(3)})


def test_the_failure_of_the_previous_save_names_the_step_that_was_not_begun(tmp_path, monkeypatch):
    manager = tx.Manager(tmp_path)

    def full(job, files):
        raise tx.SaveError("No space is left")

    with monkeypatch.context() as patch:
        patch.setattr(job_module.Job, "_describe", full)
        manager.save(1, {"w": np.ones(3)})._ended.wait()
    with pytest.raises(tx.SaveError, match="and step 2 was not begun: No space is left"):
        manager.save(2, {"w": np.ones(3)})
    manager.save(2, {"w": np.ones(3)}, wait=True)
    manager.close()
    assert manager.steps() == [2]
