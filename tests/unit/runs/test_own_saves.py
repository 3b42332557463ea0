"""A manager sees what it saves: each of its methods waits for its own save."""

import errno
import os
import threading

import numpy as np
import pytest

import templax as tx
from templax._save import job as job_module
from templax.compat import orbax as ocp
from templax.storage.disk import Disk


def tree(step):
    return {"w": np.full(3, float(step)), "step": step}


@pytest.fixture
def slow_commits(monkeypatch):
    """Each save is committed a moment after the call that began it."""
    real = job_module.Job._write_small_files

    def wait(job, files):
        threading.Event().wait(0.1)
        return real(job, files)

    monkeypatch.setattr(job_module.Job, "_write_small_files", wait)


READS = {
    "restore": lambda manager: manager.restore(tree(0))["step"],
    "restore by number": lambda manager: manager.restore(tree(0), 3)["step"],
    "fallback": lambda manager: manager.restore(tree(0), fallback=True)["step"],
    "latest": lambda manager: manager.latest(),
    "steps": lambda manager: manager.steps()[-1],
    "best": lambda manager: manager.best("loss", "max"),
    "metrics": lambda manager: manager.metrics(3)["loss"],
    "metadata": lambda manager: manager.metadata(3)["n"],
    "json": lambda manager: manager.json(3, "metrics")["loss"],
    "path": lambda manager: tx.open(manager.path(3)).metadata["step"],
}


@pytest.mark.parametrize("read", READS)
def test_a_manager_sees_the_step_that_it_is_saving(tmp_path, slow_commits, read):
    with tx.Manager(tmp_path) as manager:
        for step in (1, 3):
            manager.save(step, tree(step), metrics={"loss": step}, metadata={"n": step})
        assert READS[read](manager) == 3


def test_steps_that_the_rule_deletes_after_a_save_are_gone(tmp_path, slow_commits):
    with tx.Manager(tmp_path, keep=1) as manager:
        for step in (1, 2):
            manager.save(step, tree(step))
        assert manager.steps() == [2]


@pytest.mark.parametrize("read", ["restore", "latest", "metrics"])
def test_a_read_raises_the_error_of_the_save_once(tmp_path, monkeypatch, read):
    def refuse(self, *arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with tx.Manager(tmp_path) as manager:
        manager.save(3, tree(3), metrics={"loss": 3}, wait=True)
        with monkeypatch.context() as patched:
            patched.setattr(Disk, "fsync", refuse)
            manager.save(4, tree(4))
            with pytest.raises(tx.SaveError) as caught:
                READS[read](manager)
        text = str(caught.value)
        assert text.startswith("The previous step was not saved, and nothing was read: can't ")
        assert "No space left on device" in text
        assert text.endswith("hint: call this again for what is there")
        assert READS[read](manager) == 3
        manager.save(4, tree(4))


def test_what_a_save_calls_sees_the_steps_before_it(tmp_path):
    seen, begun = [], threading.Event()

    def look(done, total):
        begun.wait()
        seen.append(manager.latest())

    with tx.Manager(tmp_path) as manager:
        manager.save(1, tree(1))
        manager.save(2, tree(2), on_progress=look)
        begun.set()
        assert manager.latest() == 2
    assert set(seen) == {1}


def test_what_a_save_calls_cannot_wait_for_it(tmp_path):
    begun = threading.Event()

    def wait(done, total):
        begun.wait()
        manager.wait()

    manager = tx.Manager(tmp_path)
    saved = manager.save(1, tree(1), on_progress=wait)
    begun.set()
    with pytest.raises(tx.UsageError, match="its on_progress= can't wait for it"):
        saved.wait()
    with pytest.raises(tx.UsageError):
        manager.close()


def test_compat_sees_the_step_that_it_is_saving(tmp_path, slow_commits):
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.save(1, args=ocp.args.StandardSave(tree(1)), custom_metadata={"n": 1})
        assert manager.metadata(1).custom_metadata == {"n": 1}
        manager.save(2, args=ocp.args.StandardSave(tree(2)))
        assert set(manager.item_metadata(2).tree) == {"w", "step"}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "ckpt", tree(1))
        assert set(checkpointer.metadata(tmp_path / "ckpt").item_metadata.tree) == {"w", "step"}


def test_metadata_and_json_items_of_a_step(tmp_path):
    args = ocp.args.Composite(
        state=ocp.args.StandardSave({"w": np.zeros(3)}), data=ocp.args.JsonSave({"position": 7})
    )
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(5, args=args, custom_metadata={"by": "orbax"})
    manager = tx.Manager(tmp_path)
    assert manager.json(5, "data") == {"position": 7}
    assert manager.metadata(5) == {"by": "orbax"}
    with pytest.raises(tx.NotFound) as caught:
        manager.json(5, "state")
    assert str(caught.value) == (
        "Expected the JSON item `state`, found `data` (json), `state` (pytree) - file"
        f' `{tmp_path}/5`; hint: templax.read_json("{tmp_path}/5", "data") reads one'
    )
    with pytest.raises(tx.NotFound, match="no committed step 6"):
        manager.json(6, "data")
    with pytest.raises(tx.NotFound, match="no committed step 6"):
        manager.metadata(6)
    with pytest.raises(tx.NotFound) as caught:
        tx.Manager(tmp_path, item="data").restore({"w": np.zeros(3)})
    assert str(caught.value) == (
        f"Expected a tree, got the JSON item `data`; the trees are `state` - file `{tmp_path}/5`;"
        ' hint: manager.json(step, "data") reads it'
    )
