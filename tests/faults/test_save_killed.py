"""`save` killed at any point, or stopped by a loss of power, leaves the old state or the new."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import templax as tx
from helpers import is_thorough
from templax._core import chunk_grid
from templax.storage.leftovers import find_abandoned
from templax.testing import FaultyDisk, assert_durable

PROGRAM = Path(__file__).with_name("save_kill_points.py")
points = SimpleNamespace(**runpy.run_path(str(PROGRAM)))


def _kill_saves(root: Path, every: int, *scenarios: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(root / "points"), str(every), *scenarios],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONWARNINGS": "error",  # including those of Python and JAX about forks
        },
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def _check(scenario: str, kills: list[dict[str, Any]]) -> Counter[str]:
    before = "none" if scenario in ("fresh", "file") else "old"
    name = "NAME.npz" if scenario in ("file", "npz") else "NAME"
    step = {"step": 7, "run": 8}.get(scenario)
    for kill in kills:
        state = kill["state"]
        assert state in (before, "new"), kill
        assert kill["all_temporary"], kill
        assert kill["all_reported"], kill
        assert kill["next_state"] == "next", kill
        assert kill["cleared"] == [str(step or name)], kill
        listed = [[7]] if step and state == "old" else [[step], [7, step]] if step else [[]]
        assert kill["listed"] in listed, kill
        # With threads, a save may take fewer operations than when they were counted.
        assert kill["signal"] == 9 or (scenario == "threads" and state == "new"), kill
    for fault in ("kill", "half") if scenario != "threads" else ():
        states = [kill["state"] for kill in kills if kill["fault"] == fault]
        assert states == sorted(states, key=[before, "new"].index)  # never back
    return Counter(kill["state"] for kill in kills)


@pytest.mark.slow
def test_a_save_killed_at_any_point_leaves_the_old_state_or_the_new(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Before an operation or in a write; what is left is listed, restored and saved over.

    At a third of all points, or at each of them if the tests are thorough.
    """
    every = 1 if is_thorough() else 3
    begin, total, names = time.perf_counter(), Counter[str](), Counter[str]()
    halves = (points.SCENARIOS[::2], (*points.SCENARIOS[1::2], "threads"))
    with ThreadPoolExecutor() as pool:
        parts = pool.map(
            lambda part: _kill_saves(tmp_path / str(part), every, *halves[part]), range(len(halves))
        )
        found = [each for part in parts for each in part]
    assert {each["scenario"] for each in found} == {*points.SCENARIOS, "threads"}
    for each in found:
        operations = each["operations"]
        if each["scenario"] != "threads":
            number = len(operations) + operations.count("write")
            assert len(each["kills"]) == number if every == 1 else len(each["kills"]) > number / 3
        total += _check(each["scenario"], each["kills"])
        names += Counter(operations[kill["at"]] for kill in each["kills"])
    assert set(names) == {name for name in vars(points.Disk) if not name.startswith("_")}
    assert total.total() > 1500 / every
    assert min(total["old"], total["none"], total["new"]) > 0
    seconds = time.perf_counter() - begin
    record_property(
        "summary",
        f"saves killed at {total.total():,} points in {seconds:.0f} s: all old or all new",
    )


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a small tree take many small writes."""
    for (module, name), size in points.SMALL.items():
        monkeypatch.setattr(module, name, size)
    chunk_grid.chunk_shape.cache_clear()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("scenario", [name for name in points.SCENARIOS if name != "exit"])
def test_a_save_survives_a_loss_of_power(scenario: str, tmp_path: Path) -> None:
    """Every file and directory is synced before the move, and the move before `save` returns."""
    place = points.prepare(scenario, tmp_path)
    path = {"step": place / "7", "run": place / "8"}.get(scenario, place)
    disk = FaultyDisk(disk=points.Unsynced())
    with points.use_disk(disk):
        points.save(scenario, place, 2)
    # A `Manager` also moves away the step that it deletes.
    trace = [o for o in disk.trace if not (o.name == "rename" and o.path == str(place / "7"))]
    assert_durable(trace, path)
    assert points.find_state(scenario, place) == "new"


def test_a_background_save_killed_from_outside_leaves_a_whole_state(tmp_path: Path) -> None:
    """At moments that do not depend on its operations."""
    tx.save(tmp_path / "ckpt", {"w": np.zeros(3_000_000, np.float32)})
    code = (
        "import sys, numpy as np, templax as tx\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    tree = {'w': np.ones(3_000_000, np.float32)}\n"
        "    tx.save(sys.argv[1], tree, overwrite=True, wait=False)\n"
    )
    for i in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "ckpt")], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.05 + 0.04 * i)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        found = tx.restore(tmp_path / "ckpt", {"w": np.zeros(3_000_000, np.float32)})["w"]
        assert found.min() == found.max()
        assert {str(p) for p in tmp_path.iterdir() if p.name != "ckpt"} == set(
            find_abandoned(tmp_path / "ckpt")
        )
    tx.save(tmp_path / "ckpt", {"w": np.ones(3)}, overwrite=True)
    assert os.listdir(tmp_path) == ["ckpt"]
