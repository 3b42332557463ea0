"""The command line where JAX is not installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from without_jax import CORPUS, run_command, run_without_jax

FILES = ["orbax-0.12.8-default/ckpt", "safetensors-plain/model.safetensors"]
MORE_FILES = [
    "orbax-0.12.8-noocdbt/ckpt",
    "npz-stored/params.npz",
    "flaxmsgpack-plain/state.msgpack",
    "torch-2.14.1/checkpoint.pt",
]

SAVE_RUN = """
import numpy as np, templax as tx
with tx.Manager(sys.argv[1]) as manager:
    for step in range(3):
        manager.save(step, {"w": np.full(4, step, np.float32)})
"""


@pytest.mark.parametrize(
    "file", [*FILES, *(pytest.param(file, marks=pytest.mark.slow) for file in MORE_FILES)]
)
def test_a_checkpoint_is_shown_verified_checked_and_compared(file: str, tmp_path: Path) -> None:
    """All in one process, which none of the commands makes import JAX."""
    code = """
from templax.cli import main
path, template = sys.argv[1:]
for arguments in (
    ["ls", path],
    ["verify", path],
    ["template", path, "-o", template],
    ["check", path, template],
    ["plan", path, template],
    ["diff", path, path],
):
    try:
        main([*arguments, *(["--json"] if arguments[0] in ("check", "diff") else [])])
    except SystemExit as end:
        assert end.code == 0, (arguments, end.code)
assert not {"jax", "jaxlib"} & set(sys.modules)
"""
    printed = run_without_jax(code, CORPUS / file, tmp_path / "template.json")
    assert '"ok": true' in printed


@pytest.mark.slow
def test_the_steps_of_a_run_are_shown_and_pruned(tmp_path: Path) -> None:
    run_without_jax(SAVE_RUN, tmp_path)
    assert "the latest committed is 2" in run_command("steps", tmp_path)
    run_command("prune", tmp_path, "--keep", "1", "--yes")
    shown = json.loads(run_command("steps", tmp_path, "--json"))
    assert [step["step"] for step in shown["steps"]] == [2]


@pytest.mark.slow
def test_the_demo_says_what_it_needs() -> None:
    printed = run_command("demo", status=2)
    assert printed.endswith('; hint: pip install "templax[demo]"\n')
    assert "Traceback" not in printed
