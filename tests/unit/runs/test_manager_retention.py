"""The steps and leftovers that a manager deletes, and those that it keeps."""

import errno
import json
import logging
import math
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import templax as tx
from run_directories import copy_steps, list_run
from templax._runs.locks import hold_for_reading
from templax.storage import Staging
from templax.storage.disk import DISK
from templax.storage.leftovers import TEMPORARY, temporary_path

TREE = {"w": jnp.arange(12.0).reshape(3, 4), "b": jnp.zeros(4, jnp.bfloat16)}


def test_steps_that_no_rule_keeps_are_deleted(tmp_path):
    keep = tx.Keep(last=1, every=4, best=1, metric="loss")
    losses = [3, 1, 2, math.nan, 5, 6, 7, None, 8]
    with tx.Manager(tmp_path, keep=keep) as manager:
        for step, loss in enumerate(losses):
            manager.save(step, TREE, metrics=None if loss is None else {"loss": loss})
    assert list_run(tmp_path) == {"0", "1", "4", "8"}


def test_the_step_just_saved_is_kept_even_if_it_is_not_the_highest(tmp_path):
    with tx.Manager(tmp_path, keep=1) as manager:
        manager.save(100, TREE)
        manager.save(50, TREE, overwrite=True)
        assert manager.steps() == [50, 100]
        manager.save(60, TREE, overwrite=True)
        assert manager.steps() == [60, 100]


def test_a_step_below_the_latest_is_refused(tmp_path):
    """A new training in the directory of an old one would be pruned by the old one's numbers."""
    with tx.Manager(tmp_path, keep=3) as manager:
        for step in (270, 280, 290):
            manager.save(step, TREE)
    with tx.Manager(tmp_path, keep=3) as manager:
        for step in (0, 285):
            with pytest.raises(tx.SaveError) as caught:
                manager.save(step, TREE)
            assert str(caught.value) == (
                f"Expected a step after 290, the latest in {tmp_path}, got step {step}; hint: save"
                " a new run to a directory of its own, or pass overwrite=True to go on from an"
                " earlier step"
            )
        assert manager.steps() == [270, 280, 290]
        with pytest.raises(tx.AlreadyExists):
            manager.save(280, TREE)
        manager.save(290, TREE, overwrite=True)
        manager.save(291, TREE)
        assert manager.steps() == [280, 290, 291]


def test_as_many_of_its_own_steps_stay_as_of_the_highest(tmp_path):
    with tx.Manager(tmp_path, keep=2) as manager:
        for step in (270, 280, 290):
            manager.save(step, TREE)
    with tx.Manager(tmp_path, keep=2) as manager:
        seen = []
        for step in (0, 10, 20, 30):
            manager.save(step, TREE, overwrite=True)
            seen.append(manager.steps())
    assert seen == [[0, 280, 290], [0, 10, 280, 290], [10, 20, 280, 290], [20, 30, 280, 290]]


def test_deleted_steps_are_logged(tmp_path, caplog):
    caplog.set_level(logging.INFO, "templax")
    with tx.Manager(tmp_path, keep=1) as manager:
        manager.save(1, TREE)
        manager.save(2, TREE)
    assert f"step 1 of {tmp_path} is deleted, as no rule keeps it" in caplog.messages


def test_a_function_says_which_steps_stay(tmp_path):
    def keep(steps):
        assert steps == sorted(steps)
        return [step for step in steps if step % 4 == 0 or step > steps[-1] - 2]

    with tx.Manager(tmp_path, keep=keep) as manager:
        for step in range(10):
            manager.save(step, TREE)
        assert manager.steps() == [0, 4, 8, 9]
    with tx.Manager(tmp_path, keep=lambda steps: []) as manager:
        manager.save(10, TREE)
        assert manager.steps() == [10]  # the latest stays


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        (lambda steps: None, "got TypeError: 'NoneType' object is not iterable"),
        (lambda steps: steps["a"], "got TypeError: list indices must be integers"),
        (lambda steps: [steps[-1] + 1], "some of the steps that it got, got 3 as well"),
        (lambda steps: [True], "got UsageError: Expected step= an int of at least 0, got True"),
    ],
)
def test_a_function_that_fails_deletes_nothing(tmp_path, keep, says, caplog):
    with tx.Manager(tmp_path, keep=keep) as manager:
        manager.save(1, TREE)
        manager.save(2, TREE)
        assert manager.steps() == [1, 2]
    assert says in caplog.messages[-1]
    assert caplog.messages[-1].startswith(
        f"steps of {tmp_path} that no rule keeps were not deleted"
    )


