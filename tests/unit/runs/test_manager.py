"""A run: what is saved, kept, deleted and restored, and who may do it when."""

import errno
import gc
import logging
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import templax as tx
from helpers import CORPUS
from templax._restore import api
from templax._runs.locks import LOCK, hold_for_reading
from templax._runs.steps import read_run
from templax._save import job as job_module
from templax.storage import Staging
from templax.storage.disk import DISK, Disk
from templax.storage.leftovers import TEMPORARY, delete_checkpoint, temporary_path

TWO_ITEMS = CORPUS / "orbax-0.12.8-manager" / "ckpt"


def init(key):
    return {"w": jax.random.normal(key, (3, 4)), "b": jnp.zeros(4, jnp.bfloat16)}


TEMPLATE = {"w": jax.ShapeDtypeStruct((3, 4), jnp.float32), "b": np.zeros(4, jnp.bfloat16)}
RECIPE = tx.Recipe(init, jax.random.key(0))


def copied(path, steps, case="orbax-0.12.8-default"):
    """A run whose steps are copies of one checkpoint."""
    for step in steps:
        shutil.copytree(CORPUS / case / "ckpt", path / step)
    return path


SCALE = {"scale": jax.ShapeDtypeStruct((), jnp.float32)}
AT = {"at": "state.params", "extra": "ignore"}


# restore


def test_the_latest_committed_step_is_restored(tmp_path):
    copied(tmp_path, ["7", "20"])
    copied(tmp_path, ["30"], "damaged-uncommitted")
    (tmp_path / "40.orbax-checkpoint-tmp-templax-0a").mkdir()
    manager = tx.Manager(tmp_path)
    assert (manager.steps(), manager.latest()) == ([7, 20], 20)
    shutil.rmtree(tmp_path / "7" / "d")
    assert manager.restore(SCALE, **AT)["scale"].dtype == jnp.float32
    with pytest.raises(tx.Corrupted):
        manager.restore(SCALE, 7, **AT)


def test_an_item_is_chosen_by_its_name_and_the_only_one_needs_none():
    template = {"scale": jax.ShapeDtypeStruct((), jnp.float32)}
    ema = tx.Manager(TWO_ITEMS, item="ema").restore(template, at="ema", extra="ignore")
    state = tx.Manager(TWO_ITEMS, item="state").restore(template, 10, **AT)
    assert ema["scale"] == state["scale"]
    with pytest.raises(tx.UsageError) as caught:
        tx.Manager(TWO_ITEMS).restore(template)
    assert str(caught.value) == (
        f"Expected a step with one tree, found `ema`, `state` in {TWO_ITEMS}/20;"
        ' hint: templax.Manager(..., item="ema")'
    )


def test_a_step_that_is_not_there_is_named_with_those_that_are(tmp_path):
    copied(tmp_path, ["7", "20"])
    with pytest.raises(tx.NotFound) as caught:
        tx.Manager(tmp_path).restore(SCALE, 8, **AT, missing=RECIPE)
    assert str(caught.value) == (
        f"There is nothing at {tmp_path}/8; committed steps of {tmp_path}: 7, 20; hint: open"
        f' "{tmp_path}/20"'
    )
    with pytest.raises(tx.NotFound, match="no committed step 8"):
        tx.Manager(tmp_path).metrics(8)


def test_an_uncommitted_step_is_refused_by_its_number(tmp_path):
    copied(tmp_path, ["30"], "damaged-uncommitted")
    with pytest.raises(tx.Uncommitted):
        tx.Manager(tmp_path).restore(SCALE, 30, **AT)


