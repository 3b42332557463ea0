"""`templax diff`: the report, JSON and exit codes."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import templax as tx
from helpers import run_cli

pytestmark = pytest.mark.usefixtures("in_corpus")

DEFAULT = "orbax-0.12.8-default/ckpt"
OTHER = "damaged-raw_bitflip/ckpt"


def test_diff_prints_the_verdict_and_sets_the_exit_code():
    same = run_cli("diff", DEFAULT, "orbax-0.12.8-noocdbt/ckpt")
    assert same.exit_code == 0
    assert same.stdout.splitlines()[:2] == [
        f"A: {DEFAULT} (orbax)",
        "B: orbax-0.12.8-noocdbt/ckpt (orbax)",
    ]
    assert "identical: 14 leaves (" in same.stdout
    other = run_cli("diff", DEFAULT, OTHER, "--threads", 1)
    assert other.exit_code == 1
    assert "1 of 14 leaves differs (" in other.stdout
    assert "  state.params.big  1 of 8,192 elements differ; max abs 4.77e-07, " in other.stdout
    assert other.stderr == ""
    assert run_cli("diff", DEFAULT, OTHER, "--no-values").exit_code == 0
    damaged = run_cli("diff", DEFAULT, "damaged-data_truncated/ckpt")
    assert damaged.exit_code == 2
    assert " in B, damaged-data_truncated/ckpt - at `state.params.big`" in damaged.stderr


def test_the_options_are_those_of_the_function(tmp_path):
    w = np.ones((2, 2), np.float32)
    tx.save(tmp_path / "a", {"params": {"w": w}, "step": 3})
    save_file({"model.kernel": w, "head": w}, tmp_path / "b.safetensors")
    arguments = ["--at", "params", "--at-b", "model", "--rename", "w=kernel", "--follow-links"]
    assert run_cli("diff", tmp_path / "a", tmp_path / "b.safetensors", *arguments).exit_code == 0
    again = run_cli("diff", tmp_path / "a", tmp_path / "a")
    assert "2 leaves are identical: 2 by fingerprint" in again.stdout
    again = run_cli("diff", tmp_path / "a", tmp_path / "a", "--no-fingerprints")
    assert "2 leaves are identical: 2 by reading" in again.stdout
    wrong = run_cli("diff", tmp_path / "a", tmp_path / "a", "--rename", "w")
    assert wrong.exit_code == 2
    assert "expected OLD=NEW, got 'w'" in wrong.stderr


def test_long_lists_are_cut_and_all_shows_them(tmp_path):
    for name, value in (("a", 0), ("b", 1)):
        save_file({f"w{i:02}": np.full(2, value) for i in range(25)}, tmp_path / name)
    cut = run_cli("diff", tmp_path / "a", tmp_path / "b")
    assert cut.stdout.count("elements differ") == 20
    assert "  and 5 more (`--all` shows them)\n" in cut.stdout
    whole = run_cli("diff", tmp_path / "a", tmp_path / "b", "--all")
    assert whole.stdout.count("elements differ") == 25
    assert "more (" not in whole.stdout


def test_diff_json_has_the_documented_fields():
    result = run_cli("diff", DEFAULT, OTHER, "--json")
    assert result.exit_code == 1
    listed = json.loads(result.stdout)
    assert listed.pop("seconds") > 0
    leaves = listed.pop("leaves")
    assert listed == {
        "schema": 1,
        "ok": False,
        "identical": False,
        "a": {"url": DEFAULT, "format": "orbax"},
        "b": {"url": OTHER, "format": "orbax"},
        "differing": 1,
        "by_fingerprint": 0,
        "by_reading": 14,
        "shardings": [],
        "empties": [],
        "unread": [],
    }
    assert len(leaves) == 14
    first = leaves[0]
    assert first["differences"] == ["values"]
    assert first["values"]["max_ulps"] == 16
    assert first["a"] == first["b"]
    assert set(first) == {"name", "differences", "basis", "values", "note", "a", "b"}
    assert set(first["a"]) == {"name", "kind", "dtype", "shape", "nbytes", "saved_sharding",
                               "value"}  # fmt: skip


def test_a_name_from_a_file_can_not_forge_a_line(tmp_path):
    save_file({"w\nidentical: 1 leaf": np.zeros(1)}, tmp_path / "a")
    save_file({"w\nidentical: 1 leaf": np.ones(1)}, tmp_path / "b")
    printed = run_cli("diff", tmp_path / "a", tmp_path / "b").stdout
    assert not any(line.startswith("identical") for line in printed.splitlines())


def test_no_difference_among_the_leaves_that_can_be_decoded_is_not_success():
    path = "gguf/not-read.gguf"
    found = run_cli("diff", path, path)
    assert found.exit_code == 2
    assert (
        "no difference found, but the values of 13 of 14 leaves were not compared" in found.stdout
    )
    assert run_cli("diff", path, path, "--no-values").exit_code == 0
