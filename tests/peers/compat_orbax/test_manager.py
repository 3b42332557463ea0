"""Runs of a manager of Orbax and of `templax.compat.orbax`; each continues and restores both."""

import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import orbax.checkpoint as orbax
import pytest
from orbax.checkpoint import checkpoint_manager

import templax as tx
import templax.compat.orbax as compat
from helpers import abstract, mark_slow
from side_by_side import (
    assert_interchangeable,
    describe_run,
    first_device,
    save_steps,
    small_tree,
    step_state,
)
from templax._save import job as job_module
from templax.compat.orbax.step_policies import StepInfo, make_preservation_policy, select_replaced

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("collect_garbage"),
]


def run_default(ocp, path):
    return save_steps(ocp, path, range(4))


def run_keeps_the_newest(ocp, path):
    return save_steps(ocp, path, range(6), max_to_keep=2)


def run_keeps_none(ocp, path):
    return save_steps(ocp, path, range(3), max_to_keep=0)


def run_keeps_multiples(ocp, path):
    return save_steps(ocp, path, range(1, 9), max_to_keep=1, keep_period=3)


def run_keeps_by_time(ocp, path):
    return save_steps(ocp, path, range(4), max_to_keep=1, keep_time_interval=timedelta(hours=1))


def run_at_intervals(ocp, path):
    return save_steps(ocp, path, range(3, 14), save_interval_steps=5, save_on_steps=[4, 12])


def run_where_a_function_says(ocp, path):
    return save_steps(
        ocp, path, range(8), should_save_fn=lambda step, last: step - (last or 0) >= 3
    )


def run_twice_the_same_step(ocp, path):
    return save_steps(ocp, path, [3, 3, 2, 4])


LOSS = [3.0, 1.0, 2.0, 9.0, 0.5, 1.0]


def run_keeps_the_best(ocp, path):
    options = {"best_fn": lambda m: m["loss"], "best_mode": "min", "max_to_keep": 2}
    return save_steps(ocp, path, range(6), lambda step: {"loss": LOSS[step]}, **options)


def run_keeps_the_best_by_default(ocp, path):
    options = {"best_fn": lambda m: m["loss"], "max_to_keep": 2, "keep_period": 5}
    return save_steps(ocp, path, range(6), lambda step: {"loss": LOSS[step]}, **options)


def run_without_metrics_stays(ocp, path):
    options = {"best_fn": lambda m: m["loss"], "best_mode": "min", "max_to_keep": 1}
    return save_steps(
        ocp, path, range(6), lambda s: {"loss": LOSS[s]} if s % 3 else None, **options
    )


def run_without_metrics_goes(ocp, path):
    options = {"best_fn": lambda m: m["loss"], "keep_checkpoints_without_metrics": False}
    options |= {"max_to_keep": 1}
    return save_steps(
        ocp, path, range(6), lambda s: {"loss": LOSS[s]} if s % 3 else None, **options
    )


def run_whose_metrics_nothing_compares(ocp, path):
    said = save_steps(ocp, path, range(3), lambda step: {"loss": LOSS[step]}, max_to_keep=2)
    return [*said, ocp.CheckpointManager(path / "run").metrics(2)]


def run_that_is_synchronous(ocp, path):
    said = save_steps(ocp, path, range(3), enable_async_checkpointing=False, max_to_keep=2)
    return [*said, sorted(p.name for p in (path / "run").iterdir())]


def run_with_prefix(ocp, path):
    return save_steps(ocp, path, (7, 12), step_prefix="ckpt", step_format_fixed_length=6)


def run_that_is_read_only(ocp, path):
    save_steps(ocp, path, range(2))
    return save_steps(ocp, path, range(2, 4), read_only=True)


def run_begun_by_orbax(ocp, path):
    """Continued by another manager, as after a crash."""
    save_steps(orbax, path, range(3), max_to_keep=3)
    return save_steps(ocp, path, range(2, 6), max_to_keep=3)


def run_begun_by_compat(ocp, path):
    save_steps(compat, path, range(3), max_to_keep=3)
    return save_steps(ocp, path, range(2, 6), max_to_keep=3)