@pytest.mark.parametrize("there", [False, True])
def test_a_run_without_steps_gives_the_initial_values_it_is_told(tmp_path, there):
    path = tmp_path / "run"
    if there:
        copied(path, ["30"], "damaged-uncommitted")
    manager = tx.Manager(path, keep=2)
    tree = manager.restore(TEMPLATE, missing=RECIPE)
    assert (tree["w"] == init(jax.random.key(0))["w"]).all()
    assert type(tree["b"]) is np.ndarray
    assert manager.restore(TEMPLATE["w"], at="w", missing=RECIPE, cast="exact").shape == (3, 4)
    kept = manager.restore({"n": np.ones(2)}, missing="keep")
    assert kept["n"].tolist() == [1, 1]
    with pytest.raises(tx.TemplateError, match="at `other`"):
        manager.restore({"other": SCALE["scale"]}, missing=RECIPE)
    with pytest.raises(tx.NotFound) as caught:
        manager.restore(TEMPLATE)
    assert str(caught.value) == (
        f"{path} holds no committed step; hint: missing=templax.Recipe(init, key) begins with"
        " initial values"
    )
    assert path.exists() == there


def test_looking_and_restoring_change_nothing(tmp_path):
    copied(tmp_path, ["7"])
    before = sorted((p, p.stat().st_mtime_ns) for p in [tmp_path, *tmp_path.rglob("*")])
    with tx.Manager(tmp_path, keep=1) as manager:
        manager.restore(SCALE, **AT)
        assert (manager.steps(), manager.best("loss"), manager.metrics(7)) == ([7], None, {})
    assert sorted((p, p.stat().st_mtime_ns) for p in [tmp_path, *tmp_path.rglob("*")]) == before


def test_a_step_that_is_deleted_between_its_listing_and_its_reading_is_not_missed(
    tmp_path, monkeypatch
):
    """What was the latest is gone, so the latest that is there is restored."""
    copied(tmp_path, ["7", "20"])
    manager = tx.Manager(tmp_path)
    listed = manager._committed

    def late():
        found = listed()
        if (tmp_path / "20").exists():
            shutil.rmtree(tmp_path / "20")
        return found

    monkeypatch.setattr(manager, "_committed", late)
    assert manager.restore(SCALE, **AT)["scale"].shape == ()


def test_a_step_is_locked_while_it_is_restored(tmp_path, monkeypatch):
    copied(tmp_path, ["7"])
    seen = []
    restoring = api.run_plan

    def watched(plan):
        seen.append(delete_checkpoint(tmp_path / "7"))
        return restoring(plan)

    monkeypatch.setattr(api, "run_plan", watched)
    tx.Manager(tmp_path).restore(SCALE, **AT)
    assert seen == [False]
    assert (tmp_path / "7").exists()


def test_a_cast_is_announced_where_the_restore_is_written(tmp_path):
    copied(tmp_path, ["7"])
    with pytest.warns(tx.CastWarning) as caught:
        tx.Manager(tmp_path).restore({"scale": jax.ShapeDtypeStruct((), jnp.bfloat16)}, **AT)
    assert caught[0].filename == __file__


def test_metrics_choose_the_best(tmp_path):
    copied(tmp_path, ["1", "2", "3", "4", "5"])
    losses = {"1": "0.5", "2": "0.25", "3": "NaN", "5": "0.25"}
    for step, loss in losses.items():
        (tmp_path / step / "metrics").mkdir()
        (tmp_path / step / "metrics" / "metrics").write_text(f'{{"loss": {loss}}}')
    manager = tx.Manager(tmp_path)
    assert (manager.best("loss"), manager.best("loss", "max"), manager.best("x")) == (5, 1, None)
    assert (manager.metrics(1), manager.metrics(4)) == ({"loss": 0.5}, {})
    with pytest.raises(tx.UsageError, match="mode="):
        manager.best("loss", "least")


def test_a_run_stays_where_it_was_when_the_directory_changes(tmp_path, monkeypatch):
    copied(tmp_path / "run", ["7"])
    monkeypatch.chdir(tmp_path)
    manager = tx.Manager("run")
    monkeypatch.chdir("/")
    assert manager.steps() == [7]
    assert manager.path(7) == str(tmp_path / "run" / "7")


@pytest.mark.parametrize(
    ("names", "step", "name"),
    [
        ([], 5, "5"),
        (["ckpt_0007"], 5, "ckpt_0005"),
        (["ckpt_0007"], 7, "ckpt_0007"),
        (["007", "7.orbax-checkpoint-tmp-1"], 7, "007"),
    ],
)
def test_a_path_is_where_a_step_is_or_would_be(tmp_path, names, step, name):
    copied(tmp_path, names)
    assert tx.Manager(tmp_path).path(step) == str(tmp_path / name)


