"""Kills `save` at each of its operations on the disk, and prints what is there then.

Run as a program: it forks once per point. A child saves numpy arrays only: nothing in it asks JAX's
threads, which a fork leaves behind.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np

import templax as tx
from templax import _layout, _save, _write
from templax._saving import Request
from templax.sources import Staging
from templax.sources._disk import Disk
from templax.sources._leftovers import TEMPORARY
from templax.sources._staging import stale
from templax.testing import FaultyDisk

WHATS = ("fresh", "overwrite", "background", "step", "zstd")


def small_pieces() -> None:
    """Many writes of few bytes in place of few of many."""
    _layout.CHUNK_BYTES = 256
    _write.SMALL_BYTES, _write.PACK_BYTES = 64, 256
    _write.RUN_BYTES, _write.STEP_BYTES, _write.SYNC_BYTES = 512, 128, 4096


def tree(state: int) -> dict[str, Any]:
    """Small leaves and some of several chunks; every value differs between states."""
    return {
        "step": state,
        "small": [np.full(5, 10 * state + i, np.int32) for i in range(30)],
        **{f"w{i}": np.arange(600, dtype=np.float32).reshape(60, 10) + state for i in range(4)},
        "text": f"state {state}",
    }


OLD, NEW, NEXT = (tree(state) for state in (1, 2, 3))


def save(path: Path, values: Any, disk: Disk, what: str) -> None:
    sink = Staging(path, overwrite=what != "fresh" or path.exists(), disk=disk)
    item = "default" if what == "step" else ""
    request = Request(
        metadata={},
        overwrite=True,
        level=1 if what == "zstd" else None,
        memory=1 << 30,
        threads=1,
        on_progress=None,
        metrics={"loss": 0.5} if item else None,
    )
    _save.start(sink, {item: values}, request, wait=what != "background").wait()


def there(path: Path) -> str:
    """Which state a user finds: every byte restored, and checked."""
    if not os.path.lexists(path):
        return "none"
    try:
        found = tx.restore(path, OLD, verify="required")
    except tx.TemplaxError as error:
        return f"damaged: {error}"
    known = {"old": OLD, "new": NEW, "next": NEXT}
    for name, values in known.items():
        if found["step"] == values["step"]:
            same = tx.fingerprint(found) == tx.fingerprint(values)
            return name if same and found["text"] == values["text"] else "mixed"
    return "mixed"


def prepare(root: Path, what: str) -> Path:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    path = root / ("7" if what == "step" else "NAME")
    if what != "fresh":
        save(path, OLD, Disk(), what)
    return path


def killed(path: Path, disk: FaultyDisk, what: str) -> bool:
    """Whether a process that saves with this disk was killed."""
    child = os.fork()
    if child == 0:
        try:
            save(path, NEW, disk, what)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def point(root: Path, what: str, at: int, fault: Literal["kill", "half"]) -> dict[str, Any]:
    path = prepare(root, what)
    was_killed = killed(path, FaultyDisk(at=at, fault=fault), what)
    state = there(path)
    siblings = sorted(p.name for p in path.parent.iterdir() if p != path)
    left = sorted(Path(p).name for p in stale(path))
    save(path, NEXT, Disk(), what)
    return {
        "at": at,
        "killed": was_killed,
        "there": state,
        "hidden": all(TEMPORARY in name for name in siblings),
        "reported": left == siblings,
        "again": there(path),
        "cleared": [p.name for p in path.parent.iterdir()] == [path.name],
    }


def points(root: Path, what: str, every: int = 1) -> dict[str, Any]:
    """What comes of a kill at every point, or at every so many."""
    small_pieces()
    dry = FaultyDisk()
    save(prepare(root, what), NEW, dry, what)
    names = [operation.name for operation in dry.trace]
    writes = [i for i, name in enumerate(names) if name == "write"]
    kills = [point(root, what, i, "kill") for i in range(0, len(names), every)]
    kills += [point(root, what, i, "half") for i in writes[::every]]
    return {"operations": names, "kills": kills}


if __name__ == "__main__":
    for category in (DeprecationWarning, RuntimeWarning):  # of Python, and of JAX
        warnings.filterwarnings("ignore", message=".*fork.*", category=category)
    print(json.dumps(points(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