def run_with_best_begun_by_the_other(ocp, path):
    options = {"best_fn": lambda m: m["loss"], "best_mode": "min", "max_to_keep": 2}
    other = compat if ocp is orbax else orbax
    save_steps(other, path, range(3), lambda step: {"loss": LOSS[step]}, **options)
    return save_steps(ocp, path, range(3, 6), lambda step: {"loss": LOSS[step]}, **options)


def run_beside_another(ocp, path):
    """Steps with a prefix belong to another run, and stay."""
    save_steps(ocp, path, range(4), step_prefix="eval")
    said = save_steps(ocp, path, range(2, 6), max_to_keep=1)
    said += save_steps(ocp, path, range(3, 6), max_to_keep=3, step_prefix="eval")
    return [*said, sorted(p.name for p in (path / "run").iterdir())]


def run_forced(ocp, path):
    options = ocp.CheckpointManagerOptions(save_interval_steps=10)
    with ocp.CheckpointManager(path / "run", options=options) as manager:
        args = ocp.args.StandardSave(step_state(0))
        flags = [manager.save(0, args=args), manager.save(3, args=args)]
        flags += [manager.save(3, args=args, force=True), manager.save(10, args=args)]
        return [flags, describe_run(manager)]


def run_deletes(ocp, path):
    save_steps(ocp, path, range(4))
    with ocp.CheckpointManager(path / "run") as manager:
        manager.delete(3)
        manager.delete(1)
        missing = []
        try:
            manager.delete(7)
        except FileNotFoundError:
            missing.append(7)
        again = manager.save(3, args=ocp.args.StandardSave(step_state(3)))
        return [missing, again, describe_run(manager)]


def run_tells_metadata(ocp, path):
    options = ocp.CheckpointManagerOptions(best_fn=lambda m: m["loss"])
    directory = path / "run"
    with ocp.CheckpointManager(directory, options=options, metadata={"v": [1]}) as manager:
        manager.save(
            1,
            args=ocp.args.StandardSave(step_state(1)),
            metrics={"loss": 0.5},
            custom_metadata={"lr": 0.1},
        )
        manager.save(2, args=ocp.args.StandardSave(step_state(2)))
        manager.wait_until_finished()
        metadata = manager.metadata(1)
        said = [manager.metrics(1), manager.metrics(2), metadata.metrics, metadata.custom_metadata]
        tree = metadata.item_metadata.tree
        said += [list(tree["w"].shape), manager.directory == directory, manager.directory.name]
    manager = ocp.CheckpointManager(directory, metadata={"v": "ignored: there is one already"})
    files = sorted(str(f.relative_to(directory)) for f in directory.glob("*/*/metrics"))
    return [*said, manager.metadata().custom_metadata, files]


def run_by_old_spelling(ocp, path):
    manager = ocp.CheckpointManager(
        path / "run", ocp.PyTreeCheckpointer(), ocp.CheckpointManagerOptions(max_to_keep=2)
    )
    args = jax.tree.map(lambda _: ocp.SaveArgs(), step_state(0))
    flags = [manager.save(s, step_state(s), save_kwargs={"save_args": args}) for s in range(3)]
    return [flags, describe_run(manager), manager.restore(2, items=step_state(0))]


def run_by_handler(ocp, path):
    with ocp.CheckpointManager(
        path / "run", item_handlers=ocp.StandardCheckpointHandler()
    ) as manager:
        return [manager.save(1, args=ocp.args.StandardSave(step_state(1))), describe_run(manager)]


def run_restores_what_it_is_saving(ocp, path):
    with ocp.CheckpointManager(path / "run") as manager:
        manager.save(1, args=ocp.args.PyTreeSave(step_state(1)))
        return [
            manager.restore(1, args=ocp.args.PyTreeRestore(step_state(0))),
            describe_run(manager),
        ]


RUNS = [code for name, code in list(globals().items()) if name.startswith("run_")]
QUICK_RUNS = RUNS[::3]
MORE_RUNS = [code for code in RUNS if code not in QUICK_RUNS]


