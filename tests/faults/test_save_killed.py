"""`save` killed or without power, anywhere: the old state or the new one."""

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
from templax import _layout
from templax.sources._staging import stale
from templax.testing import FaultyDisk, assert_durable

PROGRAM = Path(__file__).with_name("save_points.py")
points = SimpleNamespace(**runpy.run_path(str(PROGRAM)))


def _killed(root: Path, every: int, *whats: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(root / "points"), str(every), *whats],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONWARNINGS": "error",  # Python's and JAX's about forks among them
        },
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def _check(what: str, kills: list[dict[str, Any]]) -> Counter[str]:
    before = "none" if what == "fresh" else "old"
    step = {"step": 7, "run": 8}.get(what)
    for kill in kills:
        state = kill["there"]
        assert state in (before, "new"), kill
        assert kill["hidden"], kill
        assert kill["reported"], kill
        assert kill["again"] == "next", kill
        assert kill["cleared"] == [str(step or "NAME")], kill
        listed = [[7]] if step and state == "old" else [[step], [7, step]] if step else [[]]
        assert kill["listed"] in listed, kill
        # Threads may do less than when it was counted.
        assert kill["signal"] == 9 or (what == "threads" and state == "new"), kill
    for fault in ("kill", "half") if what != "threads" else ():
        states = [kill["there"] for kill in kills if kill["fault"] == fault]
        assert states == sorted(states, key=[before, "new"].index)  # no way back
    return Counter(kill["there"] for kill in kills)


def test_killed_here_and_there_it_is_the_old_state_or_the_new(tmp_path: Path) -> None:
    whats = (*points.WHATS, "threads")
    found = {each["what"]: each["kills"] for each in _killed(tmp_path, 25, *whats)}
    assert set(found) == set(whats)
    total = sum((_check(what, kills) for what, kills in found.items()), Counter[str]())
    assert total.total() > 50
    assert min(total["old"], total["none"]) > 0


@pytest.mark.slow
def test_killed_anywhere_it_is_the_old_state_or_the_new(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Before each operation, in the middle of each write; then listed, restored, saved again."""
    begin, total, names = time.perf_counter(), Counter[str](), Counter[str]()
    halves = (points.WHATS[::2], (*points.WHATS[1::2], "threads"))
    with ThreadPoolExecutor() as pool:
        parts = pool.map(
            lambda part: _killed(tmp_path / str(part), 1, *halves[part]), range(len(halves))
        )
        found = [each for part in parts for each in part]
    assert {each["what"] for each in found} == {*points.WHATS, "threads"}
    for each in found:
        operations = Counter(each["operations"])
        if each["what"] != "threads":
            assert len(each["kills"]) == operations.total() + operations["write"]
        total += _check(each["what"], each["kills"])
        names += operations
    assert set(names) == {name for name in vars(points.Disk) if not name.startswith("_")}
    assert total.total() > 1000
    assert min(total["old"], total["none"], total["new"]) > 0
    seconds = time.perf_counter() - begin
    record_property(
        "summary",
        f"saves killed at {total.total():,} points in {seconds:.0f} s: all old or all new",
    )


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many writes of few bytes."""
    for (module, name), size in points.SMALL.items():
        monkeypatch.setattr(module, name, size)
    _layout.chunk_shape.cache_clear()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("what", [what for what in points.WHATS if what != "exit"])
def test_a_save_survives_a_loss_of_power(what: str, tmp_path: Path) -> None:
    """Every file and directory is synced before the move, and the move before it returns."""
    place = points.prepare(what, tmp_path)
    path = {"step": place / "7", "run": place / "8"}.get(what, place)
    disk = FaultyDisk(disk=points.Unsynced())
    with points.everywhere(disk):
        points.save(what, place, 2)
    # The `Manager` opens and locks directories, and what was pruned moves away.
    trace = [o for o in disk.trace if not (o.name == "rename" and o.path == str(place / "7"))]
    assert_durable(trace, path)
    assert points.there(what, place) == "new"


def test_killed_in_the_background_while_the_program_goes_on(tmp_path: Path) -> None:
    """From outside, at moments that nobody chose."""
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
            stale(tmp_path / "ckpt")
        )
    tx.save(tmp_path / "ckpt", {"w": np.ones(3)}, overwrite=True)
    assert os.listdir(tmp_path) == ["ckpt"]
