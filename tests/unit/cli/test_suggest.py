"""`templax suggest`: writing a mapping."""

import json

import numpy as np
import pytest

import templax as tx
from helpers import run_cli
from model_layouts import D, F, kernel, llama, zeros
from templax._template.json_file import dump_template
from templax._template.make import make_template


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A checkpoint of PyTorch, and a template of Flax."""
    monkeypatch.chdir(tmp_path)
    weights = {
        "fc1": {"weight": np.ones((F, D), np.float32), "bias": np.ones(F, np.float32)},
        "fc2": {"weight": np.ones((D, D), np.float32), "bias": np.ones(D, np.float32)},
    }
    tx.save("torch.safetensors", {"mlp": weights, "step": np.int32(3)})
    template = {"mlp": {"fc1": kernel(D, F, bias=(F,)), "fc2": kernel(D, D, bias=(D,))}}
    write_template("want.json", template)
    return tmp_path


def write_template(file, tree):
    with open(file, "wb") as stream:
        stream.write(dump_template(make_template(tree)))


def test_a_mapping_is_written_that_map_takes(files):
    result = run_cli("suggest", "torch.safetensors", "want.json", "-o", "map.json")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == (
        "note: can't tell by its shape whether it is transposed (taken as transposed, like the"
        " others): `mlp.fc2.kernel`\n"
        "note: left out: `step`\n"
    )
    mapping = tx.Mapping.load("map.json")
    assert mapping.drop == ("step",)
    assert mapping.rules["mlp.fc1.kernel"] == tx.From("mlp.fc1.weight", "f d -> d f")
    checked = run_cli("check", "torch.safetensors", "want.json", "--map", "map.json")
    assert checked.exit_code == 0


def test_a_mapping_is_written_to_standard_output(files):
    result = run_cli("suggest", "torch.safetensors", "want.json")
    assert result.exit_code == 0
    assert tx.Mapping.from_json(json.loads(result.stdout)) is not None


def test_exits_with_1_and_writes_nothing_if_there_is_no_mapping(files):
    write_template("other.json", {"generator": {"deconv": kernel(5, 5, 3, 7)}})
    result = run_cli("suggest", "torch.safetensors", "other.json", "-o", "map.json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "no mapping was found that fits at least half of the template\n"
    assert not (files / "map.json").exists()


def test_exits_with_2_if_something_cannot_be_read(files):
    assert run_cli("suggest", "nothing", "want.json").exit_code == 2
    assert run_cli("suggest", "torch.safetensors", "nothing.json").exit_code == 2


def test_check_names_the_command(files):
    tx.save("llama.safetensors", llama().stored)
    layers = {"layers": {"attn": {p: kernel(3, D, 4, 6) for p in ("q",)}}}
    norms = {"attn_norm": {"scale": zeros(3, D)}, "mlp_norm": {"scale": zeros(3, D)}}
    write_template("want.json", {"layers": {**layers["layers"], **norms}, "head": kernel(D, 50)})
    result = run_cli("check", "llama.safetensors", "want.json")
    assert result.exit_code == 1
    assert (
        "hint: --map map.json, which `templax suggest PATH TEMPLATE.json -o map.json` writes"
        in result.stdout.split("\n")[0]
    )
