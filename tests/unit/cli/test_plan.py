"""`templax plan`: the plan as text and JSON, and exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

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


def test_a_job_that_need_not_exist_is_planned(tmp_path: Path) -> None:
    tree = {"w": jnp.zeros((1024, 1024)), "n": jnp.zeros(8)}
    tx.save(tmp_path / "ckpt", tree)
    mesh = AbstractMesh((64, 8), ("data", "model"))
    specs = [("w", P(None, "model")), ("n", P())]
    tx.save_template(tx.template_of(tree, mesh=mesh, specs=specs), tmp_path / "t.json")
    given = ("plan", str(tmp_path / "ckpt"), str(tmp_path / "t.json"))
    job = (*given, "--mesh", "data=64,model=8", "--hosts", "128")
    assert "hosts 128 × devices 4, mesh data=64 × model=8" in run_cli(*job).stdout
    fields = json.loads(run_cli(*job, "--json").stdout)
    assert (fields["hosts"], fields["devices_per_host"], fields["platform"]) == (128, 4, "tpu")
    assert fields["all_hosts"]["bytes_read"] == 128 * fields["median"]["bytes_read"]
    assert fields["repeated_bytes"] + fields["distinct_bytes"] == fields["all_hosts"]["bytes_read"]
    assert fields["worst_hosts"] == list(range(0, 128, 2))  # those with the first columns
    for options, message in (
        (("--hosts", "2"), "--hosts and --platform describe a job, which needs --mesh."),
        (("--mesh", "data"), "expected AXIS=SIZE,... such as data=64,model=32, got data"),
        (("--mesh", "a=2,a=2"), "expected AXIS=SIZE,..."),
        (("--mesh", "a=4", "--hosts", "3"), "expected a number of which 4 devices are a multiple"),
    ):
        refused = run_cli(*given, *options)
        assert refused.exit_code == 2
        assert message in refused.stderr
