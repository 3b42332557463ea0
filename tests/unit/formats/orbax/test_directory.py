"""Steps, items and other directories: which one is opened, and what is hinted otherwise."""

import json
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest

import templax as tx
from helpers import CORPUS, list_names
from opening import open_local, read_refusal
from templax.errors import NotFound, Uncommitted
from templax.formats.orbax.directory import list_items, list_steps
from templax.formats.orbax.step_names import Step
from templax.storage import Local

pytestmark = pytest.mark.usefixtures("own_event_loop")

MANAGER = CORPUS / "orbax-0.12.8-manager" / "ckpt"
TREE = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": 7}


def save_steps(path, steps=(10, 20), **options):
    with ocp.CheckpointManager(path, options=ocp.CheckpointManagerOptions(**options)) as manager:
        for step in steps:
            manager.save(step, args=ocp.args.StandardSave(TREE))


def test_the_only_pytree_item_of_a_step_is_opened(tmp_path):
    save_steps(tmp_path / "run")
    catalog = open_local(tmp_path / "run" / "20")
    assert catalog.url == str(tmp_path / "run" / "20" / "default")
    assert catalog.leaves["w"].shape == (2, 3)
    assert catalog.leaves["n"].kind == "scalar"
    assert catalog.metadata["step"] == 20
    assert catalog.metadata["item"] == "default"
    assert catalog.metadata["items"] == {"default": "pytree"}
    assert catalog.metadata["commit_timestamp_nsecs"] > 0
    assert json.dumps(dict(catalog.metadata))


def test_json_items_are_listed_and_not_counted(tmp_path):
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.save(
            3,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(TREE), config=ocp.args.JsonSave({"lr": 0.1})
            ),
        )
    catalog = open_local(tmp_path / "run" / "3")
    assert catalog.metadata["items"] == {"config": "json", "state": "pytree"}
    assert catalog.metadata["item"] == "state"
    assert list_items(Local(tmp_path / "run" / "3")) == {"config": "json", "state": "pytree"}


def test_nan_metrics_do_not_hide_a_step(tmp_path):
    options = ocp.CheckpointManagerOptions(best_fn=lambda m: m["loss"])
    with ocp.CheckpointManager(tmp_path / "run", options=options) as manager:
        metrics = {"loss": float("nan")}
        manager.save(1, args=ocp.args.StandardSave(TREE), metrics=metrics)
    catalog = open_local(tmp_path / "run" / "1")
    assert catalog.metadata["step"] == 1
    assert catalog.uncommitted is None


def test_an_item_saved_alone_is_opened_by_its_path(tmp_path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "alone", TREE)
    catalog = open_local(tmp_path / "alone")
    assert catalog.url == str(tmp_path / "alone")
    assert "step" not in catalog.metadata
    assert "item" not in catalog.metadata


def test_the_root_of_a_v1_checkpoint_opens_its_state():
    catalog = open_local(CORPUS / "orbax-0.12.8-v1" / "ckpt")
    assert catalog.url.endswith("/ckpt/state")
    assert catalog.metadata["use_zarr3"] is True


def test_items_of_a_step_are_opened_by_name():
    path = MANAGER / "10" / "ema"
    catalog = open_local(path)
    assert catalog.metadata["item"] == "ema"
    assert catalog.metadata["step"] == 10
    assert catalog.metadata["items"] == {"ema": "pytree", "meta": "json", "state": "pytree"}


def test_steps_with_a_prefix_and_a_fixed_length(tmp_path):
    save_steps(tmp_path / "run", (3, 20), step_prefix="ckpt", step_format_fixed_length=8)
    assert list_steps(Local(tmp_path / "run")) == (
        Step(3, "ckpt_00000003"),
        Step(20, "ckpt_00000020"),
    )
    path = tmp_path / "run"
    assert read_refusal(path) == (
        f'{path} holds 2 steps; the latest committed step is 20; hint: open "{path}/ckpt_00000020"'
    )
    assert open_local(path / "ckpt_00000003").metadata["step"] == 3


