"""Listing a directory of steps."""

import json
import math
import os

import pytest

from helpers import CORPUS, count_bytes, read_files
from run_directories import write_step
from templax._runs.steps import read_run
from templax.formats.orbax.step_names import Step, step_name
from templax.storage import Local, Memory

MANAGERS = sorted(case.name for case in CORPUS.glob("*-manager"))
UNFINISHED = "is the temporary directory of a save that never finished"


@pytest.fixture
def make_step(tmp_path):
    """Makes a step below `tmp_path`."""
    return lambda name, **options: write_step(tmp_path / name, **options)


@pytest.mark.parametrize("case", MANAGERS)
def test_runs_of_all_orbax_versions_are_listed(case):
    found = read_run(Local(CORPUS / case / "ckpt"))
    assert [d.step for d in found.steps] == [10, 20] == list(found.committed)
    assert found.leftovers == ()
    for directory in found.steps:
        path = CORPUS / case / "ckpt" / directory.key
        assert directory.url == str(path)
        assert directory.items == {"ema": "pytree", "meta": "json", "state": "pytree"}
        assert directory.nbytes == count_bytes(path)
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
def test_other_directories_are_not_runs(path):
    assert read_run(Local(CORPUS / path)) is None


def test_metrics_come_from_the_item_or_else_from_the_metadata(make_step, tmp_path):
    make_step("1", metrics='{"loss": NaN, "n": 3, "by": {"set": 0.5}}')
    make_step("2").joinpath("_CHECKPOINT_METADATA").write_text('{"metrics": {"loss": 0.25}}')
    make_step("3", metrics="[1]")
    make_step("4", metrics="{")
    by_step = {d.step: d.metrics for d in read_run(Local(tmp_path)).steps}
    assert math.isnan(by_step[1].pop("loss"))
    assert by_step == {1: {"n": 3, "by": {"set": 0.5}}, 2: {"loss": 0.25}, 3: {}, 4: {}}


def test_unfinished_saves_are_listed_with_the_reason(make_step, tmp_path):
    make_step("10")
    make_step("20", commit_timestamp_nsecs=None)
    make_step("30").joinpath("default.orbax-checkpoint-tmp").mkdir()
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
    assert [d.step for d in found.steps] == [10, 20, 30]
    assert [d.key.partition(".")[0] for d in found.remains] == ["40", "best"]


def test_an_invalid_commit_time_is_replaced_by_that_of_the_files(make_step, tmp_path):
    for number, claimed in enumerate([-1, 2**80, "soon", None]):
        path = make_step(str(number), commit_timestamp_nsecs=claimed)
        for below in [path, *path.rglob("*")]:
            os.utime(below, (1e9, 1e9 + number))
    assert [d.saved for d in read_run(Local(tmp_path)).steps] == [1e9 + n for n in range(4)]


def test_sizes_and_file_times_can_be_left_out(make_step, tmp_path):
    make_step("1")
    make_step("2", commit_timestamp_nsecs=None)
    assert [(d.nbytes, d.saved) for d in read_run(Local(tmp_path), sizes=False).steps] == [
        (None, 1e9),
        (None, None),
    ]


def test_a_source_without_times_gives_none():
    case = CORPUS / "orbax-0.4.4-manager" / "ckpt"
    found = read_run(Memory(read_files(case)))
    assert [(d.step, d.saved, d.nbytes) for d in found.steps] == [
        (n, None, count_bytes(case / str(n))) for n in (10, 20)
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
def test_a_new_step_is_named_like_the_existing_ones(names, name):
    numbers = [n.partition(".")[0].rpartition("_")[2] for n in names]
    found = [Step(int(n), key) for n, key in zip(numbers, names, strict=True)]
    assert step_name(123, found) == name
