"""`templax ls --bytes`: what every byte is for, as text and JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import templax as tx
from helpers import run_cli
from templax._display.json_listing import account_fields

pytestmark = pytest.mark.usefixtures("in_corpus")

DEFAULT = "orbax-0.12.8-default/ckpt"


def test_tables_of_files_leaves_parts_and_gaps():
    result = run_cli("ls", "--bytes", "torch-2.14.1/leaves.pt")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[:6] == [
        "torch-2.14.1/leaves.pt (torch): 7,621 bytes in 1 file",
        "  leaf       591   7.8 %  26 leaves, 739 B decoded, stored in 0.800 of that",
        "  index    5,652  74.2 %",
        "  padding  1,378  18.1 %",
        "  gap          0   0.0 %",
        "  orphan       0   0.0 %",
    ]
    assert "File        size  leaf  index  padding  gap  orphan" in lines
    assert "leaves.pt  7,621   591  5,652    1,378" in lines
    assert "and 6 more (--flat and --json have them all)" in lines
    assert "48 bytes are shared by `tied.one`, `tied.two`" in lines
    whole = run_cli("ls", "--bytes", "--flat", "torch-2.14.1/leaves.pt").stdout
    assert " more (" not in whole
    gaps = run_cli("ls", "--bytes", DEFAULT).stdout
    assert "\nGap in " in gaps
    assert gaps.endswith("only in older versions\n")


def test_json_has_the_documented_fields():
    result = run_cli("ls", "--bytes", "--json", "npz-stored/params.npz")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["files"] == [{"file": "", "nbytes": 3140, "kinds": {"leaf": 1144, "index": 1996}}]
    assert found["leaves"][0].keys() == {"name", "stored", "inline", "nbytes"}
    assert found["parts"][0] == {"kind": "leaf", "what": "values of leaves", "nbytes": 1144}
    assert {name: found[name] for name in ("schema", "format", "nbytes", "decoded")} == {
        "schema": 1,
        "format": "npz",
        "nbytes": 3140,
        "decoded": 1144,
    }
    assert found["kinds"] == {"leaf": 1144, "index": 1996, "padding": 0, "gap": 0, "orphan": 0}
    assert (found["shared"], found["gaps"], found["unread"]) == ([], [], {})


def test_json_says_what_could_not_be_measured():
    account = tx.account_bytes(tx.open("npz-stored/params.npz"))
    account = replace(account, unread={"locked": "Permission denied"})
    assert account_fields(account)["unread"] == {"locked": "Permission denied"}


@pytest.mark.parametrize("option", [("--depth", "1"), ("--match", "*"), ("--all",)])
def test_options_of_the_tree_are_refused(option: tuple[str, ...]):
    result = run_cli("ls", "--bytes", DEFAULT, *option)
    assert result.exit_code == 2
    assert "--bytes counts all bytes: leave --depth, --match and --all out" in result.stderr


def test_a_run_or_a_damaged_checkpoint_is_an_error():
    run = run_cli("ls", "--bytes", "orbax-0.12.8-manager/ckpt")
    assert run.exit_code == 2
    assert "hint: open " in run.stderr
    damaged = run_cli("ls", "--bytes", "damaged-data_missing/ckpt")
    assert damaged.exit_code == 2
    assert "Expected a data file, found none" in damaged.stderr