def test_a_function_may_look_at_the_run(tmp_path):
    """It is called in the thread of the save that the manager otherwise waits for."""
    manager = tx.Manager(tmp_path, keep=lambda steps: [manager.best("loss")])
    with manager:
        for step, loss in enumerate([3, 1, 2, 4]):
            manager.save(step, TREE, metrics={"loss": loss})
        assert manager.steps() == [1, 3]


def test_a_step_being_read_is_deleted_after_a_later_save(tmp_path, caplog):
    caplog.set_level(logging.INFO, "templax")
    with tx.Manager(tmp_path, keep=1) as manager:
        manager.save(1, TREE, wait=True)
        with hold_for_reading(manager.path(1)):
            manager.save(2, TREE, wait=True)
            assert manager.steps() == [1, 2]
            assert f"step 1 of {tmp_path} is being read, and stays for now" in caplog.messages
        manager.save(3, TREE, wait=True)
        assert manager.steps() == [3]


def test_a_step_that_cannot_be_deleted_does_not_fail_the_save(tmp_path, monkeypatch, caplog):
    def rename(old, new):
        if TEMPORARY in new:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), old)
        os.rename(old, new)

    with tx.Manager(tmp_path, keep=1) as manager:
        manager.save(1, TREE, wait=True)
        with monkeypatch.context() as patched:
            patched.setattr(DISK, "rename", rename)
            assert manager.save(2, TREE).wait().done()
        assert manager.steps() == [1, 2]
        (text,) = caplog.messages
        assert text.startswith(
            f"steps of {tmp_path} that no rule keeps were not deleted: can't remove: Permission"
        )
        manager.save(3, TREE, wait=True)
        assert manager.steps() == [3]


def test_uncommitted_steps_and_other_names_are_kept(tmp_path):
    copy_steps(tmp_path, ["1"])
    copy_steps(tmp_path, ["2", "eval_1"], "damaged-uncommitted")
    (tmp_path / "logs").mkdir()
    (tmp_path / "5.orbax-checkpoint-tmp").mkdir()
    with tx.Manager(tmp_path, keep=1) as manager:
        manager.save(3, TREE, wait=True)
        manager.save(4, TREE, wait=True)
    assert list_run(tmp_path) == {"2", "4", "eval_1", "logs", "5.orbax-checkpoint-tmp"}


def test_leftovers_of_templax_are_removed_and_those_of_others_kept(tmp_path):
    """Of a save of this step, and of the deletion of another step."""
    for step in ("3", "1"):
        Path(temporary_path(str(tmp_path / step))).mkdir()
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    with tx.Manager(tmp_path) as manager, Staging(tmp_path / "4", overwrite=False) as live:
        manager.save(3, TREE, wait=True)
        assert list_run(tmp_path) == {"3", "2.orbax-checkpoint-tmp", Path(live.directory).name}


def test_a_leftover_that_cannot_be_removed_does_not_fail_the_save(tmp_path, monkeypatch, caplog):
    def rmdir(path):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)

    lost = Path(temporary_path(str(tmp_path / "3")))
    lost.mkdir()
    with tx.Manager(tmp_path) as manager:
        with monkeypatch.context() as patched:
            patched.setattr(DISK, "rmdir", rmdir)
            manager.save(3, TREE, wait=True)
        (text,) = caplog.messages
        assert text.startswith(
            f"what killed programs left in {tmp_path} was not removed: can't remove: Permission"
        )
    assert list_run(tmp_path) == {"3", lost.name}


def test_nothing_is_deleted_while_no_step_has_the_metric(tmp_path, caplog):
    with tx.Manager(tmp_path, keep=tx.Keep(best=1, metric="los")) as manager:
        for step in range(3):
            manager.save(step, TREE, metrics={"loss": step})
    assert list_run(tmp_path) == {"0", "1", "2"}
    assert f"no step of {tmp_path} has the metric `los`, so that none is deleted" in caplog.text


def test_a_failed_or_repeated_save_of_a_lower_step_takes_no_place(tmp_path):
    with tx.Manager(tmp_path, keep=2) as manager:
        manager.save(100, TREE)
        manager.save(40, TREE, overwrite=True)
        manager.save(50, TREE, overwrite=True)
        for _ in range(3):
            with pytest.raises(tx.AlreadyExists):
                manager.save(50, TREE)
        manager.save(50, TREE, overwrite=True)
        assert manager.steps() == [40, 50, 100]


def test_lower_steps_go_once_the_run_has_passed_the_latest(tmp_path):
    with tx.Manager(tmp_path, keep=1) as manager:
        manager.save(100, TREE)
        manager.save(60, TREE, overwrite=True)
        manager.save(101, TREE)
        assert manager.steps() == [101]


