"""Runs that begin with a view, and steps that are shown through a mapping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import templax as tx

W = np.arange(12, dtype=np.float32).reshape(3, 4)
TURNED = tx.Mapping({"kernel": tx.From("weight", "o i -> i o")})
TEMPLATE: dict[str, Any] = {"kernel": np.empty((4, 3), np.float32)}


@pytest.fixture
def torch(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    tx.save(path, {"weight": W})
    return path


def test_a_run_begins_with_a_view_and_goes_on_with_its_steps(torch: Path, tmp_path: Path) -> None:
    with tx.Manager(tmp_path / "run") as manager:
        state = manager.restore(TEMPLATE, missing=tx.view(torch, TURNED))
        np.testing.assert_array_equal(state["kernel"], W.T)
        manager.save(1, {"kernel": state["kernel"] + 1})
        state = manager.restore(TEMPLATE, missing=tx.view(torch, TURNED))
        np.testing.assert_array_equal(state["kernel"], W.T + 1)


def test_a_view_supplies_what_a_step_lacks(torch: Path, tmp_path: Path) -> None:
    template = TEMPLATE | {"step": 0}
    with tx.Manager(tmp_path / "run") as manager:
        manager.save(1, {"step": 1})
        for missing in (tx.view(torch, TURNED), {"ker*": tx.view(torch, TURNED)}):
            state = manager.restore(template, missing=missing)
            assert state["step"] == 1
            np.testing.assert_array_equal(state["kernel"], W.T)


@pytest.mark.parametrize("wrap", ["view", "pattern", "merge", "catalog", "view of a catalog"])
def test_a_run_begins_with_a_view_of_a_file_that_lies_in_its_own_directory(
    wrap: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    file = run / "model.safetensors"
    tx.save(file, {"weight": W})
    with tx.Manager(run) as manager:
        with pytest.raises(tx.UnknownFormat, match="nothing like one"):
            manager.restore(TEMPLATE, missing="keep")
        missing: Any = {
            "view": tx.view(file, TURNED),
            "pattern": {"*": tx.view(file, TURNED)},
            "merge": tx.view(tx.merge(file), TURNED),
            "catalog": tx.open(tx.view(file, TURNED)),
            "view of a catalog": tx.view(tx.open(file), TURNED),
        }[wrap]
        made = manager.restore(TEMPLATE, missing=missing)["kernel"]
        np.testing.assert_array_equal(made, W.T)


def test_a_step_is_restored_through_a_mapping(tmp_path: Path) -> None:
    with tx.Manager(tmp_path / "run") as manager:
        manager.save(1, {"weight": W})
        manager.save(2, {"weight": W + 1})
        for step in (1, 2):
            view = tx.view(manager.path(step), TURNED)
            np.testing.assert_array_equal(tx.restore(view, TEMPLATE)["kernel"], (W + step - 1).T)


def test_damage_of_what_a_view_shows_is_not_blamed_on_a_step(torch: Path, tmp_path: Path) -> None:
    data = bytearray(torch.read_bytes())
    data[data.index(W.tobytes())] ^= 1
    torch.write_bytes(data)
    with tx.Manager(tmp_path / "run") as manager:
        manager.save(1, {"step": 1})
        template, missing = TEMPLATE | {"step": 0}, tx.view(torch, TURNED)
        for fallback in (False, True):
            with pytest.raises(tx.Corrupted, match="at `kernel`, stored as `weight`") as caught:
                manager.restore(template, missing=missing, fallback=fallback)
            assert "Step 1 is damaged" not in str(caught.value)
        assert manager.steps() == [1]