@pytest.mark.slow
@pytest.mark.parametrize("code", [*QUICK_RUNS, *mark_slow(*MORE_RUNS)], ids=lambda f: f.__name__)
def test_runs_are_interchangeable(code, tmp_path):
    """Both answer the same meanwhile and keep the same steps, which each lists and restores."""
    options = {}
    if code is run_with_prefix:
        options = {"step_prefix": "ckpt", "step_format_fixed_length": 6}

    def read(ocp: Any, path: Path) -> list[Any]:
        manager = ocp.CheckpointManager(
            path / "run", options=ocp.CheckpointManagerOptions(**options)
        )
        steps = list(manager.all_steps())
        target = jax.tree.map(np.asarray, step_state(0)) | {"step": 0}
        args = ocp.args.StandardRestore(target)
        return [steps, *(manager.restore(step, args=args) for step in steps)]

    assert_interchangeable(code, read, tmp_path)
    names = [
        {p.name for p in (tmp_path / n / "run").iterdir()} for n in sorted(os.listdir(tmp_path))
    ]
    assert names[0] == names[1]


@hypothesis.given(st.data())
def test_the_steps_that_stay_are_those_of_orbaxs_policies(data):
    """For any steps, metrics and times, and any combination of options."""
    numbers = data.draw(st.lists(st.integers(0, 40), unique=True, min_size=1, max_size=12))
    losses = st.none() | st.integers(0, 4).map(float)
    facts = [
        (
            step,
            datetime.fromtimestamp(seconds, tz=UTC),
            None if (loss := data.draw(losses)) is None else {"loss": loss},
        )
        for step, seconds in zip(sorted(numbers), range(0, 10_000, 700), strict=False)
    ]
    chosen = {
        "max_to_keep": data.draw(st.none() | st.integers(0, 5)),
        "keep_period": data.draw(st.none() | st.integers(1, 9)),
        "keep_time_interval": data.draw(
            st.none() | st.integers(1, 4000).map(lambda s: timedelta(seconds=s))
        ),
        "best_fn": data.draw(st.sampled_from([None, lambda metrics: metrics["loss"]])),
        "best_mode": data.draw(st.sampled_from(["min", "max"])),
        "keep_checkpoints_without_metrics": data.draw(st.booleans()),
    }
    policy = checkpoint_manager._get_default_preservation_policy(
        orbax.CheckpointManagerOptions(**chosen)
    )
    infos = [checkpoint_manager.CheckpointInfo(*each) for each in facts]
    kept = policy.should_preserve(infos, context=None)
    theirs = {info.step for info, stays in zip(infos, kept, strict=True) if not stays}
    steps = [StepInfo(step, "", time=time, metrics=metrics) for step, time, metrics in facts]
    ours = make_preservation_policy(compat.CheckpointManagerOptions(**chosen))
    assert select_replaced(ours, steps) == theirs


def several(ocp, path):
    said = []
    with ocp.CheckpointManager(
        path / "run",
        item_names=("state", "ema", "meta"),
        options=ocp.CheckpointManagerOptions(max_to_keep=2, best_fn=lambda m: m["acc"]),
    ) as manager:
        for step in range(3):
            saved = manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(step_state(step)),
                    ema=ocp.args.PyTreeSave(small_tree()),
                    meta=ocp.args.JsonSave({"step": step}),
                ),
                metrics={"acc": step / 3},
            )
            said += [saved, describe_run(manager)]
        manager.wait_until_finished()
        said.append(sorted(dict(manager.restore(2).items())))
    step = path / "run/2"
    return [*said, sorted(p.name for p in step.iterdir()), (step / "metrics/metrics").read_text()]


def some_of_several(ocp, path):
    """A step may have other items than the previous one."""
    with ocp.CheckpointManager(path / "run", item_names=("state", "ema", "meta")) as manager:
        for step in (1, 2):
            items = {"state": ocp.args.StandardSave(step_state(step))}
            if step == 2:
                items["ema"] = ocp.args.StandardSave(small_tree())
                items["meta"] = ocp.args.JsonSave([step])
            manager.save(step, args=ocp.args.Composite(**items))
        return describe_run(manager)


def several_by_old_spelling(ocp, path):
    checkpointers = {
        "state": ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler()),
        "ema": ocp.PyTreeCheckpointer(),
        "meta": ocp.Checkpointer(ocp.JsonCheckpointHandler()),
    }
    manager = ocp.CheckpointManager(path / "run", checkpointers)
    args = jax.tree.map(lambda _: ocp.SaveArgs(), step_state(0))
    items = {"state": step_state(2), "ema": small_tree(), "meta": {"x": 1}}
    saved = manager.save(2, items, save_kwargs={"state": {"save_args": args}})
    manager.wait_until_finished()
    return [saved, describe_run(manager), manager.restore(2, items={"meta": None})["meta"]]