def test_steps_sort_by_number_and_leave_other_directories_out(tmp_path):
    save_steps(tmp_path, (9, 20, 100))
    (tmp_path / "7").mkdir()
    (tmp_path / "logs").mkdir()
    assert [step.step for step in list_steps(Local(tmp_path))] == [9, 20, 100]


def test_unfinished_steps_are_listed_but_never_hinted(tmp_path):
    save_steps(tmp_path / "run")
    run = tmp_path / "run"
    shutil.copytree(run / "20", run / "30.orbax-checkpoint-tmp-1795")
    shutil.copytree(run / "20", run / "40")
    (run / "40" / "commit_success.txt").unlink(missing_ok=True)
    metadata = run / "40" / "_CHECKPOINT_METADATA"
    metadata.write_text(
        json.dumps(json.loads(metadata.read_text()) | {"commit_timestamp_nsecs": None})
    )
    assert [(s.key, s.committed) for s in list_steps(Local(run))] == [
        ("10", True),
        ("20", True),
        ("30.orbax-checkpoint-tmp-1795", False),
        ("40", False),
    ]
    assert read_refusal(run) == (
        f'{run} holds 4 steps; the latest committed step is 20; hint: open "{run}/20"'
    )
    assert "no commit time" in read_refusal(run / "40", Uncommitted)
    assert "no commit time" in read_refusal(run / "40" / "default", Uncommitted)
    temporary = run / "30.orbax-checkpoint-tmp-1795"
    assert "temporary directory of a save that never finished" in read_refusal(
        temporary, Uncommitted
    )
    assert len(open_local(temporary, uncommitted="allow").entries) == 2
    assert list_names(run)[:2] == ["10", "20"]


def test_a_directory_of_only_unfinished_steps_gives_no_hint(tmp_path):
    save_steps(tmp_path / "run", (10,))
    (tmp_path / "run" / "10").rename(tmp_path / "run" / "10.orbax-checkpoint-tmp-0")
    assert read_refusal(tmp_path / "run") == (
        f"{tmp_path / 'run'} holds 1 step, none of which was committed"
    )


def test_several_items_are_listed_with_their_paths():
    path = MANAGER
    assert read_refusal(path / "10") == (
        f"{path}/10 holds several items: `ema` (pytree), `meta` (json), `state` (pytree); "
        f'hint: open "{path}/10/ema" or "{path}/10/state"'
    )
    assert read_refusal(path) == (
        f"{path} holds 2 steps; the latest committed step is 20; "
        f'hint: open "{path}/20/ema" or "{path}/20/state"'
    )


def test_an_item_that_cannot_be_opened_is_not_hinted(case):
    path = case("orbax-0.12.8-manager")
    (path / "20" / "ema" / "manifest.ocdbt").write_bytes(b"")
    assert read_refusal(path / "20").endswith(f'; hint: open "{path}/20/state"')


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("orbax-0.12.8-default", "d"),
        ("orbax-0.12.8-default", "ocdbt.process_0"),
        ("orbax-0.12.8-default", "ocdbt.process_0/d"),
        ("orbax-0.12.8-default", "array_metadatas"),
        ("orbax-0.12.8-default", "_METADATA"),
        ("orbax-0.12.8-default", "ocdbt.process_0/manifest.ocdbt"),
        ("orbax-0.12.8-noocdbt", "state.params.big"),
        ("orbax-0.12.8-noocdbt", "state.params.big/0.0"),
    ],
)
def test_a_part_of_a_checkpoint_names_the_whole(name, part):
    path = CORPUS / name / "ckpt"
    assert read_refusal(path / part) == (
        f'{path / part} is a part of the checkpoint {path}; hint: open "{path}"'
    )


def test_a_json_item_is_not_a_pytree():
    path = MANAGER / "10" / "meta"
    assert read_refusal(path) == (
        f'{path} is a JSON item, not a pytree; hint: templax.read_json("{path}") reads it'
    )
    assert tx.read_json(path) == {"step": 10, "note": "x"}


