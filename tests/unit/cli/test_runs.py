"""`templax steps` and `templax prune`: output, JSON, exit codes and what is deleted."""

import json
import math
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

import templax as tx
from helpers import CORPUS, count_bytes, list_names, run_cli
from run_directories import write_step
from templax._core.text import format_size
from templax._runs.locks import LOCK, hold_for_reading
from templax.storage.leftovers import temporary_path
from templax.storage.marks import TEMPORARY
from templax.storage.staging import Staging

LOST = "is the temporary directory of a save that never finished"


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """Makes steps in the directory `run`, committed an hour ago; works in its parent."""
    monkeypatch.chdir(tmp_path)

    def make(**metrics):
        for name, found in metrics.items():
            write_step(
                tmp_path / "run" / name.removeprefix("s"),
                metrics=json.dumps(found),
                item_handlers={},
                commit_timestamp_nsecs=int((time.time() - 3700) * 1e9),
            )
        return tmp_path / "run"

    return make


def test_steps_shows_sizes_ages_metrics_and_leftovers(make_run):
    path = make_run(s9={"loss": 0.123456789, "n": 3}, s10={"loss": math.nan})
    stale = path / "11.orbax-checkpoint-tmp-templax-0a"
    stale.mkdir()
    (stale / "data").write_bytes(bytes(2048))
    result = run_cli("steps", "run")
    assert (result.exit_code, result.stderr) == (0, "")
    nine, ten = (format_size(count_bytes(path / name)) for name in ("9", "10"))
    total = format_size(count_bytes(path / "9") + count_bytes(path / "10"))
    assert result.stdout == (
        f"""\
run
  format   orbax, recognised by the step directory `10`
  total    2 steps, {total}, the latest committed is 10
  besides  1 directory of saves that never committed, 2.0 KiB

 9  committed  {nine}  1 h ago  loss=0.123457, n=3
10  committed  {ten}  1 h ago  loss=nan

Left by saves that never finished, or are in progress:

11.orbax-checkpoint-tmp-templax-0a  2.0 KiB  0 s ago
"""
    )


def test_no_row_of_a_run_is_wider_than_a_terminal_after_a_crash(make_run):
    path = make_run(s1={"loss": 0.5}, s1000000={"loss": 0.25})
    for step in ("2000000", "best"):
        Path(temporary_path(str(path / step))).mkdir()
    for command in (("steps", "run"), ("ls", "run"), ("prune", "run", "--keep", "1")):
        result = run_cli(*command)
        rows = [line for line in result.stdout.splitlines() if TEMPORARY not in line]
        assert max(map(len, rows)) <= 80
    listed = run_cli("steps", "run").stdout.splitlines()
    assert max(map(len, listed)) <= 80
    assert sum(TEMPORARY in line for line in listed) == 2


def test_a_run_with_nothing_but_remains_is_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(temporary_path("run/5")).mkdir(parents=True)
    result = run_cli("steps", "run")
    assert result.exit_code == 0
    assert "  total    0 steps, none was committed\n" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("5.orbax-checkpoint-tmp-")
    assert run_cli("ls", "run").exit_code == 0
    assert run_cli("prune", "run", "--leftovers").exit_code == 0


EMPTY = {
    "nothing": lambda run: None,
    "a lock": lambda run: (run / LOCK).write_text("{}"),
    "logs": lambda run: (run / "train.log").write_text("begun"),
    "a directory of logs": lambda run: (
        (run / "tb").mkdir(),
        (run / "tb" / "events.out.tfevents.1").touch(),
    ),
}