def several_read(ocp, path):
    with ocp.CheckpointManager(path / "run", item_names=("state", "ema", "meta")) as manager:
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(jax.tree.map(np.asarray, step_state(0)) | {"step": 0}),
            ema=ocp.args.StandardRestore(abstract(small_tree(), first_device())),
            meta=ocp.args.JsonRestore(),
        )
        return [list(manager.all_steps()), dict(manager.restore(2, args=args).items())]


@pytest.mark.slow
@pytest.mark.parametrize(
    "code", [several, some_of_several, several_by_old_spelling], ids=lambda f: f.__name__
)
def test_steps_of_several_items_are_interchangeable(code, tmp_path):
    """Trees and JSON values in one step, under the same names."""
    assert_interchangeable(code, several_read, tmp_path)


@pytest.mark.slow
def test_differs_files_that_they_write(tmp_path):
    """The same files and directories, except for an index of each library."""
    for name, ocp in (("theirs", orbax), ("ours", compat)):
        several(ocp, tmp_path / name)
    theirs, ours = (
        {
            str(f.relative_to(tmp_path / name / "run/2"))
            for f in (tmp_path / name / "run/2").rglob("*")
            if f.is_file() and "/d/" not in str(f)
        }
        for name in ("theirs", "ours")
    )
    trees = ("state", "ema")
    assert theirs - ours == {f"{tree}/ocdbt.process_0/manifest.ocdbt" for tree in trees}
    assert ours - theirs == {f"{tree}/templax.index" for tree in trees}


@pytest.mark.parametrize(
    "call", ["wait_until_finished", "check_for_errors", "close", "save", "restore", "delete"]
)
def test_a_manager_raises_what_failed_in_the_background(
    call, tmp_path, monkeypatch, fail_next_save
):
    """Once. The step is not listed, those it would have replaced are, and it can be saved again."""
    options = compat.CheckpointManagerOptions(max_to_keep=1)
    manager = compat.CheckpointManager(tmp_path, options=options)
    manager.save(1, args=compat.args.StandardSave(step_state(1)))
    manager.wait_until_finished()
    fail_next_save()
    manager.save(2, args=compat.args.StandardSave(step_state(2)))
    manager._pending._saved._outcome.wait_for_end()
    assert manager.all_steps() == [1]
    arguments = {"save": [3, None, None, None, False, compat.args.StandardSave(step_state(3))]}
    arguments |= {"restore": [1], "delete": [1]}
    with pytest.raises(tx.SaveError, match=r"^No space is left$"):
        getattr(manager, call)(*arguments.get(call, []))
    manager.check_for_errors()
    assert [p.name for p in tmp_path.iterdir()] == ["1"]
    assert manager.should_save(2)
    assert manager.save(2, args=compat.args.StandardSave(step_state(2)))
    manager.close()
    assert manager.all_steps() == [2]


def test_a_manager_lists_a_step_that_is_being_saved(tmp_path, monkeypatch):
    """And no longer the step that will be deleted: it shows the run as it will be."""
    go, describe = threading.Event(), job_module.Job._write_small_files

    def wait(job: Any, files: Any) -> Any:
        assert go.wait(60)
        return describe(job, files)

    options = compat.CheckpointManagerOptions(max_to_keep=1, best_fn=lambda m: m["acc"])
    with compat.CheckpointManager(tmp_path, options=options) as manager:
        manager.save(1, args=compat.args.StandardSave(step_state(1)), metrics={"acc": 0.5})
        manager.wait_until_finished()
        monkeypatch.setattr(job_module.Job, "_write_small_files", wait)
        manager.save(2, args=compat.args.StandardSave(step_state(2)), metrics={"acc": 0.75})
        assert manager.is_saving_in_progress()
        assert (manager.all_steps(), manager.latest_step(), manager.best_step()) == ([2], 2, 2)
        assert manager.metrics(2) == {"acc": 0.75}
        assert not manager.should_save(2)
        assert [p.name for p in tmp_path.iterdir() if p.name.isdigit()] == ["1"]
        go.set()
    assert [p.name for p in tmp_path.iterdir()] == ["2"]


