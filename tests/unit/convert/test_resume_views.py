"""The conversion of a view that is killed goes on, if it is of the same mapping."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import conversion_kills
import templax as tx
from helpers import mark_slow
from templax.storage.leftovers import find_unfinished

PROGRAM = Path(conversion_kills.__file__)

RULES: dict[str, Any] = {
    "kernel": tx.From("w", "(h k) d -> d h k", h=4),
    "layers": tx.From("l.{i}", "a b -> i b a", scale=0.5),
    "qkv": tx.Concat([tx.From("q", "f d -> d f"), tx.From("k", "f d -> d f")], "d [f]"),
    "table": tx.From("e", "v d -> v d", pad={"v": -1}, v=30),
    "part.{i}": tx.From("p", "i d -> d"),
    "step": "step",
}


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shapes = {"w": (40, 32), "l.0": (8, 9), "l.1": (8, 9), "q": (24, 16), "k": (12, 16)}
    shapes |= {"e": (25, 16), "p": (3, 50)}
    tree: dict[str, Any] = {
        name: np.asarray(rng.normal(size=s), np.float32) for name, s in shapes.items()
    }
    tree["step"] = np.int64(7)
    tx.save(tmp_path / "source", tree)
    return tree


def make_expected(stored: dict[str, Any]) -> dict[str, np.ndarray]:
    layers = np.stack([stored["l.0"].T, stored["l.1"].T]) * np.float32(0.5)
    return {
        "kernel": stored["w"].reshape(4, 10, 32).transpose(2, 0, 1),
        "layers": layers,
        "qkv": np.concatenate([stored["q"], stored["k"]]).T,
        "table": np.pad(stored["e"], ((0, 5), (0, 0)), constant_values=-1),
        **{f"part.{i}": stored["p"][i] for i in range(3)},
        "step": stored["step"],
    }


def kill(tmp_path: Path, to: str, when: str, mapping: tx.Mapping) -> None:
    mapping.save(tmp_path / "map.json")
    arguments = [str(tmp_path / "source"), str(tmp_path / "made"), to, when, ""]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *arguments, str(tmp_path / "map.json")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert not (tmp_path / "made").exists()


def check(path: Path, stored: dict[str, Any]) -> None:
    expected = make_expected(stored)
    opened = tx.open(path)
    assert set(opened.leaves) == set(expected)
    template = {name: np.empty(v.shape, v.dtype) for name, v in expected.items()}
    made = tx.restore(opened, template)
    for name, values in expected.items():
        assert made[name].tobytes() == values.tobytes(), name
    assert find_unfinished(path) == []
    assert tx.verify(path).ok


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("to", ["orbax", *mark_slow("safetensors", "npz")])
def test_a_killed_conversion_of_a_view_is_resumed(
    stored: dict[str, Any], tmp_path: Path, to: Any
) -> None:
    """Killed while it writes, then while it goes on, then at each later stage."""
    mapping = tx.Mapping(RULES)
    for when in ("9", "8", "finish", "commit"):
        kill(tmp_path, to, when, mapping)
    view = tx.view(tmp_path / "source", mapping)
    done = tx.convert(view, tmp_path / "made", to=to, threads=1)
    assert done.restarted is None
    assert done.resumed_bytes >= done.value_bytes - 16
    check(tmp_path / "made", stored)


@pytest.mark.usefixtures("small")
@pytest.mark.slow
@pytest.mark.parametrize("when", [str(i) for i in range(0, 40, 5)])
@pytest.mark.parametrize("to", ["orbax", "safetensors", "npz"])
def test_a_conversion_of_a_view_killed_after_any_write_is_resumed(
    stored: dict[str, Any], tmp_path: Path, to: Any, when: str
) -> None:
    mapping = tx.Mapping(RULES)
    kill(tmp_path, to, when, mapping)
    tx.convert(tx.view(tmp_path / "source", mapping), tmp_path / "made", to=to, threads=1)
    check(tmp_path / "made", stored)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_another_mapping_of_the_same_names_and_shapes_begins_anew(
    stored: dict[str, Any], tmp_path: Path
) -> None:
    other = tx.Mapping(
        RULES
        | {
            "kernel": tx.From("w", "(k h) d -> d h k", h=4),
            "table": tx.From("e", "v d -> v d", pad="v", v=30),
        }
    )
    kill(tmp_path, "safetensors", "finish", other)
    view = tx.view(tmp_path / "source", tx.Mapping(RULES))
    done = tx.convert(view, tmp_path / "made", to="safetensors", threads=1)
    assert done.resumed_bytes == 0
    assert done.restarted is not None
    assert "read another source" in done.restarted
    check(tmp_path / "made", stored)
