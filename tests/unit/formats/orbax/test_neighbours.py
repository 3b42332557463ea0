"""A directory with more than one checkpoint, and a path beside others: all are named, none is
opened by itself.
"""

import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

import templax as tx
from helpers import CORPUS, run_cli
from opening import open_local, read_refusal
from templax.errors import NotFound
from templax.formats.orbax.directory import list_steps
from templax.formats.orbax.step_names import step_name, step_prefix
from templax.storage import Local

DEFAULT = "orbax-0.12.8-default"


def follow(message):
    """Opens every path that the hint of a message names; returns what was opened."""
    _, _, hint = message.partition("; hint: open ")
    return [tx.open(path.strip('"')).url for path in hint.split(" or ")] if hint else []


# --- one readable child among others


@pytest.mark.parametrize("below", ["other/a", "other/deep/a", "other/run/10"])
def test_a_checkpoint_beside_deeper_ones_is_not_opened_by_itself(case, tmp_path, below):
    first, second = case(DEFAULT, to="all/first"), case(DEFAULT, to=f"all/{below}")
    message = read_refusal(tmp_path / "all")
    assert message.startswith(
        f"{tmp_path}/all holds several checkpoints, in `first`, `other`; hint"
    )
    assert follow(message) == [str(first), str(second)]


def test_a_checkpoint_beside_two_directories_of_many_lists_some_of_them(case, tmp_path):
    case(DEFAULT, to="all/first")
    for directory in ("x", "y"):
        for name in ("a", "b", "c", "d", "e"):
            case(DEFAULT, to=f"all/{directory}/{name}")
    message = read_refusal(tmp_path / "all")
    assert "holds several checkpoints, in `first`, `x`, `y`" in message
    assert len(follow(message)) == 6


def test_a_checkpoint_beside_a_run_is_not_opened_by_itself(case, tmp_path):
    first, run = case(DEFAULT, to="all/first"), case("orbax-0.12.8-manager", to="all/run")
    message = read_refusal(tmp_path / "all")
    assert follow(message) == [str(first), f"{run}/20/ema", f"{run}/20/state"]


def test_others_that_cannot_be_opened_are_named_but_not_hinted(case, tmp_path):
    first, other = case(DEFAULT, to="all/first"), case(DEFAULT, to="all/other/broken")
    (other / "manifest.ocdbt").unlink()
    save_file({"w": np.zeros(3, np.float32)}, tmp_path / "all" / "model.safetensors")
    message = read_refusal(tmp_path / "all")
    assert "in `first`, `other`, `model.safetensors`; hint" in message
    assert follow(message) == [str(first)]


def test_a_checkpoint_beside_notes_is_opened(case, tmp_path):
    first = case(DEFAULT, to="all/first")
    (tmp_path / "all" / "logs" / "events").mkdir(parents=True)
    (tmp_path / "all" / "logs" / "events" / "0").write_text("x")
    (tmp_path / "all" / "config.json").write_text("{}")
    assert open_local(tmp_path / "all").url == str(first)


def test_what_was_put_into_a_step_later_does_not_keep_it_from_being_opened(case, tmp_path):
    """The step's own list of its items decides."""
    path = case("orbax-0.12.8-v1")
    shutil.copytree(CORPUS / DEFAULT / "ckpt", path / "notes" / "copy")
    assert open_local(path).url == str(path / "state")


# --- names with a number


@pytest.mark.parametrize(
    "pattern", ["epoch-{}", "epoch_{}", "epoch{}", "step{}", "checkpoint-{}", "a-b_{:04}", "{}"]
)
def test_directories_named_by_a_number_are_steps_in_its_order(case, tmp_path, pattern):
    for number in (12, 1, 100, 10):
        case(DEFAULT, to=f"run/{pattern.format(number)}")
    run = tmp_path / "run"
    assert [step.step for step in list_steps(Local(run))] == [1, 10, 12, 100]
    newest = run / pattern.format(100)
    assert read_refusal(run) == (
        f'{run} holds 4 steps; the latest committed step is 100; hint: open "{newest}"'
    )
    assert "latest committed is 100" in run_cli("ls", run).output
    assert "latest committed is 100" in run_cli("steps", run).output
    assert step_name(101, list_steps(Local(run))) == pattern.format(101)


def test_prefixes_end_where_the_number_begins():
    assert [step_prefix(key) for key in ("ckpt_7", "epoch-12", "run-2_3", "x9", "7", "epoch3")] == [
        "ckpt_", "epoch-", "run-2_", "", "", "epoch",
    ]  # fmt: skip


