"""`templax check`: the report, its hints, JSON and exit codes."""

import json
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import templax as tx
from helpers import run_cli

pytestmark = pytest.mark.usefixtures("in_corpus")

DEFAULT = "orbax-0.12.8-default/ckpt"


def test_a_checkpoint_matches_the_template_made_of_it(template_file):
    result = run_cli("check", DEFAULT, template_file)
    assert (result.exit_code, result.output) == (0, f"all 14 leaves match {DEFAULT}\n")


def alter_leaf(file, name, **changes):
    data = json.loads(file.read_bytes())
    for item in data["leaves"]:
        if ".".join(map(str, item["path"])) == name:
            item |= changes
    file.write_text(json.dumps(data))


def test_a_mismatch_exits_with_1_and_prints_the_report(template_file):
    alter_leaf(template_file, "state.params.big", shape=[128, 32])
    alter_leaf(template_file, "state.rng", dtype="uint8")
    result = run_cli("check", DEFAULT, template_file)
    assert result.exit_code == 1
    assert result.stderr == ""
    assert result.stdout == (
        f"2 of 14 leaves do not match {DEFAULT}\n"
        "  Expected shape `(128, 32)`, got `(128, 64)` - at `state.params.big`\n"
        "  Expected dtype `uint8`, got `uint32` - at `state.rng`\n"
    )


def test_check_json_has_the_documented_fields(template_file):
    alter_leaf(template_file, "state.params.big", shape=[128, 32])
    alter_leaf(template_file, "state.params.scale", dtype="bfloat16")
    result = run_cli("check", DEFAULT, template_file, "--json")
    assert result.exit_code == 1
    assert json.loads(result.output) == {
        "schema": 1,
        "ok": False,
        "url": DEFAULT,
        "summary": None,
        "rename": None,
        "mismatches": [
            {
                "problem": "shape",
                "name": "state.params.big",
                "expected": "(128, 32)",
                "found": "(128, 64)",
                "note": None,
                "hint": None,
            }
        ],
        "casts": [
            {
                "name": "state.params.scale",
                "stored": "float32",
                "wanted": "bfloat16",
                "nbytes": 4,
            }
        ],
        "matched": 13,
        "supplied": {},
        "kept": [],
        "skipped": [],
        "ignored": [],
        "unused_patterns": [],
        "undecidable": [],
    }


def test_check_takes_the_options_of_restore(template_file):
    alter_leaf(template_file, "state.params.scale", dtype="bfloat16")
    assert run_cli("check", DEFAULT, template_file).exit_code == 0
    assert run_cli("check", DEFAULT, template_file, "--cast", "exact").exit_code == 1
    alter_leaf(template_file, "state.params.big", path=["state", "params", "large"])
    assert run_cli("check", DEFAULT, template_file).exit_code == 1
    rename = ["--rename", "state.params.big=state.params.large"]
    assert run_cli("check", DEFAULT, template_file, *rename).exit_code == 0
    older = "orbax-0.12.8-multi2p/ckpt"  # lacks `extra`
    assert run_cli("check", older, template_file, *rename).exit_code == 1
    assert run_cli("check", older, template_file, *rename, "--missing", DEFAULT).exit_code == 0
    patterns = ["--missing", f"extra.*={DEFAULT}", "--missing", "state.*=error"]
    assert run_cli("check", older, template_file, *rename, *patterns).exit_code == 0
    assert run_cli("check", older, template_file, *rename, "--missing", "*=error").exit_code == 1
    template_file.write_bytes(b'{"templax_template": 1, "leaves": []}')
    assert run_cli("check", DEFAULT, template_file).exit_code == 1
    assert run_cli("check", DEFAULT, template_file, "--extra", "ignore").exit_code == 0
    for choices, status in (
        (["state.*=ignore", "extra.*=ignore"], 0),
        (["state.*=ignore"], 1),
        (["state.*=error", "ignore"], 1),
        (["state.*=ignore", "ignore"], 0),
        (["ignore", "error"], 2),
        (["state.*=keep"], 2),
    ):
        options = [word for choice in choices for word in ("--extra", choice)]
        assert run_cli("check", DEFAULT, template_file, *options).exit_code == status, choices


def drop_leaf(file, name):
    data = json.loads(file.read_bytes())
    leaves = [item for item in data["leaves"] if ".".join(map(str, item["path"])) != name]
    file.write_text(json.dumps(data | {"leaves": leaves}))


def move_leaves(file, *, at="", under=""):
    """Cuts the template in a file at the prefix `at`, or puts it under the key `under`."""
    data = json.loads(file.read_bytes())
    cut = at.split(".") if at else []
    below = [item for item in data["leaves"] if item["path"][: len(cut)] == cut]
    for item in below:
        item["path"] = [*([under] if under else []), *item["path"][len(cut) :]]
    file.write_text(json.dumps(data | {"leaves": below}))