@pytest.mark.parametrize("path", [TWO_ITEMS / "10", CORPUS / "orbax-0.12.8-default" / "ckpt"])
def test_a_checkpoint_is_no_run(path):
    with pytest.raises(tx.UsageError) as caught:
        tx.Manager(path).steps()
    assert str(caught.value) == f"Expected a directory of steps, got the checkpoint {path}"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: tx.Manager(""), 'Expected a path, got ""'),
        (lambda: tx.Manager(tx.storage.Memory({})), "Expected a path, got Memory"),
        (
            lambda: tx.Manager("x", item=""),
            "Expected item= a name (str), and not `metrics`, got ''",
        ),
        (
            lambda: tx.Manager("x", item="a/b"),
            "Expected item= a name (str), and not `metrics`, got 'a/b'",
        ),
        (
            lambda: tx.Manager("x", item=".a"),
            "Expected item= a name (str), and not `metrics`, got '.a'",
        ),
        (lambda: tx.Manager("x", keep=0), "Expected keep= an int of at least 1, got 0"),
    ],
)
def test_what_means_nothing_is_refused(make, says):
    with pytest.raises(tx.UsageError) as caught:
        make()
    assert str(caught.value) == says


# save


TREE = {"w": jnp.arange(12.0).reshape(3, 4), "b": jnp.zeros(4, jnp.bfloat16)}
WANT = {"w": jax.ShapeDtypeStruct((3, 4), jnp.float32), "b": TREE["b"]}


def names(path):
    return {child.name for child in path.iterdir()} - {LOCK}


def test_what_was_saved_in_the_background_is_restored(tmp_path):
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


def test_a_save_takes_the_options_of_save(tmp_path):
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
    assert names(tmp_path) == {"1"}


def test_a_step_that_is_there_is_replaced_only_if_asked(tmp_path):
    with tx.Manager(tmp_path) as manager:
        manager.save(1, TREE, wait=True)
        with pytest.raises(tx.AlreadyExists):
            manager.save(1, {"w": jnp.ones(3)})
        assert manager.restore(WANT)["w"][0, 1] == 1
        manager.save(1, {"w": jnp.ones(3)}, overwrite=True)
        manager.wait()
        assert manager.restore({"w": jnp.zeros(3)})["w"].tolist() == [1, 1, 1]
        assert names(tmp_path) == {"1"}


def test_the_next_save_waits_for_the_one_before(tmp_path):
    """And so do wait and close; each step is whole when they return."""
    with tx.Manager(tmp_path) as manager:
        for step in range(4):
            saved = manager.save(step, {"w": jnp.full(100_000, step)})
            assert manager.steps()[:step] == list(range(step))
        manager.wait()
        assert saved.done()
    assert tx.Manager(tmp_path).steps() == [0, 1, 2, 3]


def test_a_failure_in_the_background_is_raised_once_by_what_comes_next(tmp_path, monkeypatch):
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
        assert names(tmp_path / then) == set()
        manager.save(1, TREE)
        manager.close()
        assert manager.steps() == [1]


