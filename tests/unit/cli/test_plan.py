"""`templax plan`: the plan as text and JSON, and exit codes."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import templax as tx
from helpers import CORPUS, run_python

RAW = CORPUS / "orbax-0.12.8-uncompressed" / "ckpt"


def test_plan_prints_the_plan_and_sets_the_exit_code(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    run = functools.partial(run_python, "-m", "templax")
    run("template", RAW, "-o", file).check_returncode()
    read_arrays = run("plan", RAW, file)
    read_arrays.check_returncode()
    assert read_arrays.stdout == f"{tx.plan(RAW, load_template(file))}\n"
    read_arrays = run("plan", RAW, file, "--json", "--mapped")
    read_arrays.check_returncode()
    shown = json.loads(read_arrays.stdout)
    assert (shown["ok"], shown["bytes_mapped"], shown["requests"]) == (True, 32768, 0)
    assert shown["unverified"] == ["state.params.big"]
    read_arrays = run("plan", RAW, file, "--at", "state")
    assert read_arrays.returncode == 1
    assert read_arrays.stdout.startswith("none of 14 leaves")
    read_arrays = run("plan", RAW, file, "--verify", "required")
    assert read_arrays.returncode == 2
    assert "no checksum covers" in read_arrays.stderr


def load_template(file: Path) -> Any:
    from templax._template.json_file import load_template

    return load_template(file.read_bytes())
