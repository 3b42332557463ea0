"""`templax draw`: pictures of chunks and shardings."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

import templax as tx
from helpers import run_cli


@pytest.fixture
def path(tmp_path: Path) -> str:
    tx.save(tmp_path / "ckpt", {"params": {"w": jnp.zeros((8, 6))}, "step": 3})
    return str(tmp_path / "ckpt")


def test_without_options_the_files_of_a_leaf_are_drawn(path: str) -> None:
    result = run_cli("draw", path, "params.w")
    assert (result.exit_code, result.output) == (0, f"{tx.draw_chunks(path, 'params.w')}\n")
    assert run_cli("draw", path, "params.v").exit_code == 2


def test_a_spec_is_drawn_over_a_mesh(path: str) -> None:
    result = run_cli(
        "draw", path, "params.w", "--mesh", "data=2,model=3", "--hosts", "2", "--spec", "data,model"
    )
    topology = tx.Topology(hosts=2, devices_per_host=3, mesh={"data": 2, "model": 3})
    want = tx.draw_sharding(
        tx.open(path).template(), "params.w", topology=topology, spec=("data", "model"),
        checkpoint=path,
    )  # fmt: skip
    assert (result.exit_code, result.output) == (0, f"{want}\n")
    assert "3 host 1; 1 chunk, 16.7%" in result.output
    several = run_cli("draw", path, "params.w", "--mesh", "a=2,b=3", "--spec", ",a+b")
    assert "P(None, ('a', 'b'))" in several.output
    uneven = run_cli("draw", path, "params.w", "--mesh", "a=5", "--spec", "a")
    assert (uneven.exit_code, uneven.output) == (
        2,
        "error: Expected dimension 0 divisible by 5 (mesh axis `a`), got 8, sharding P('a') - at"
        " `params.w`\n",
    )


def test_a_template_is_drawn_below_the_subtree_that_it_describes(path: str, tmp_path: Path) -> None:
    sharding = NamedSharding(AbstractMesh((2,), ("x",)), P("x"))
    file = tmp_path / "want.json"
    tx.save_template({"w": jax.ShapeDtypeStruct((8, 6), jnp.float32, sharding=sharding)}, file)
    result = run_cli("draw", path, "w", "--template", file, "--at", "params")
    assert result.exit_code == 0, result.output
    assert "4:8 │ 1 1 chunk, 50.0% │" in result.output


def test_an_svg_is_written_to_a_file_or_to_standard_output(path: str, tmp_path: Path) -> None:
    result = run_cli("draw", path, "params.w", "--svg", tmp_path / "w.svg")
    assert (result.exit_code, result.output) == (0, "")
    svg = (tmp_path / "w.svg").read_text()
    assert ET.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert run_cli("draw", path, "params.w", "--svg", "-").output == svg


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--spec", "x"], "--spec shards a leaf over a mesh, which needs --mesh."),
        (["--mesh", "x=2"], "--mesh, --hosts and --at need --spec or --template."),
    ],
)
def test_options_that_mean_nothing_alone_are_refused(
    path: str, options: list[str], message: str
) -> None:
    result = run_cli("draw", path, "params.w", *options)
    assert result.exit_code == 2
    assert message in result.output
