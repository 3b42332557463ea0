"""The commands about directories of steps: what they print, do, and how they exit."""

import json
import math
import shutil
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from templax._listing import size
from templax.cli import main

CORPUS = Path(__file__).parents[1] / "corpus"
LOST = "is the temporary directory of a save that never finished"


def cli(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(autouse=True)
def _plain(monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)


@pytest.fixture
def a_run(tmp_path, monkeypatch):
    """Makes steps below `run`, committed an hour ago."""
    monkeypatch.chdir(tmp_path)

    def make(**metrics):
        for name, found in metrics.items():
            path = tmp_path / "run" / name.removeprefix("s")
            shutil.copytree(CORPUS / "orbax-0.12.8-default/ckpt", path / "default")
            (path / "metrics").mkdir()
            (path / "metrics" / "metrics").write_text(json.dumps(found))
            committed = int((time.time() - 3700) * 1e9)
            about = {"item_handlers": {}, "commit_timestamp_nsecs": committed}
            (path / "_CHECKPOINT_METADATA").write_text(json.dumps(about))
        return tmp_path / "run"

    return make


def nbytes(directory):
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


# steps


def test_steps_shows_sizes_ages_metrics_and_what_never_finished(a_run):
    path = a_run(s9={"loss": 0.123456789, "n": 3}, s10={"loss": math.nan})
    stale = path / "11.orbax-checkpoint-tmp-templax-0a"
    stale.mkdir()
    (stale / "data").write_bytes(bytes(2048))
    result = cli("steps", "run")
    assert (result.exit_code, result.stderr) == (0, "")
    nine, ten, total = (size(nbytes(p)) for p in (path / "9", path / "10", path))
    assert result.stdout == (
        f"""\
run
  format  orbax, recognised by the step directory `11.orbax-checkpoint-tmp-templax-0a`
  total   3 steps, {total}, the latest committed is 10

                                 9  committed    {nine}  1 h ago  loss=0.123457, n=3
                                10  committed    {ten}  1 h ago  loss=nan
11.orbax-checkpoint-tmp-templax-0a  UNCOMMITTED   2.0 KiB  0 s ago  `{stale.name}` {LOST}
"""
    )


def test_steps_json_has_the_documented_fields(a_run):
    path = a_run(s9={"loss": 0.5, "by": {"a": math.nan}, "all": [math.inf, 1]})
    (path / "best.orbax-checkpoint-tmp").mkdir()
    result = cli("steps", "--json", "run")
    assert result.exit_code == 0

    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads(result.output, parse_constant=refuse)
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
                "nbytes": nbytes(path / "9"),
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


def test_ls_tells_the_same_of_a_run_without_counting_bytes(a_run):
    a_run(s9={"loss": 0.5}, s10={"loss": 0.25})
    listed = json.loads(cli("ls", "--json", "run").output)
    counted = json.loads(cli("steps", "--json", "run").output)
    assert [step.pop("nbytes") for step in listed["steps"]] == [None, None]
    assert all(step.pop("nbytes") > 2**15 for step in counted["steps"])
    assert listed == counted


def test_steps_of_something_else_says_what_it_is():
    checkpoint = CORPUS / "orbax-0.12.8-default" / "ckpt"
    result = cli("steps", checkpoint)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"error: Expected a directory of steps, got the checkpoint {checkpoint};"
        f" hint: templax ls {checkpoint}\n"
    )
    result = cli("steps", CORPUS / "safetensors-plain")
    assert result.exit_code == 2
    assert "(a safetensors file)" in result.stderr
    assert cli("steps", CORPUS / "nothing").exit_code == 2
