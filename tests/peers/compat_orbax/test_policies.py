"""Policies, names of steps and the loop beside a training, by Orbax and by templax."""

import os

import orbax.checkpoint as orbax
import pytest

import templax as tx
import templax.compat.orbax as compat
from side_by_side import step_state
from templax.compat.orbax import checkpoint_utils

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("collect_garbage"),
]


class EvenSteps:
    """A policy of the caller's own, for saving and for keeping."""

    def should_save(self, step, previous_steps, *, context):
        assert not context.reached_preemption
        return step.step % 2 == 0 and all(each.step < step.step for each in previous_steps)

    def should_preserve(self, checkpoints, *, context):
        return [each.step % 4 == 0 for each in checkpoints]


def deciding(ocp):
    policies = ocp.checkpoint_managers
    return {
        "own": EvenSteps(),
        "any": policies.AnySavePolicy(
            [
                policies.FixedIntervalPolicy(4),
                policies.SpecificStepsPolicy([3]),
                policies.PreemptionCheckpointingPolicy(),
                policies.InitialSavePolicy(),
            ]
        ),
    }


def keeping(ocp):
    policies = ocp.checkpoint_managers
    return {
        "own": EvenSteps(),
        "steps": policies.EveryNSteps(3, exact_interval=False, max_to_keep=2),
        "closest": policies.EveryNStepsClosest(4),
        "any": policies.AnyPreservationPolicy(
            [policies.LatestN(1), policies.CustomSteps([0, 5]), policies.EveryNSeconds(3600)]
        ),
    }


def run(ocp, path, **options):
    with ocp.CheckpointManager(path, options=ocp.CheckpointManagerOptions(**options)) as manager:
        args = [ocp.args.StandardSave(step_state(step)) for step in range(9)]
        saved = [manager.save(step, args=each) for step, each in enumerate(args)]
        manager.wait_until_finished()
        return saved, list(manager.all_steps())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own", "any"])
def test_steps_are_saved_as_a_policy_says(name, tmp_path):
    """Whichever library made the policy."""
    theirs = run(orbax, tmp_path / "theirs", save_decision_policy=deciding(orbax)[name])
    for made_by in (compat, orbax):
        path = tmp_path / made_by.__name__
        assert run(compat, path, save_decision_policy=deciding(made_by)[name]) == theirs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own", "steps", "closest", "any"])
def test_steps_stay_as_a_policy_says(name, tmp_path):
    """Whichever library made the policy."""
    theirs = run(orbax, tmp_path / "theirs", preservation_policy=keeping(orbax)[name])
    for made_by in (compat, orbax):
        path = tmp_path / made_by.__name__
        assert run(compat, path, preservation_policy=keeping(made_by)[name]) == theirs


def test_a_policy_that_does_not_answer_for_each_step_deletes_none(tmp_path):
    class Short:
        def should_preserve(self, checkpoints, *, context):
            return [False]

    options = compat.CheckpointManagerOptions(preservation_policy=Short())
    with compat.CheckpointManager(tmp_path, options=options) as manager:
        manager.save(0, args=compat.args.StandardSave(step_state(0)))
    with compat.CheckpointManager(tmp_path) as manager:
        manager.save(1, args=compat.args.StandardSave(step_state(1)))
    with compat.CheckpointManager(tmp_path, options=options) as manager:
        with pytest.raises(tx.UsageError, match="to answer for 2 steps, got 1 answers"):
            manager.save(2, args=compat.args.StandardSave(step_state(2)))
        assert manager.all_steps() == [1]


@pytest.mark.parametrize("made_by", [compat, orbax], ids=["compat", "orbax"])
def test_steps_are_named_and_found_by_a_format(made_by, tmp_path):
    """New steps get one name, and steps of the older one are found, too."""
    step = made_by.path.step
    old = step.standard_name_format(step_prefix="ckpt", step_format_fixed_length=4)
    new = step.standard_name_format()
    run(compat, tmp_path, step_name_format=old, save_interval_steps=4)
    assert sorted(os.listdir(tmp_path)) == ["ckpt_0000", "ckpt_0004", "ckpt_0008"]
    both = step.composite_name_format(new, [new, old])
    options = compat.CheckpointManagerOptions(step_name_format=both)
    with compat.CheckpointManager(tmp_path, options=options) as manager:
        manager.save(12, args=compat.args.StandardSave(step_state(12)))
        manager.wait_until_finished()
        assert manager.all_steps() == [0, 4, 8, 12]
        assert int(manager.restore(4)["step"]) == 4
        assert (tmp_path / "12").is_dir()
        with pytest.raises(FileNotFoundError):
            manager.restore(5)


def test_a_loop_yields_the_latest_step_and_keeps_it_meanwhile(tmp_path):
    """Also when the step is deleted before the body of the loop is done."""
    run(compat, tmp_path / "run", save_interval_steps=4)
    with compat.CheckpointManager(tmp_path / "run") as manager:
        for step in compat.checkpoint_utils.checkpoints_iterator(tmp_path / "run", timeout=0):
            assert step == 8
            manager.delete(8)
            kept = tmp_path / "run" / "_SNAPSHOTS" / "8"
            assert int(tx.restore(kept, tx.open(kept).template())["step"]) == 8
    assert not kept.exists()


def test_a_loop_removes_the_snapshots_of_killed_ones_and_names_them(tmp_path, caplog):
    left = tmp_path / "run" / "_SNAPSHOTS" / "4"
    left.mkdir(parents=True)
    assert list(compat.checkpoint_utils.checkpoints_iterator(tmp_path / "run", timeout=0)) == []
    assert not left.exists()
    assert f"removing a snapshot that another loop made: {left}" in caplog.text


def test_only_process_0_removes_snapshots(tmp_path, monkeypatch):
    left = tmp_path / "run" / "_SNAPSHOTS" / "4"
    left.mkdir(parents=True)
    monkeypatch.setattr(checkpoint_utils, "process_index", lambda: 1)
    assert list(compat.checkpoint_utils.checkpoints_iterator(tmp_path / "run", timeout=0)) == []
    assert left.exists()
