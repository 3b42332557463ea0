"""`templax verify`: the verdict, JSON and exit codes."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import templax as tx
from helpers import run_cli

pytestmark = pytest.mark.usefixtures("in_corpus")

DEFAULT = "orbax-0.12.8-default/ckpt"


def test_verify_prints_the_verdict_and_sets_the_exit_code(tmp_path: Path):
    """0: no damage; 1: damage, or with --required bytes without a checksum; 2: can't be opened."""
    tx.save(tmp_path / "ckpt", {"w": np.arange(100, dtype=np.int32)})
    sound = run_cli("verify", tmp_path / "ckpt", "--required")
    assert sound.exit_code == 0
    said = f"{tmp_path}/ckpt is sound: all 400 bytes of 1 leaf agree with their checksum"
    assert re.fullmatch(re.escape(said) + r" \(\d+\.\d\d s\)\n", sound.stdout)
    bare = run_cli("verify", DEFAULT, "--threads", 2)
    assert bare.exit_code == 0
    assert "  30,305 bytes of 1 leaf have none: `state.params.big`\n" in bare.stdout
    assert run_cli("verify", DEFAULT, "--required").exit_code == 1
    damaged = run_cli("verify", "damaged-data_missing/ckpt")
    assert damaged.exit_code == 1
    assert damaged.stdout.startswith(
        "damaged-data_missing/ckpt is damaged: 1 damage in 1 of 14 leaves ("
    )
    assert "\n  Expected a data file, found none - at `state.params.big`, " in damaged.stdout
    assert damaged.stderr == ""


def test_verify_of_a_run_says_which_step_to_open():
    result = run_cli("verify", "orbax-0.12.8-manager/ckpt")
    assert result.exit_code == 2
    assert 'hint: open "orbax-0.12.8-manager/ckpt/20/ema" or' in result.stderr


def test_verify_json_has_the_documented_fields():
    result = run_cli("verify", "damaged-data_truncated/ckpt", "--json")
    assert result.exit_code == 1
    listed = json.loads(result.stdout)
    assert listed.pop("seconds") > 0
    assert listed == {
        "schema": 1,
        "ok": False,
        "url": "damaged-data_truncated/ckpt",
        "leaves": 14,
        "damages": [
            {
                "what": "Expected at least 32768 bytes, the file has 16384",
                "leaf": "state.params.big",
                "box": [[64, 128], [0, 64]],
                "file": "ocdbt.process_0/d/a5ca20b7bcd0904cfb5d8a7ea5f1bbe5",
                "start": 16384,
                "stop": 32768,
                "hint": None,
            }
        ],
        "checked_bytes": 1636,
        "unchecked_bytes": 16384,
        "unchecked": ["state.params.big"],
        "filled": [],
        "unread": [],
    }


def test_a_long_verify_report_refers_to_the_json(tmp_path: Path):
    list_rows = {f"l{i:02}": np.arange(100, dtype=np.int32) for i in range(25)}
    tx.save(tmp_path / "ckpt", list_rows)
    (data,) = (tmp_path / "ckpt" / "d").iterdir()
    data.write_bytes(b"\1" * 64 * 7 * 25 + data.read_bytes()[64 * 7 * 25 :])
    result = run_cli("verify", tmp_path / "ckpt")
    assert "\n  and 5 more (--json has them all)\n" in result.stdout
    assert result.stdout.count("Expected crc32c `") == 20
    listed = json.loads(run_cli("verify", tmp_path / "ckpt", "--json").stdout)
    assert [damage["leaf"] for damage in listed["damages"]] == sorted(list_rows)