@pytest.mark.parametrize("case", EMPTY)
def test_a_run_without_steps_is_no_error(tmp_path, monkeypatch, case):
    """As for a manager, which says so of the same directories."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    EMPTY[case](run)
    for command in (("steps",), ("prune", "--keep", "1"), ("prune", "--leftovers", "--yes")):
        result = run_cli(*command, "run")
        assert (result.exit_code, result.stderr) == (0, "")
        assert "0 steps, none was committed\n" in result.stdout
        found = json.loads(run_cli(*command, "run", "--json").stdout)
        assert (found["latest"], found["steps"], found["others"]) == (None, [], [])
    names = {name for name in list_names(run) if name != LOCK}
    steps = run_cli("steps", "run").stdout
    assert all(f"nothing that looks like a step: `{name}" in steps for name in names)
    assert tx.Manager(run).steps() == []


def test_a_run_whose_only_contents_are_a_lock_or_remains_is_known_by_ls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    (run / LOCK).touch()
    assert f"recognised by the lock file `{LOCK}`" in run_cli("ls", "run").stdout
    (run / "best.orbax-checkpoint-tmp").mkdir()
    for command in ("ls", "steps"):
        result = run_cli(command, "run")
        evidence = "recognised by the temporary directory `best.orbax-checkpoint-tmp`"
        assert evidence in result.stdout
        assert "1 directory of saves that never committed" in result.stdout
    (run / LOCK).unlink()
    (run / "best.orbax-checkpoint-tmp").rmdir()
    assert run_cli("ls", "run").exit_code == 2  # nothing says that it is a run


@pytest.mark.parametrize("name", ["checkpoint_10", "model.eqx", "10/default/model.eqx", "7/"])
def test_what_looks_like_a_step_is_no_run_without_steps(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    if name.endswith("/"):
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(b"arrays")
    for command in (("steps",), ("prune", "--keep", "1", "--yes")):
        result = run_cli(*command, tmp_path)
        assert (result.exit_code, result.stdout) == (2, "")


def test_steps_json_has_the_documented_fields(make_run):
    path = make_run(s9={"loss": 0.5, "by": {"a": math.nan}, "all": [math.inf, 1]})
    (path / "best.orbax-checkpoint-tmp").mkdir()
    (path / "10.orbax-checkpoint-tmp-7").mkdir()
    result = run_cli("steps", "--json", "run")
    assert result.exit_code == 0

    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads(result.output, parse_constant=refuse)
    ten = found["others"].pop(0)
    assert (ten["step"], ten["committed"], ten["url"]) == (
        10,
        False,
        "run/10.orbax-checkpoint-tmp-7",
    )
    other = found["others"][0]
    assert time.time() - 60 < other.pop("saved") <= time.time()
    saved = found["steps"][0].pop("saved")
    assert time.time() - 4000 < saved < time.time() - 3600
    assert found == {
        "schema": 1,
        "url": "run",
        "format": "orbax",
        "evidence": "the step directory `9`",
        "latest": 9,
        "steps": [
            {
                "step": 9,
                "url": "run/9",
                "committed": True,
                "problem": None,
                "items": {"default": "pytree", "metrics": "json"},
                "metrics": {"loss": 0.5, "by": {"a": None}, "all": [None, 1]},
                "nbytes": count_bytes(path / "9"),
            }
        ],
        "others": [
            {
                "step": None,
                "url": "run/best.orbax-checkpoint-tmp",
                "committed": False,
                "problem": f"`best.orbax-checkpoint-tmp` {LOST}",
                "items": {},
                "metrics": {},
                "nbytes": 0,
            }
        ],
    }


def test_ls_json_of_a_run_is_that_of_steps_without_sizes(make_run):
    make_run(s9={"loss": 0.5}, s10={"loss": 0.25})
    listed = json.loads(run_cli("ls", "--json", "run").output)
    counted = json.loads(run_cli("steps", "--json", "run").output)
    assert [step.pop("nbytes") for step in listed["steps"]] == [None, None]
    assert all(step.pop("nbytes") > 2**15 for step in counted["steps"])
    assert listed == counted


def test_steps_of_something_else_is_refused_by_what_it_is():
    checkpoint = CORPUS / "orbax-0.12.8-default" / "ckpt"
    result = run_cli("steps", checkpoint)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"error: Expected a directory of steps, got the checkpoint {checkpoint};"
        f" hint: templax ls {checkpoint}\n"
    )
    model = CORPUS / "safetensors-plain"  # a directory with one file
    result = run_cli("steps", model)
    assert result.exit_code == 2
    assert f"Expected a directory of steps, got the checkpoint {model};" in result.stderr
    assert run_cli("steps", CORPUS / "nothing").exit_code == 2


def read_fates(result):
    """The table of `prune`: name -> "goes", or ("stays", reason)."""
    rows = re.findall(r"^ *(\S+)  (stays|goes)  .*? ago *(.*)$", result.stdout, re.MULTILINE)
    return {key: (state, why) if state == "stays" else state for key, state, why in rows}


STEPS = {f"s{n}": {"loss": loss} for n, loss in enumerate([5, 1, 4, math.nan, 2, 3])}


def test_prune_without_yes_deletes_nothing(make_run):
    path = make_run(**STEPS)
    result = run_cli(
        *("prune", "run", "--keep", "1", "--keep-every", "3"),
        *("--keep-best", "1", "--metric", "loss"),
    )
    assert (result.exit_code, result.stderr) == (0, "")
    assert read_fates(result) == {
        "0": ("stays", "every 3"),
        "1": ("stays", "best 1 by loss"),
        "2": "goes",
        "3": ("stays", "every 3"),
        "4": "goes",
        "5": ("stays", "the latest, last 1"),
    }
    going = format_size(count_bytes(path / "2") + count_bytes(path / "4"))
    assert result.stdout.splitlines()[-1] == (
        f"2 directories ({going}) would be deleted; --yes does it"
    )
    assert set(list_names(path)) == set("012345")


def test_prune_json_has_the_fields_of_steps_and_the_fate_of_each(make_run):
    path = make_run(**STEPS)
    dead = Path(temporary_path(str(path / "6")))
    dead.mkdir()
    listed = json.loads(run_cli("steps", "run", "--json").stdout)
    going = count_bytes(path / "0") + count_bytes(path / "3")
    rules = ("--keep", "2", "--keep-best", "3", "--metric", "loss")
    result = run_cli("prune", "run", *rules, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    planned = json.loads(result.stdout)
    done = json.loads(run_cli("prune", "run", *rules, "--json", "--yes").stdout)
    for found, dry in ((planned, True), (done, False)):
        fates = {each["url"]: each.pop("stays") for each in found["steps"] + found["others"]}
        assert fates == {
            "run/0": None,
            "run/1": "best 3 by loss",
            "run/2": None,
            "run/3": None,
            "run/4": "last 2, best 3 by loss",
            "run/5": "the latest, last 2, best 3 by loss",
            str(dead.relative_to(path.parent)): "left by a dead save; --leftovers deletes it",
        }
        for each in found["steps"] + found["others"]:
            assert each.pop("deleted") == (fates[each["url"]] is None and not dry)
        assert found.pop("freed_nbytes") == going + listed["steps"][2]["nbytes"]
        assert (found.pop("ok"), found.pop("dry_run")) == (True, dry)
        assert found == listed
    assert set(list_names(path)) == {"1", "4", "5", dead.name}


def test_prune_json_says_what_could_not_be_deleted(make_run, monkeypatch):
    path = make_run(**STEPS)
    real = os.rename

    def refuse(old, new, **options):
        if os.path.basename(os.fspath(old)) == "2":
            raise PermissionError(13, os.strerror(13), os.fspath(old))
        return real(old, new, **options)

    monkeypatch.setattr(os, "rename", refuse)
    with hold_for_reading(str(path / "1")):
        result = run_cli("prune", "run", "--keep", "2", "--yes", "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["ok"]) == (2, False)
    fates = {each["step"]: (each["stays"], each["deleted"]) for each in found["steps"]}
    assert [step for step, (_, deleted) in fates.items() if deleted] == [0, 3]
    assert fates[1] == ("is being read", False)
    assert fates[2][0].startswith("could not be deleted: can't remove")
    assert result.stderr.startswith("error: can't remove")
    result = run_cli("prune", "run", "--keep", "2", "--yes")
    assert result.exit_code == 2
    assert set(list_names(path)) == set("245")  # what comes after an error is deleted, too
    assert "2 could not be deleted: " in result.stdout
    assert (
        json.loads(run_cli("prune", "run", "--keep-best", "1", "--metric", "x", "--json").stdout)[
            "error"
        ]["type"]
        == "UsageError"
    )


def test_prune_keeps_multiples_of_several_numbers(make_run):
    path = make_run(**{f"s{n}": {} for n in (6, 7, 10, 11)})
    run_cli("prune", "run", "--keep-every", "3", "--keep-every", "5", "--yes")
    assert set(list_names(path)) == {"6", "10", "11"}


def test_steps_are_named_by_a_word_and_sorted_by_number(make_run):
    path = make_run(s1={})
    for number in (1, 2, 10, 12):
        shutil.copytree(path / "1", path.parent / "epochs" / f"epoch-{number}")
    for command in ("ls", "steps"):
        result = run_cli(command, "epochs")
        assert "4 steps" in result.stdout
        assert "the latest committed is 12" in result.stdout
        keys = re.findall(r"^ *(epoch-\d+)  ", result.stdout, re.MULTILINE)
        assert keys == ["epoch-1", "epoch-2", "epoch-10", "epoch-12"]


def test_prune_with_yes_deletes_once(make_run):
    path = make_run(**STEPS)
    command = ("prune", "run", "--keep-best", "2", "--metric", "loss", "--mode", "max", "--yes")
    result = run_cli(*command)
    assert (result.exit_code, result.stderr) == (0, "")
    assert set(list_names(path)) == set("025")
    assert result.stdout.splitlines()[-1].startswith("3 directories (")
    result = run_cli(*command)
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "nothing deleted")
    assert set(list_names(path)) == set("025")


def test_prune_keeps_a_step_that_is_being_read(make_run):
    path = make_run(**STEPS)
    with hold_for_reading(str(path / "1")) as there:
        assert there
        result = run_cli("prune", "run", "--keep", "4", "--yes")
    assert result.exit_code == 1
    assert "1 is being read, and stays" in result.stdout.splitlines()
    assert result.stdout.splitlines()[-1].startswith("1 directory (")
    assert set(list_names(path)) == set("12345")
    assert run_cli("prune", "run", "--keep", "4", "--yes").exit_code == 0
    assert set(list_names(path)) == set("2345")


def set_age(path, seconds):
    for below in [path, *path.rglob("*")]:
        os.utime(below, (time.time() - seconds,) * 2)


def test_prune_deletes_leftovers_of_dead_saves_if_asked(make_run):
    path = make_run(s1={}, s2={}, s3={})
    (path / "3" / "_CHECKPOINT_METADATA").write_text('{"commit_timestamp_nsecs": null}')
    for other in ("4.orbax-checkpoint-tmp", "5.orbax-checkpoint-tmp-9"):
        (path / other).mkdir()
    for old in ("3", "4.orbax-checkpoint-tmp"):
        set_age(path / old, 3 * 24 * 3600)
    dead = Path(temporary_path(str(path / "6")))
    dead.mkdir()
    with Staging(path / "7", overwrite=False) as staging:
        live = Path(staging.directory).name
        result = run_cli("prune", "run", "--keep", "9", "--yes")
        assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "nothing deleted")
        left = ("stays", "left by a dead save; --leftovers deletes it")
        alive = ("stays", "of a save that is in progress, or wrote something within a day")
        assert read_fates(result) == {
            "1": ("stays", "last 9"),
            "2": ("stays", "the latest, last 9"),
            "3": left,
            "4.orbax-checkpoint-tmp": left,
            "5.orbax-checkpoint-tmp-9": alive,
            dead.name: left,
            live: alive,
        }
        result = run_cli("prune", "run", "--leftovers", "--yes")
        assert (result.exit_code, result.stderr) == (0, "")
        assert set(list_names(path)) == {"1", "2", "5.orbax-checkpoint-tmp-9", live}


def test_prune_keeps_both_directories_of_a_step(make_run):
    path = make_run(s1={}, s01={}, s2={}, s3={})
    result = run_cli("prune", "run", "--keep", "1", "--yes")
    assert result.exit_code == 0
    assert set(list_names(path)) == {"1", "01", "3"}
    assert read_fates(result)["1"] == ("stays", "the same step as `01`; delete one of them by hand")


def test_prune_refuses_runs_that_share_a_directory(make_run):
    path = make_run(s1={}, s2={}, eval_1={}, eval_2={})
    result = run_cli("prune", "run", "--keep", "1", "--yes")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: run holds several checkpoints: `1`, `eval_1`, `2`, `eval_2`; hint: open"
        ' "run/2" or "run/eval_2"\n'
    )
    for command in ("ls", "steps"):
        assert run_cli(command, "run").stderr == result.stderr
    assert set(list_names(path)) == {"1", "2", "eval_1", "eval_2"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "say what stays, by --keep, --keep-every or --keep-best"),
        (["--keep-best", "2"], "--keep-best and --metric need each other"),
        (["--keep", "2", "--metric", "loss"], "--keep-best and --metric need each other"),
        (["--keep", "0"], "0 is not in the range x>=1"),
    ],
)
def test_prune_refuses_invalid_rules(make_run, arguments, says):
    make_run(s1={}, s2={})
    result = run_cli("prune", "run", *arguments, "--yes")
    assert result.exit_code == 2
    assert says in result.stderr
    assert set(list_names(Path("run"))) == {"1", "2"}


def test_prune_of_something_else_deletes_nothing(tmp_path):
    shutil.copytree(CORPUS / "orbax-0.12.8-manager" / "ckpt" / "10", tmp_path / "10")
    before = sorted(tmp_path.rglob("*"))
    result = run_cli("prune", tmp_path / "10", "--keep", "1", "--leftovers", "--yes")
    assert result.exit_code == 2
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("metric", ["nope", "name"])
def test_prune_refuses_a_metric_that_no_step_has_as_a_number(make_run, metric):
    path = make_run(s1={"loss": 1, "name": "a"}, s2={"loss": 2}, s3={})
    result = run_cli("prune", "run", "--keep-best", "1", "--metric", metric, "--yes")
    assert result.exit_code == 2
    assert (
        f"Expected steps with a number as `{metric}` in run, found `loss`, `name`" in result.stderr
    )
    assert set(list_names(path)) == set("123")


def test_prune_keeps_a_step_with_unreadable_metrics(make_run):
    path = make_run(s1={"loss": 1}, s2={"loss": 2}, s3={"loss": 3}, s4={"loss": 4})
    (path / "1" / "metrics" / "metrics").write_text('{"loss"')
    result = run_cli("prune", "run", "--keep-best", "1", "--metric", "loss", "--yes")
    assert read_fates(result)["1"][1].startswith("unreadable metrics: The JSON is unreadable: ")
    assert set(list_names(path)) == set("124")
    assert "unreadable metrics: The JSON is unreadable" in run_cli("steps", "run").stdout
    assert json.loads(run_cli("steps", "run", "--json").stdout)["steps"][0]["metrics"] is None
    run_cli("prune", "run", "--keep", "1", "--yes")  # does not compare metrics
    assert set(list_names(path)) == {"4"}


def test_prune_keeps_the_step_saved_last(make_run):
    path = make_run(s8={}, s9={}, s10={}, s2={})
    result = run_cli("prune", "run", "--keep", "1", "--yes")
    assert read_fates(result)["2"] == ("stays", "saved last")
    assert set(list_names(path)) == {"2", "10"}


def test_leftovers_are_deleted_from_a_directory_of_anything(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tx.save("ckpt", {"w": np.ones(2)})
    tx.save("other.msgpack", {"w": np.ones(2)})
    dead = Path(temporary_path(str(tmp_path / "model.safetensors")))
    dead.mkdir()
    (dead / "model.safetensors").write_bytes(bytes(1024))
    result = run_cli("prune", ".", "--leftovers")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "1 directory (1.0 KiB) would be deleted; --yes does it" in result.stdout
    assert run_cli("prune", ".", "--leftovers", "--yes").exit_code == 0
    assert set(os.listdir()) == {"ckpt", "other.msgpack"}
    result = run_cli("prune", ".", "--leftovers", "--yes")
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "nothing deleted")
    refused = run_cli("prune", ".", "--leftovers", "--keep", "1")
    assert refused.exit_code == 2
    assert "Expected a directory of steps" in refused.stderr


def test_prune_keeps_the_step_to_which_a_kept_one_is_a_link(make_run):
    path = make_run(s1={}, s2={}, s3={})
    (path / "9").symlink_to("2")
    result = run_cli("prune", "run", "--keep", "1", "--yes")
    assert (result.exit_code, result.stderr) == (0, "")
    assert set(list_names(path)) == {"2", "3", "9"}  # 3 was saved last
