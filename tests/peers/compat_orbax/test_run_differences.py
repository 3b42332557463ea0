"""Runs that the managers of Orbax and templax treat differently.

Each test asserts what both libraries do; `docs/reference/orbax-differences.md` names it.
"""

import math
import os
from pathlib import Path

import numpy as np
import orbax.checkpoint as orbax
import pytest

import templax as tx
import templax.compat.orbax as compat
from side_by_side import save_steps, small_tree, step_state
from templax._runs.locks import hold_for_reading
from templax.storage import Staging
from templax.storage.leftovers import temporary_path

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("collect_garbage"),
]


@pytest.mark.slow
def test_differs_existing_step(tmp_path):
    """Both refuse and keep the step: Orbax with `ValueError`, templax with `FileExistsError`."""
    for name, ocp, error in (("theirs", orbax, ValueError), ("ours", compat, tx.AlreadyExists)):
        save_steps(ocp, tmp_path / name, (1, 2))
        with ocp.CheckpointManager(tmp_path / name / "run") as manager:
            args = ocp.args.StandardSave(small_tree())
            assert not manager.save(2, args=args)
            with pytest.raises(error, match=r"^Step 2 already exists|step 2 already exists"):
                manager.save(2, args=args, force=True)
            assert manager.restore(2)["step"] == 2


@pytest.mark.slow
def test_differs_lower_step_by_force(tmp_path):
    """Step 3 is saved by force after 10 and 12, and stays in both.

    To Orbax the newest step is the one saved last, until the run is opened again; to templax it
    is the highest.
    """
    told = {}
    for name, ocp in (("theirs", orbax), ("ours", compat)):
        options = ocp.CheckpointManagerOptions(max_to_keep=2)
        with ocp.CheckpointManager(tmp_path / name, options=options) as manager:
            for step in (10, 12, 3):
                manager.save(step, args=ocp.args.StandardSave(step_state(step)), force=True)
            manager.wait_until_finished()
            told[name] = sorted(manager.all_steps()), manager.latest_step()
    assert told == {"theirs": ([3, 12], 3), "ours": ([3, 12], 12)}
    assert orbax.CheckpointManager(tmp_path / "theirs").latest_step() == 12


def test_differs_steps_of_other_programs(tmp_path):
    """The manager of Orbax lists its directory when it is made, that of templax at each call."""
    theirs, ours = (ocp.CheckpointManager(tmp_path / "run") for ocp in (orbax, compat))
    save_steps(compat, tmp_path, (1, 2))
    assert (list(theirs.all_steps()), theirs.latest_step()) == ([], None)
    theirs.reload()
    assert list(theirs.all_steps()) == [1, 2]
    assert (ours.all_steps(), ours.latest_step()) == ([1, 2], 2)


@pytest.mark.slow
def test_differs_step_that_is_being_restored(tmp_path):
    """Orbax deletes a step that templax, in another program, restores; templax deletes it later."""
    for name, ocp in (("theirs", orbax), ("ours", compat)):
        save_steps(compat, tmp_path / name, (1,))
        options = ocp.CheckpointManagerOptions(max_to_keep=1)
        with ocp.CheckpointManager(tmp_path / name / "run", options=options) as manager:
            with hold_for_reading(str(tmp_path / name / "run/1")):
                manager.save(2, args=ocp.args.StandardSave(step_state(2)))
                manager.wait_until_finished()
            there = sorted(os.listdir(tmp_path / name / "run"))
            assert there == (["2"] if ocp is orbax else ["1", "2"])
            manager.save(3, args=ocp.args.StandardSave(step_state(3)))
        assert os.listdir(tmp_path / name / "run") == ["3"]


@pytest.mark.slow
def test_differs_metric_that_is_nan(tmp_path):
    """To Orbax a NaN may be the best metric, depending on the order; to templax it never is."""
    best = {}
    for name, ocp in (("theirs", orbax), ("ours", compat)):
        options = ocp.CheckpointManagerOptions(best_fn=lambda m: m["loss"], best_mode="min")
        with ocp.CheckpointManager(tmp_path / name, options=options) as manager:
            for step, loss in enumerate([2.0, 1.0, math.nan]):
                args = ocp.args.StandardSave(step_state(step))
                manager.save(step, args=args, metrics={"loss": loss})
            best[name] = manager.best_step()
    assert best == {"theirs": 2, "ours": 1}