def test_what_ends_the_block_is_not_hidden_by_a_save_that_failed(tmp_path, monkeypatch):
    def refuse(self, *arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def train():
        with tx.Manager(tmp_path) as manager:
            manager.save(1, TREE)
            raise KeyError("mine")

    with monkeypatch.context() as patched:
        patched.setattr(Disk, "fsync", refuse)
        with pytest.raises(KeyError, match="mine") as caught:
            train()
    (note,) = caught.value.__notes__
    assert note.startswith("Besides, can't ")
    tx.Manager(tmp_path).save(1, TREE).wait()


def test_steps_are_named_as_those_that_are_there(tmp_path):
    copied(tmp_path, ["ckpt_0007", "ckpt_0020"])
    with tx.Manager(tmp_path) as manager:
        manager.save(30, TREE)
        manager.save(7, TREE, overwrite=True)
    assert names(tmp_path) == {"ckpt_0007", "ckpt_0020", "ckpt_0030"}


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
def test_metrics_are_numbers_of_any_library(tmp_path, metrics, stored):
    with tx.Manager(tmp_path) as manager:
        manager.save(1, TREE, metrics=metrics, wait=True)
        found = manager.metrics(1)
    assert found == {name: np.asarray(value).item() for name, value in (metrics or {}).items()}
    assert found | stored == found
    assert all(type(value) in (int, float) for value in found.values())


def test_a_nan_is_kept_and_never_the_best(tmp_path):
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
def test_a_save_that_means_nothing_is_refused_before_anything_is_made(tmp_path, arguments, says):
    with pytest.raises(tx.UsageError) as caught:
        tx.Manager(tmp_path / "run").save(**({"step": 1, "tree": TREE} | arguments))
    assert str(caught.value) == says
    assert not (tmp_path / "run").exists()


def test_nothing_is_saved_into_a_checkpoint(tmp_path):
    tx.save(tmp_path / "ckpt", TREE)
    with tx.Manager(tmp_path / "ckpt") as manager, pytest.raises(tx.UsageError, match="got the"):
        manager.save(1, TREE)


# who may save


def test_one_manager_at_a_time_saves_and_others_restore(tmp_path):
    with tx.Manager(tmp_path) as first, tx.Manager(tmp_path) as second:
        first.save(1, TREE, wait=True)
        assert second.restore(WANT)["w"][0, 1] == 1
        with pytest.raises(tx.SaveError, match=r"found another templax\.Manager of this process"):
            second.save(2, TREE)
        first.close()
        second.save(2, TREE)
        with pytest.raises(tx.SaveError, match=r"found another templax\.Manager of this process"):
            first.save(3, TREE)
    assert first.steps() == [1, 2]


def test_a_manager_that_is_forgotten_does_not_keep_the_lock(tmp_path):
    """As in a notebook, where a cell is run again."""
    manager = tx.Manager(tmp_path)
    manager.save(1, TREE)
    manager.wait()
    manager = tx.Manager(tmp_path)
    gc.collect()
    manager.save(2, TREE)
    manager.close()


TRAIN = """
import sys, jax.numpy as jnp, templax as tx
manager = tx.Manager(sys.argv[1], keep=2)
for step in range(int(sys.argv[2])):
    manager.save(step, {"w": jnp.full(1000, step)}, metrics={"loss": 1.0})
manager.wait()
print("saved", flush=True)
sys.stdin.read()
"""


def train(path, steps):
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(path), str(steps)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_another_process_that_saves_is_named_until_it_is_killed(tmp_path):
    process = train(tmp_path, 4)
    try:
        assert process.stdout.readline() == "saved\n"
        with tx.Manager(tmp_path) as manager:
            assert manager.steps() == [2, 3]
            assert manager.restore({"w": jnp.zeros(1000, jnp.int32)})["w"][0] == 3
            with pytest.raises(tx.SaveError, match=f"process {process.pid} on "):
                manager.save(4, TREE)
            process.kill()
            process.wait()
            manager.save(4, TREE)
            manager.wait()
            assert manager.steps() == [2, 3, 4]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("delay_s", [0.0, 0.003, 0.01, 0.03, 0.1])
def test_killed_at_any_time_a_run_goes_on_from_its_latest_step(tmp_path, delay_s):
    """What is listed is whole; what was left is removed when its step is saved again."""
    process = train(tmp_path, 10_000)
    while not names(tmp_path):
        time.sleep(0.001)
    time.sleep(delay_s)
    process.kill()
    process.communicate()
    with tx.Manager(tmp_path) as manager:
        for step in manager.steps():
            tree = manager.restore({"w": jnp.zeros(1000, jnp.int32)}, step, verify="required")
            assert (tree["w"] == step).all()
        for left in read_run(tx.storage.Local(tmp_path)).leftovers:
            manager.save(left.step, TREE, wait=True)
    assert all(name.isdigit() for name in names(tmp_path))


# which steps stay


def test_only_what_a_rule_keeps_stays(tmp_path):
    keep = tx.Keep(last=1, every=4, best=1, metric="loss")
    losses = [3, 1, 2, math.nan, 5, 6, 7, None, 8]
    with tx.Manager(tmp_path, keep=keep) as manager:
        for step, loss in enumerate(losses):
            manager.save(step, TREE, metrics=None if loss is None else {"loss": loss})
    assert names(tmp_path) == {"0", "1", "4", "8"}


def test_the_step_just_saved_stays_though_it_is_not_the_highest(tmp_path):
    with tx.Manager(tmp_path, keep=1) as manager:
        manager.save(100, TREE)
        manager.save(50, TREE, wait=True)
        assert manager.steps() == [50, 100]
        manager.save(60, TREE, wait=True)
        assert manager.steps() == [60, 100]


def test_a_step_that_is_read_goes_later(tmp_path, caplog):
    caplog.set_level(logging.INFO, "templax")
    with tx.Manager(tmp_path, keep=1) as manager:
        manager.save(1, TREE, wait=True)
        with hold_for_reading(manager.path(1)):
            manager.save(2, TREE, wait=True)
            assert manager.steps() == [1, 2]
            assert f"step 1 of {tmp_path} is being read, and stays for now" in caplog.messages
        manager.save(3, TREE, wait=True)
        assert manager.steps() == [3]


def test_a_step_that_cannot_be_deleted_ends_no_training(tmp_path, monkeypatch, caplog):
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


def test_uncommitted_steps_and_those_of_other_names_are_left(tmp_path):
    copied(tmp_path, ["1", "eval_1"])
    copied(tmp_path, ["2"], "damaged-uncommitted")
    (tmp_path / "logs").mkdir()
    (tmp_path / "5.orbax-checkpoint-tmp").mkdir()
    with tx.Manager(tmp_path, keep=1) as manager:
        manager.save(3, TREE, wait=True)
        manager.save(4, TREE, wait=True)
    assert names(tmp_path) == {"2", "4", "eval_1", "logs", "5.orbax-checkpoint-tmp"}


def test_what_killed_programs_left_is_removed_and_of_others_than_templax_is_left(tmp_path):
    """Of a save of the step, and of the deletion of one that nobody will save again."""
    for step in ("3", "1"):
        Path(temporary_path(str(tmp_path / step))).mkdir()
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    with tx.Manager(tmp_path) as manager, Staging(tmp_path / "4", overwrite=False) as live:
        manager.save(3, TREE, wait=True)
        assert names(tmp_path) == {"3", "2.orbax-checkpoint-tmp", Path(live.directory).name}


def test_what_a_killed_save_left_and_cannot_be_removed_is_in_nobodys_way(
    tmp_path, monkeypatch, caplog
):
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
    assert names(tmp_path) == {"3", lost.name}


def test_a_run_whose_item_has_another_name_goes_on_with_it(tmp_path):
    """As Orbax's v1 API, and many scripts, name it."""
    with tx.Manager(tmp_path, item="state") as manager:
        manager.save(1, {"w": np.ones(3)})
    with tx.Manager(tmp_path) as manager:
        manager.save(2, {"w": np.full(3, 2.0)}, wait=True)
        assert manager.restore({"w": np.zeros(3)})["w"][0] == 2
    assert (tmp_path / "2" / "state").is_dir()
    with pytest.raises(tx.NotFound, match=r"Expected the item `ema`, found `state`"):
        tx.Manager(tmp_path, item="ema").restore({"w": np.zeros(3)})


def test_of_several_trees_one_is_to_be_named(tmp_path):
    case = CORPUS / "orbax-0.12.8-manager" / "ckpt"
    shutil.copytree(case, tmp_path / "run")
    manager = tx.Manager(tmp_path / "run")
    for call in (lambda: manager.restore({}), lambda: manager.save(30, {"w": np.ones(3)})):
        with pytest.raises(tx.UsageError, match=r'found `ema`, `state`.*item="ema"'):
            call()
    manager.close()
    leaf = {"state": {"params": {"scale": np.float32(0)}}}
    got = tx.Manager(tmp_path / "run", item="state").restore(leaf, extra="ignore")
    assert got["state"]["params"]["scale"].dtype == np.float32


def test_a_step_that_was_not_begun_is_named_by_the_failure_before(tmp_path, monkeypatch):
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
