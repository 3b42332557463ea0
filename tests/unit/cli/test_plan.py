"""`templax plan`: the plan as text and JSON, and exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import templax as tx
from helpers import CORPUS, run_cli

RAW = CORPUS / "orbax-0.12.8-uncompressed" / "ckpt"


def test_plan_prints_the_plan_and_sets_the_exit_code(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    assert run_cli("template", RAW, "-o", file).exit_code == 0
    done = run_cli("plan", RAW, file)
    assert done.exit_code == 0
    assert done.stdout == f"{tx.plan(RAW, load_template(file))}\n"
    done = run_cli("plan", RAW, file, "--json", "--mapped")
    assert done.exit_code == 0
    shown = json.loads(done.stdout)
    assert (shown["ok"], shown["bytes_mapped"], shown["requests"]) == (True, 32768, 0)
    assert shown["unverified"] == ["state.params.big"]
    done = run_cli("plan", RAW, file, "--at", "state")
    assert done.exit_code == 1
    assert done.stdout.startswith("none of 14 leaves")
    done = run_cli("plan", RAW, file, "--verify", "required")
    assert done.exit_code == 2
    assert "no checksum covers" in done.stderr


def test_plan_json_names_leaves_with_absent_chunks(tmp_path: Path) -> None:
    path, file = CORPUS / "zarr-ocdbt" / "tree.zarr", tmp_path / "t.json"
    assert run_cli("template", path, "-o", file).exit_code == 0
    shown = json.loads(run_cli("plan", path, file, "--json").stdout)
    assert shown["filled"] == ["opt.sparse"]


def load_template(file: Path) -> Any:
    from templax._template.json_file import load_template

    return load_template(file.read_bytes())