@pytest.mark.parametrize(
    ("change", "arguments", "hint"),
    [
        (lambda f: move_leaves(f, at="state.params"), [], "--at state.params"),
        (lambda f: move_leaves(f, under="model"), [], "--rename '=model'"),
        (
            lambda f: alter_leaf(f, "state.params.scale", path=["state", "params", "Scale"]),
            [],
            "--rename state.params.scale=state.params.Scale",
        ),
        (
            lambda f: drop_leaf(f, "state.params.scale"),
            [],
            "--extra ignore",
        ),
        (
            lambda f: alter_leaf(f, "state.params.scale", dtype="bfloat16"),
            ["--cast", "exact"],
            "--cast float",
        ),
    ],
)
def test_a_hint_is_an_option_that_works(change, arguments, hint, template_file):
    change(template_file)
    result = run_cli("check", DEFAULT, template_file, *arguments)
    assert result.exit_code == 1
    assert f"hint: {hint}" in result.stdout
    again = run_cli("check", DEFAULT, template_file, *arguments, *shlex.split(hint))
    assert again.exit_code == 0, again.output
    assert '="' not in result.stdout


def test_check_json_has_hints_as_arguments_of_restore(template_file):
    alter_leaf(template_file, "state.params.scale", path=["state", "params", "Scale"])
    data = json.loads(run_cli("check", DEFAULT, template_file, "--json").output)
    assert data["rename"] == {"state.params.scale": "state.params.Scale"}
    hints = {m["hint"] for m in data["mismatches"]}
    assert hints == {'rename={"state.params.scale": "state.params.Scale"}'}


def test_a_long_report_refers_to_the_json(template_file):
    data = json.loads(template_file.read_bytes())
    extra = [{"path": [f"x{i}"], "shape": [], "dtype": "float32"} for i in range(30)]
    template_file.write_text(json.dumps(data | {"leaves": data["leaves"] + extra}))
    output = run_cli("check", DEFAULT, template_file).stdout
    assert "and 10 more: 10 missing (`--json` has them all)" in output


def test_a_template_file_has_no_values_to_keep(template_file):
    """A template given to `restore` may have values, so the file cannot tell what would be kept."""
    older = "orbax-0.12.8-multi2p/ckpt"  # lacks `extra`
    arguments = ["check", older, template_file, "--missing", "keep"]
    result = run_cli(*arguments)
    assert result.exit_code == 1
    note = "a template file holds no values, so whether restore would keep one is not known"
    line = f"  Expected a leaf, found none - at `extra.py_int`; {note}\n"
    assert line in result.stdout
    data = json.loads(run_cli(*arguments, "--json").output)
    assert {m["note"] for m in data["mismatches"] if m["problem"] == "missing"} == {note}
    assert "holds no values" in " ".join(run_cli("check", "--help").output.split())


def test_check_exits_with_2_for_usage_errors(template_file):
    result = run_cli("check", DEFAULT, template_file, "--rename", "a")
    assert result.exit_code == 2
    assert "expected OLD=NEW, got 'a'" in result.stderr
    assert run_cli("check", DEFAULT, "missing.json").exit_code == 2
    assert run_cli("check", DEFAULT, template_file, "--cast", "loose").exit_code == 2


def test_a_file_that_is_not_a_template_is_refused(tmp_path):
    file = tmp_path / "t.json"
    file.write_text("[]")
    result = run_cli("check", DEFAULT, file)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: Expected a template file, ")
    assert f"file `{file}`" in result.stderr


def test_check_applies_the_shardings_of_a_saved_template(tmp_path):
    """A mesh in JSON needs no devices; 5 does not divide 128."""
    devices = np.array(jax.devices()[:5])
    sharding = NamedSharding(Mesh(devices, ("data",)), PartitionSpec("data"))
    file = tmp_path / "t.json"
    template = {"big": jax.ShapeDtypeStruct((128, 64), jnp.float32, sharding=sharding)}
    tx.save_template(template, file)
    assert json.loads(file.read_bytes())["leaves"][0]["sharding"]["mesh"] == {"data": 5}
    result = run_cli("check", DEFAULT, file, "--at", "state.params", "--extra", "ignore")
    assert result.exit_code == 1
    assert result.stdout == (
        f"1 of 1 leaf does not match {DEFAULT}\n"
        "  Expected dimension 0 divisible by 5 (mesh axis `data`), got 128, sharding P('data',)"
        " - at `big`\n"
    ).replace("P('data',)", "P('data')")
