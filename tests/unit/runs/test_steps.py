"""What a directory of steps is told to hold."""

import json
import math
import os
import shutil

import pytest

from helpers import CORPUS
from templax._runs.steps import read_run
from templax.formats.orbax.directory import Step, step_name
from templax.storage import Local, Memory

MANAGERS = sorted(case.name for case in CORPUS.glob("*-manager"))
UNFINISHED = "is the temporary directory of a save that never finished"


def files(directory):
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


@pytest.fixture
def step(tmp_path):
    """Makes a step below `tmp_path`: a real item, and what is said of it."""

    def make(name, *, metrics=None, **metadata):
        path = tmp_path / name
        path.mkdir()
        shutil.copytree(CORPUS / "orbax-0.12.8-default/ckpt", path / "default")
        about = {"item_handlers": {"default": "x"}, "commit_timestamp_nsecs": 10**18, **metadata}
        (path / "_CHECKPOINT_METADATA").write_text(json.dumps(about))
        if metrics is not None:
            (path / "metrics").mkdir()
            (path / "metrics" / "metrics").write_text(metrics)
        return path

    return make


@pytest.mark.parametrize("case", MANAGERS)
def test_a_run_of_any_generation_is_listed(case):
    found = read_run(Local(CORPUS / case / "ckpt"))
    assert [d.step for d in found.steps] == [10, 20] == list(found.committed)
    assert found.leftovers == ()
    for directory in found.steps:
        path = CORPUS / case / "ckpt" / directory.key
        assert directory.url == str(path)
        assert directory.items == {"ema": "pytree", "meta": "json", "state": "pytree"}
        assert directory.nbytes == files(path)
        assert directory.metrics == {}
        about = path / "_CHECKPOINT_METADATA"
        if about.exists():
            assert directory.saved == json.loads(about.read_text())["commit_timestamp_nsecs"] / 1e9
        else:
            newest = max(p.stat().st_mtime for p in path.rglob("*") if p.is_file())
            assert directory.saved >= newest


@pytest.mark.parametrize(
    "path",
    ["orbax-0.12.8-default/ckpt", "orbax-0.12.8-manager/ckpt/10", "safetensors-plain", ".", "none"],
)
def test_what_is_no_directory_of_steps_is_none(path):
    assert read_run(Local(CORPUS / path)) is None


def test_metrics_are_those_of_the_item_or_else_of_the_metadata(step, tmp_path):
    step("1", metrics='{"loss": NaN, "n": 3, "by": {"set": 0.5}}')
    step("2").joinpath("_CHECKPOINT_METADATA").write_text('{"metrics": {"loss": 0.25}}')
    step("3", metrics="[1]")
    step("4", metrics="{")
    by_step = {d.step: d.metrics for d in read_run(Local(tmp_path)).steps}
    assert math.isnan(by_step[1].pop("loss"))
    assert by_step == {1: {"n": 3, "by": {"set": 0.5}}, 2: {"loss": 0.25}, 3: {}, 4: {}}


def test_unfinished_saves_are_told_apart_and_why(step, tmp_path):
    step("10")
    step("20", commit_timestamp_nsecs=None)
    step("30").joinpath("default.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "40.orbax-checkpoint-tmp-templax-0a").mkdir()
    (tmp_path / "best.orbax-checkpoint-tmp-7").mkdir()
    (tmp_path / "best.orbax-checkpoint-tmp-7" / "data").write_bytes(b"12345")
    (tmp_path / "logs").mkdir()
    found = read_run(Local(tmp_path))
    assert list(found.committed) == [10]
    assert {d.key: (d.step, d.problem) for d in found.leftovers} == {
        "20": (
            20,
            "`_CHECKPOINT_METADATA` has no commit time and there is no `commit_success.txt`",
        ),
        "30": (30, f"`default.orbax-checkpoint-tmp` {UNFINISHED}"),
        "40.orbax-checkpoint-tmp-templax-0a": (
            40,
            f"`40.orbax-checkpoint-tmp-templax-0a` {UNFINISHED}",
        ),
        "best.orbax-checkpoint-tmp-7": (None, f"`best.orbax-checkpoint-tmp-7` {UNFINISHED}"),
    }
    assert found.leftovers[-1].nbytes == 5
    assert [d.step for d in found.steps] == [10, 20, 30, 40]


def test_a_time_that_means_nothing_gives_way_to_that_of_the_files(step, tmp_path):
    for number, claimed in enumerate([-1, 2**80, "soon", None]):
        path = step(str(number), commit_timestamp_nsecs=claimed)
        for below in [path, *path.rglob("*")]:
            os.utime(below, (1e9, 1e9 + number))
    assert [d.saved for d in read_run(Local(tmp_path)).steps] == [1e9 + n for n in range(4)]


def test_without_sizes_no_file_is_looked_at(step, tmp_path):
    step("1")
    step("2", commit_timestamp_nsecs=None)
    assert [(d.nbytes, d.saved) for d in read_run(Local(tmp_path), sizes=False).steps] == [
        (None, 1e9),
        (None, None),
    ]


def test_a_source_without_times_has_none():
    case = CORPUS / "orbax-0.4.4-manager" / "ckpt"
    held = {str(p.relative_to(case)): p.read_bytes() for p in case.rglob("*") if p.is_file()}
    found = read_run(Memory(held))
    assert [(d.step, d.saved, d.nbytes) for d in found.steps] == [
        (n, None, files(case / str(n))) for n in (10, 20)
    ]


@pytest.mark.parametrize(
    ("names", "name"),
    [
        ([], "123"),
        (["10", "20"], "123"),
        (["0"], "123"),
        (["00000010", "00000020"], "00000123"),
        (["010", "1000"], "123"),
        (["ckpt_8", "ckpt_9"], "ckpt_123"),
        (["ckpt_00000008"], "ckpt_00000123"),
        (["my_run_0009"], "my_run_0123"),
        (["0008", "ckpt_9"], "ckpt_123"),
        (["0008", "0009", "eval_100"], "0123"),
        (["9", "0010.orbax-checkpoint-tmp-1"], "123"),
    ],
)
def test_a_new_step_is_named_as_those_that_are_there(names, name):
    numbers = [n.partition(".")[0].rpartition("_")[2] for n in names]
    found = [Step(int(n), key) for n, key in zip(numbers, names, strict=True)]
    assert step_name(123, found) == name
