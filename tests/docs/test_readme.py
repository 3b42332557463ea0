"""README.md: its examples run as they stand, in an empty directory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


def test_the_examples_run_in_order_and_once_more(
    blocks: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for begins in (True, False):
        names: dict[str, Any] = {}
        for block in blocks:
            exec(block, names)
        assert 'hint: at="params"' in capsys.readouterr().out
        assert names["params"]["kernel"].shape == (3, 4)
        assert names["manager"].steps() == [8, 9, 10]
        assert int(names["state"]["step"]) == 10
        assert ("step" in names) == begins  # nothing is left to train once the run is resumed
        assert names["linear"](jnp.ones((1, 3))).shape == (1, 4)


def test_the_first_example_is_short(blocks: list[str]) -> None:
    assert len([line for line in blocks[0].splitlines() if line]) <= 10