def test_a_step_with_unreadable_metrics_is_not_deleted(tmp_path, caplog):
    keep = tx.Keep(last=1, best=1, metric="loss")
    with tx.Manager(tmp_path, keep=keep) as manager:
        manager.save(1, TREE, metrics={"loss": 1.0}, metadata={"by": "me"}, wait=True)
        (tmp_path / "1" / "metrics" / "metrics").write_bytes(b'{"los')
        for step in (2, 3, 4):
            manager.save(step, TREE, metrics={"loss": step}, wait=True)
        assert manager.steps() == [1, 2, 4]
        assert f"step 1 of {tmp_path} stays, as its metrics are unreadable: " in caplog.text
        caplog.clear()
        assert manager.best("loss") == 2
        assert f"step 1 of {tmp_path} is not compared with others: " in caplog.text
        with pytest.raises(tx.Corrupted, match=f"{tmp_path}/1/metrics/metrics"):
            manager.metrics(1)
        assert manager.metadata(1) == {"by": "me"}


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"custom_metadata": 3}'])
def test_damaged_metadata_is_not_taken_for_none(tmp_path, text):
    with tx.Manager(tmp_path) as manager:
        manager.save(1, TREE, metadata={"by": "me"}, wait=True)
        (tmp_path / "1" / "_CHECKPOINT_METADATA").write_text(text)
        with pytest.raises(tx.Corrupted, match=f"{tmp_path}/1/_CHECKPOINT_METADATA"):
            manager.metadata(1)


def test_lost_metrics_are_not_taken_for_none(tmp_path):
    with tx.Manager(tmp_path) as manager:
        manager.save(1, TREE, metrics={"loss": 1.0}, wait=True)
        about = tmp_path / "1" / "_CHECKPOINT_METADATA"
        about.write_text(json.dumps(json.loads(about.read_text()) | {"metrics": {}}))
        (tmp_path / "1" / "metrics" / "metrics").unlink()
        with pytest.raises(tx.Corrupted, match="Expected the metrics, found no file"):
            manager.metrics(1)


def test_neither_directory_of_a_step_is_deleted(tmp_path, caplog):
    copy_steps(tmp_path, ["10", "000010", "11"])
    with tx.Manager(tmp_path, keep=1) as manager:
        manager.save(12, TREE, wait=True)
        manager.save(13, TREE, wait=True)
    assert list_run(tmp_path) == {"10", "000010", "000013"}
    text = f"step 10 of {tmp_path} has several directories, and none of them is deleted"
    assert f"{text}: `000010`, `10`" in caplog.text


def test_a_step_to_which_a_kept_step_is_a_link_stays(tmp_path, caplog):
    with tx.Manager(tmp_path) as manager:
        for step in (1, 2, 3):
            manager.save(step, TREE)
    (tmp_path / "15").symlink_to("3")
    (tmp_path / "20").symlink_to("15")
    caplog.set_level(logging.INFO, "templax")
    with tx.Manager(tmp_path, keep=2) as manager:
        manager.save(21, TREE)
        assert manager.steps() == [3, 15, 20, 21]
        assert f"step 3 of {tmp_path} stays, as `20` is a link to it" in caplog.text
        assert len(manager.restore(TREE, step=20)) == 2
        manager.save(22, TREE)
        assert manager.steps() == [21, 22]
    assert not [name for name in os.listdir(tmp_path) if (tmp_path / name).is_symlink()]


def test_an_array_is_no_number_of_steps(tmp_path):
    with pytest.raises(tx.UsageError, match=r"Expected step= an int of at least 0, got array"):
        tx.Manager(tmp_path).save(np.array([8]), TREE)
    with pytest.raises(tx.UsageError, match=r"Expected keep= an int of at least 1, got array"):
        tx.Manager(tmp_path, keep=np.array([8]))


@pytest.mark.parametrize("where", ["inside a step", "by way of another directory"])
def test_a_step_that_a_kept_link_needs_stays(tmp_path, where):
    run, other = tmp_path / "run", tmp_path / "other"
    other.mkdir()
    with tx.Manager(run) as manager:
        for step in (1, 2, 3):
            manager.save(step, TREE)
    if where == "inside a step":
        (run / "10").symlink_to("1/default")
    else:
        (other / "best").symlink_to(run / "1")
        (run / "10").symlink_to(other / "best")
    with tx.Manager(run, keep=2) as manager:
        manager.save(11, TREE, wait=True)
        assert list_run(run) == {"1", "10", "11"}
        assert len(manager.restore(TREE, step=10)) == 2