def test_names_with_several_prefixes_are_several_checkpoints(case, tmp_path):
    names = ["actor_catch_4", "actor_circle_3", "actor_surround_5"]
    paths = [str(case(DEFAULT, to=f"all/{name}")) for name in names]
    message = read_refusal(tmp_path / "all")
    assert message.startswith(
        f"{tmp_path}/all holds several checkpoints: `actor_circle_3`, `actor_catch_4`, "
        "`actor_surround_5`; hint: open "
    )
    assert sorted(follow(message)) == paths


def test_of_many_names_without_a_common_pattern_the_last_is_named_too(case, tmp_path):
    for number in (9, 10, 11, 0, 1, 2, 3, 4):
        case(DEFAULT, to=f"all/v{number}.best")
    message = read_refusal(tmp_path / "all")
    assert message.startswith(
        f"{tmp_path}/all holds several items: `v0.best` (pytree), `v1.best` (pytree), "
        "`v2.best` (pytree), `v3.best` (pytree), 2 more, `v10.best` (pytree), `v11.best` (pytree)"
    )
    assert follow(message)[-1] == f"{tmp_path}/all/v11.best"


# --- missing paths


def test_an_unrelated_checkpoint_is_not_hinted_at(case, tmp_path):
    case(DEFAULT, to="Q/vit_16/params")
    for path in ("Q/resnet/best", "Q/resnet", "Q/vit"):
        message = read_refusal(tmp_path / path, NotFound)
        assert message.startswith(f"There is nothing at {tmp_path}/{path}")
        assert "hint" not in message
        assert "committed steps" not in message


@pytest.mark.parametrize("holds", ["a", "10", "epoch-3"])
def test_a_lone_checkpoint_beside_a_missing_path_is_named_but_not_hinted(case, tmp_path, holds):
    case(DEFAULT, to=f"all/{holds}")
    message = read_refusal(tmp_path / "all" / "resnet" / "best", NotFound)
    assert "hint" not in message


@pytest.mark.parametrize(
    ("there", "missing", "hinted"),
    [
        ("vit_16/params", "vit-16/params", "vit_16/params"),
        ("vit_16/params", "Vit_16/params", "vit_16/params"),
        ("experiment/best", "experimnet/best", "experiment/best"),
        ("experiment/best", "experiment/bset", "experiment/best"),
        ("experiment/run/10", "experimnt", "experiment/run/10"),
        ("run/default", "run/defualt", "run/default"),
    ],
)
def test_a_mistyped_path_hints_at_the_similar_one(case, tmp_path, there, missing, hinted):
    case(DEFAULT, to=there)
    case(DEFAULT, to="unrelated")
    message = read_refusal(tmp_path / missing, NotFound)
    assert follow(message) == [str(tmp_path / hinted)]


def test_a_mistyped_file_hints_at_the_similar_one(case, tmp_path):
    case(DEFAULT, to="ckpt")
    path = tmp_path / "model.safetensors"
    save_file({"w": np.zeros(3, np.float32)}, path)
    assert follow(read_refusal(tmp_path / "modle.safetensors", NotFound)) == [str(path)]


def test_a_path_into_a_checkpoint_hints_at_the_checkpoint():
    path = CORPUS / DEFAULT / "ckpt"
    assert follow(read_refusal(path / "params", NotFound)) == [str(path)]


# --- one readable file


def test_a_directory_with_one_safetensors_file_is_opened(tmp_path):
    directory = tmp_path / "hub" / "model"
    directory.mkdir(parents=True)
    path = directory / "model.safetensors"
    save_file({"w": np.zeros(3, np.float32)}, path)
    (directory / "config.json").write_text("{}")
    assert list(open_local(directory).leaves) == ["w"]
    assert follow(read_refusal(tmp_path / "hub")) == [str(directory)]


def test_a_directory_with_several_readable_files_names_them(tmp_path):
    paths = [tmp_path / f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for path in paths:
        save_file({"w": np.zeros(3, np.float32)}, path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    paths[0].with_name("cut.safetensors").write_bytes(paths[0].read_bytes()[:-1])
    assert follow(read_refusal(tmp_path, tx.Corrupted)) == [str(path) for path in paths]


@pytest.mark.parametrize("target", ["../elsewhere", "_CHECKPOINT_METADATA"])
def test_a_link_beside_a_checkpoint_does_not_keep_it_from_being_read(tmp_path, target):
    (tmp_path / "elsewhere").write_text("{}")
    tx.save(tmp_path / "all" / "ckpt", {"a": np.ones(2, np.float32)})
    (tmp_path / "all" / "_CHECKPOINT_METADATA").symlink_to(target)
    assert list(tx.open(tmp_path / "all" / "ckpt").leaves) == ["a"]