def test_a_missing_path_is_not_found(tmp_path):
    assert read_refusal(tmp_path / "x" / "y", NotFound) == f"There is nothing at {tmp_path}/x/y"


def test_a_missing_step_lists_the_committed_steps():
    path = MANAGER
    for missing in ("30", "30/state"):
        assert read_refusal(path / missing, NotFound) == (
            f"There is nothing at {path}/{missing}; committed steps of {path}: 10, 20; "
            f'hint: open "{path}/20/ema" or "{path}/20/state"'
        )


def test_a_missing_path_suggests_a_similar_one_that_can_be_opened(case, tmp_path):
    path = case("orbax-0.12.8-default", to="model_ema")
    case("orbax-0.12.8-default", to="other")
    assert read_refusal(tmp_path / "model-ema", NotFound).endswith(f'; hint: open "{path}"')
    (path / "manifest.ocdbt").unlink()
    assert str(path) not in read_refusal(tmp_path / "model-ema", NotFound)


def test_a_missing_path_mentions_a_save_that_was_not_committed():
    path = CORPUS / "orbax-0.12.8-crash_merge" / "ckpt"
    assert read_refusal(path, NotFound) == (
        f"There is nothing at {path}; a save of it never committed: "
        f"`ckpt.orbax-checkpoint-tmp` is beside it"
    )


def test_a_directory_of_named_checkpoints_lists_them(case, tmp_path):
    first, second = case("orbax-0.12.8-default", to="a"), case("orbax-0.12.8-noocdbt", to="b")
    assert read_refusal(tmp_path) == (
        f"{tmp_path} holds several items: `a` (pytree), `b` (pytree); "
        f'hint: open "{first}" or "{second}"'
    )


def test_a_directory_of_runs_lists_the_checkpoints_below(case, tmp_path):
    manager = case("orbax-0.12.8-manager", to="runs/a")
    case("orbax-0.6.4-manager", to="runs/b")
    shutil.rmtree(tmp_path / "runs" / "b" / "20" / "state")
    assert read_refusal(tmp_path / "runs") == (
        f"Expected a checkpoint that templax reads at {tmp_path}/runs, got a directory that holds "
        f'checkpoints; hint: open "{manager}/20/ema" or "{manager}/20/state" or '
        f'"{tmp_path}/runs/b/20"'
    )


def test_a_step_with_only_json_has_no_pytree(case):
    path = case("orbax-0.12.8-manager")
    for item in ("ema", "state"):
        shutil.rmtree(path / "20" / item)
    assert read_refusal(path / "20") == (
        f"{path}/20 holds no pytree item, only `meta` (json); "
        f'hint: templax.read_json("{path}/20/meta") reads it'
    )


def test_an_item_with_a_number_as_name_is_a_step(case):
    assert open_local(case("orbax-0.12.8-default", to="1000")).metadata["step"] == 1000


def test_a_directory_that_the_step_does_not_list_is_not_an_item(case, tmp_path):
    """Other directories in a v1 step do not stop it from being opened."""
    path = case("orbax-0.12.8-v1")
    (path / "dummy").mkdir()
    shutil.copy(path / "state" / "_METADATA", path / "dummy" / "_METADATA")
    assert open_local(path).url == str(path / "state")


def test_the_current_directory_is_resolved_to_its_name(tmp_path, monkeypatch):
    """`templax ls .` in a step directory reports the step."""
    save_steps(tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run" / "20")
    assert open_local(".").metadata["step"] == 20
    monkeypatch.chdir("default")
    assert open_local("..").metadata["step"] == 20


def test_arrays_of_nested_checkpoints_are_not_leaves(case, tmp_path):
    """A bare array in a directory does not turn everything below into one checkpoint."""
    path = case("orbax-0.12.8-noocdbt", "runs/exp/ckpt")
    bare = shutil.copytree(path / "state.params.big", tmp_path / "runs" / "bare")
    assert read_refusal(tmp_path / "runs").endswith(
        f'holds arrays, and other checkpoints in `exp`; hint: open "{path.parent}" or "{bare}"'
    )
