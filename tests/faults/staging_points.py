"""Kills a save, a removal or a withdrawal at each of its operations, and prints what is left.

Run as a program: it forks once per point, so it holds no JAX and no threads.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from templax.sources._disk import Disk
from templax.sources._leftovers import TEMPORARY
from templax.sources._staging import Staging, remove, stale, withdraw
from templax.testing._disks import FaultyDisk

OLD = {"a/b/data": b"old" * 5, "manifest": b"old"}
NEW = {
    "d/one": b"".join(bytes([i]) * 16 for i in range(6)),
    "d/two": b"2" * 40,
    "three": b"3" * 16,
    "marker": b"all of it",
}


def write(path: Path, content: dict[str, bytes]) -> None:
    """Without templax."""
    for key, data in content.items():
        (path / key).parent.mkdir(parents=True, exist_ok=True)
        (path / key).write_bytes(data)


def read(path: Path) -> dict[str, bytes] | None:
    if not os.path.lexists(path):
        return None
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def save(path: Path, disk: Disk, overwrite: bool) -> Staging:
    """Three files, the first in several writes out of order, and a small one."""
    with Staging(path, overwrite=overwrite, disk=disk) as staging:
        one = staging.create("d/one")
        for i in (4, 1, 0, 3, 2, 5):
            one.write(NEW["d/one"][16 * i : 16 * i + 16], 16 * i)
        one.sync()
        two = staging.create("d/two")
        two.write(memoryview(NEW["d/two"])[:20])
        two.write(memoryview(NEW["d/two"])[20:])
        two.close()
        staging.create("three").write(NEW["three"], 0)
        staging.put("marker", NEW["marker"])
        staging.commit()
    return staging


def prepare(root: Path, what: str) -> Path:
    """What is there before; the place of the checkpoint."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    if what == "save":
        return root / "made" / "NAME"
    write(root / "NAME", OLD)
    if what == "remove":
        killed(lambda: act("overwrite", root / "NAME", FaultyDisk(at=30)))
    return root / "NAME"


def act(what: str, path: Path, disk: Disk) -> None:
    if what == "withdraw":
        withdraw(path, disk)
    elif what == "remove":
        for left in stale(path):
            remove(left, disk)
    else:
        save(path, disk, what == "overwrite")


def name(content: dict[str, bytes] | None) -> str:
    found = [n for n, known in (("old", OLD), ("new", NEW), ("none", None)) if content == known]
    return found[0] if found else "mixed"


def killed(call: Callable[[], object]) -> int:
    """The signal that ended a process which did that and then came to its end, 0 for none."""
    child = os.fork()
    if child == 0:
        call()
        sys.exit()
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def point(root: Path, what: str, at: int, fault: Literal["kill", "half"]) -> dict[str, object]:
    path = prepare(root, what)
    signal = killed(lambda: act(what, path, FaultyDisk(at=at, fault=fault)))
    there = name(read(path))
    siblings = {str(p) for p in path.parent.glob("*") if p != path}
    left = stale(path)
    again = save(path, Disk(), overwrite=there != "none")
    for directory in left:
        remove(directory)
    return {
        "at": at,
        "signal": signal,
        "there": there,
        "temporary": all(TEMPORARY in sibling for sibling in siblings),
        "left": len(left),
        "stale_names_all": set(left) == siblings,
        "again": name(read(path)) if not again.left else "left",
        "cleared": [p.name for p in path.parent.iterdir()] == ["NAME"] and stale(path) == [],
    }


def points(root: Path, what: str) -> dict[str, object]:
    """What happens at every point of one of "save", "overwrite", "remove", "withdraw"."""
    dry = FaultyDisk()
    act(what, prepare(root, what), dry)
    operations = [operation.name for operation in dry.trace]
    kills = [point(root, what, i, "kill") for i in range(len(operations))]
    writes = [i for i, operation in enumerate(operations) if operation == "write"]
    return {
        "operations": operations,
        "kills": kills + [point(root, what, i, "half") for i in writes],
    }


if __name__ == "__main__":
    print(json.dumps(points(Path(sys.argv[1]), sys.argv[2])))
