"""Each script of `examples/` runs as a user would run it, and prints what its docstring says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

EXPECTED = {
    "linen_restore": [
        "'Dense_0': {'bias': (32,), 'kernel': (8, 32)}",
        "same output as the trained model: True",
        "Expected shape `(8, 64)`, got `(8, 32)` - at `Dense_0.kernel`",
    ],
    "nnx_restore": [
        "same output as the trained encoder: True",
        "same encoder: True",
        "same head as a new model: True",
    ],
    "equinox_restore": [
        "restored an MLP with activation relu",
        "same output as the trained model: True",
        "Expected a leaf, found none - at `layers.0.weight`",
        "all 4 leaves match",
        "output with the weights of PyTorch: [3.56",
    ],
    "train_save_resume": [
        "starting at step 0\n",
        "stopped at step 35",
        "starting at step 30\n",
        "saved steps: [50, 60]",
        "same state as without the interruption: True",
    ],
    "sharded_restore": [
        "embed: (512, 64) in shards of (128, 32) on 8 device(s)",
        "bias: (64,) in shards of (32,) on 8 device(s)",
        "same values: True",
        "embed: (512, 64) in shards of (64, 64) on 8 device(s)",
        "Expected dimension 0 divisible by 5 (mesh axis `data`), got 512, sharding P('data') "
        "- at `embed`",
    ],
}
"""What the output of each example must contain."""


def test_every_example_is_run_and_listed() -> None:
    scripts = {script.stem for script in EXAMPLES.glob("*.py")}
    assert scripts == {*EXPECTED, "elastic_training"}  # tests/hosts/test_elastic.py runs that one
    listed = (EXAMPLES / "README.md").read_text()
    assert all(f"({name}.py)" in listed for name in scripts)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_example_prints_what_a_reader_should_see(name: str, tmp_path: Path) -> None:
    # Without the eight devices of this process: an example that needs them makes them itself.
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        env=environment | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for fact in EXPECTED[name]:
        assert fact in done.stdout
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("tmp*")), "left its checkpoint behind"