def test_a_step_with_unreadable_metrics_stays(tmp_path, caplog):
    options = compat.CheckpointManagerOptions(
        best_fn=lambda m: m["acc"], best_mode="max", max_to_keep=1
    )
    with compat.CheckpointManager(tmp_path, options=options) as manager:
        args = compat.args.StandardSave({"w": np.full(3, 0)})
        manager.save(0, args=args, metrics={"acc": 1.0})
    (tmp_path / "0" / "metrics" / "metrics").write_text("{")
    with compat.CheckpointManager(tmp_path, options=options) as manager:
        for step in range(1, 4):
            args = compat.args.StandardSave({"w": np.full(3, step)})
            manager.save(step, args=args, metrics={"acc": 1 / (step + 1)})
            manager.wait_until_finished()
        assert 0 in manager.all_steps()
        assert manager.best_step() == 1
        text = "stays and is not the best, as its metrics are unreadable: "
        assert f"step 0 of {tmp_path} {text}" in caplog.text
        with pytest.raises(tx.Corrupted):
            manager.metrics(0)


def test_an_item_of_a_handler_of_the_callers_own_is_refused_clearly(tmp_path: Path) -> None:
    class OwnRestore:
        pass

    manager = compat.CheckpointManager(tmp_path)
    manager.save(0, args=compat.args.StandardSave({"w": np.ones(3, np.float32)}))
    manager.wait_until_finished()
    for args in (OwnRestore(),):
        with pytest.raises(tx.UsageError, match=r"Expected args that restore, .* got OwnRestore"):
            manager.restore(0, args=args)


@pytest.mark.parametrize("ocp", [orbax, compat], ids=["theirs", "ours"])
def test_metrics_that_are_not_written_still_decide_which_step_is_best(ocp, tmp_path):
    """As long as the manager that was told them lives, and in no file."""
    options = ocp.CheckpointManagerOptions(
        best_fn=lambda m: m["acc"], prevent_write_metrics=True, max_to_keep=2
    )
    with ocp.CheckpointManager(tmp_path, options=options) as manager:
        for step, acc in enumerate((0.5, 0.9, 0.1, 0.7)):
            args = ocp.args.StandardSave(step_state(step))
            manager.save(step, args=args, metrics={"acc": acc})
            assert manager.metrics(step) is None
        manager.wait_until_finished()
        assert (list(manager.all_steps()), manager.best_step()) == ([1, 3], 1)
        assert manager.metrics(1) is None
    assert ocp.CheckpointManager(tmp_path, options=options).best_step() is None


def test_each_thread_is_told_of_a_failed_save_though_idents_are_used_again(tmp_path, monkeypatch):
    def fail(job, *rest):
        raise tx.SaveError("the disk is full")

    told, idents = [], []

    def wait():
        idents.append(threading.get_ident())
        for _ in range(2):
            try:
                manager.wait_until_finished()
            except tx.SaveError:
                told.append(idents[-1])

    manager = compat.CheckpointManager(tmp_path)
    monkeypatch.setattr(job_module.Job, "_write_small_files", fail)
    manager.save(1, args=compat.args.StandardSave(step_state(1)))
    for _ in range(4):
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join()
    assert told == idents


def test_what_is_cleaned_up_is_logged(tmp_path, caplog):
    left = tmp_path / "3.orbax-checkpoint-tmp-1"
    left.mkdir()
    os.utime(left, (0, 0))
    with caplog.at_level("INFO", logger="templax"):
        options = compat.CheckpointManagerOptions(cleanup_tmp_directories=True)
        compat.CheckpointManager(tmp_path, options=options)
    assert not left.exists()
    assert f"removed {left}, which a killed save left behind" in caplog.text


@pytest.mark.parametrize("ocp", [orbax, compat], ids=["theirs", "ours"])
def test_steps_of_another_prefix_belong_to_another_run(ocp, tmp_path):
    """They are not listed, not restored as the latest, and stay."""
    save_steps(ocp, tmp_path, (7, 12), step_prefix="ckpt", step_format_fixed_length=6)
    options = ocp.CheckpointManagerOptions(max_to_keep=1)
    with ocp.CheckpointManager(tmp_path / "run", options=options) as manager:
        assert (list(manager.all_steps()), manager.latest_step()) == ([], None)
        for step in (12, 20):
            assert manager.save(step, args=ocp.args.StandardSave(step_state(step)))
        assert list(manager.all_steps()) == [20]
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"20", "ckpt_000007", "ckpt_000012"}