def test_differs_cleaning_up(tmp_path):
    """With `cleanup_tmp_directories=True` Orbax deletes all temporary directories.

    Even that of a save in progress; templax deletes those that nothing writes to.
    """
    for name, ocp in (("theirs", orbax), ("ours", compat)):
        run = tmp_path / name
        now, old = (run / f"{n}.orbax-checkpoint-tmp" for n in (1, 2))
        left = Path(temporary_path(str(run / "3")))
        for directory in (now, old, left):
            directory.mkdir(parents=True)
        os.utime(old, (0, 0))
        live = Staging(run / "4", overwrite=False)
        options = ocp.CheckpointManagerOptions(cleanup_tmp_directories=True)
        manager = ocp.CheckpointManager(run, options=options)
        manager.save(5, args=ocp.args.StandardSave(step_state(5)))
        manager.close()
        stays = set() if ocp is orbax else {now, Path(live.directory)}
        assert set(run.iterdir()) == stays | {run / "5"}
        live.discard()


def test_the_manager_works_on_local_directories():
    """For object stores, templax has a manager of its own."""
    message = (
        "Expected a local directory, got gs://bucket/run; hint:"
        ' templax.Manager("gs://bucket/run") works in object stores'
    )
    with pytest.raises(tx.UsageError) as error:
        compat.CheckpointManager("gs://bucket/run")
    assert str(error.value) == message


def test_differs_metrics_of_a_policy(tmp_path):
    """Metrics that only a policy compares: Orbax forgets them, templax saves them."""
    told = {}
    for name, ocp in (("theirs", orbax), ("ours", compat)):
        policies = ocp.checkpoint_managers
        best = policies.BestN(get_metric_fn=lambda m: m["acc"], n=1)
        options = ocp.CheckpointManagerOptions(preservation_policy=best)
        with ocp.CheckpointManager(tmp_path / name, options=options) as manager:
            for step, acc in ((1, 0.9), (2, 0.5)):
                args = ocp.args.StandardSave(step_state(step))
                manager.save(step, args=args, metrics={"acc": acc})
            manager.wait_until_finished()
            assert list(manager.all_steps()) == [1]
        told[name] = ocp.CheckpointManager(tmp_path / name).metrics(1)
    assert told == {"theirs": None, "ours": {"acc": 0.9}}


@pytest.mark.slow
def test_differs_moved_step_of_the_same_number(tmp_path):
    """Orbax refuses to move a step to where one of its number is; templax keeps both."""
    options = compat.CheckpointManagerOptions(todelete_subdir="old")
    with compat.CheckpointManager(tmp_path / "ours", options=options) as manager:
        for _ in range(2):
            manager.save(3, args=compat.args.StandardSave(step_state(3)))
            manager.delete(3)
        assert manager.all_steps() == []
    assert sorted(os.listdir(tmp_path / "ours" / "old")) == ["3", "3.1"]
    options = orbax.CheckpointManagerOptions(todelete_subdir="old")
    with orbax.CheckpointManager(tmp_path / "theirs", options=options) as manager:
        for moved in range(2):
            manager.save(3, args=orbax.args.StandardSave(step_state(3)))
            manager.wait_until_finished()
            if moved:
                with pytest.raises(OSError, match="Cannot overwrite"):
                    manager.delete(3)
            else:
                manager.delete(3)


def test_differs_metadata_without_handlers(tmp_path):
    """Orbax does not know how to read the item before a call has named its kind."""
    for ocp in (orbax, compat):
        root = tmp_path / ocp.__name__
        with ocp.CheckpointManager(root) as manager:
            manager.save(0, args=ocp.args.StandardSave({"a": np.ones(3, np.float32)}))
        with ocp.CheckpointManager(root) as manager:
            found = manager.item_metadata(0)
        assert (found is None) == (ocp is orbax)
    assert found["a"].shape == (3,)
