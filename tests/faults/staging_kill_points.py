"""Kills a save, a removal or a withdrawal at each of its operations, and prints what is left.

This is a program, not a test: it forks once per point, so it uses neither JAX nor threads.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from templax.storage.disk import Disk
from templax.storage.file_staging import FileStaging
from templax.storage.leftovers import delete_checkpoint, find_abandoned, remove_directory
from templax.storage.marks import TEMPORARY
from templax.storage.staging import Staging
from templax.testing.disks import FaultyDisk

OLD = {"a/b/data": b"old" * 5, "manifest": b"old"}
NEW = {
    "d/one": b"".join(bytes([i]) * 16 for i in range(6)),
    "d/two": b"2" * 40,
    "three": b"3" * 16,
    "marker": b"all of it",
}


NEW_FILE = bytes(range(48))


def write(path: Path, content: dict[str, bytes]) -> None:
    """Writes files without templax."""
    for key, data in content.items():
        (path / key).parent.mkdir(parents=True, exist_ok=True)
        (path / key).write_bytes(data)


def read(path: Path) -> dict[str, bytes] | None:
    if not os.path.lexists(path):
        return None
    if path.is_file():
        return {"": path.read_bytes()}
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def save(path: Path, disk: Disk, overwrite: bool) -> Staging:
    """Saves three files, the first in several writes out of order, and a small one."""
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


def save_file(path: Path, disk: Disk, overwrite: bool) -> Staging:
    """Saves a single file in several writes."""
    with FileStaging(path, overwrite=overwrite, disk=disk) as staging:
        file = staging.create("data")
        for i in (1, 0, 2):
            file.write(NEW_FILE[16 * i : 16 * i + 16], 16 * i)
        file.sync()
        staging.commit()
    return staging


def prepare(root: Path, action: str) -> Path:
    """Creates what exists before the action; returns the path of the checkpoint."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    if action in ("save", "file"):
        return root / "made" / "NAME"
    if action == "replace":
        (root / "NAME").write_bytes(b"old")
        return root / "NAME"
    write(root / "NAME", OLD)
    if action == "remove":
        run_in_fork(lambda: perform("overwrite", root / "NAME", FaultyDisk(at=30)))
    return root / "NAME"


def perform(action: str, path: Path, disk: Disk) -> None:
    if action == "withdraw":
        delete_checkpoint(path, disk)
    elif action == "remove":
        for left in find_abandoned(path):
            remove_directory(left, disk)
    elif action in ("file", "replace"):
        save_file(path, disk, action == "replace")
    else:
        save(path, disk, action == "overwrite")


def name_state(content: dict[str, bytes] | None) -> str:
    known = (("old", OLD), ("new", NEW), ("none", None), ("old", {"": b"old"}))
    found = [n for n, k in (*known, ("new", {"": NEW_FILE})) if content == k]
    return found[0] if found else "mixed"


def run_in_fork(call: Callable[[], object]) -> int:
    """Calls it in a child process, which then exits; returns the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        call()
        sys.exit()
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def kill_at(root: Path, action: str, at: int, fault: Literal["kill", "half"]) -> dict[str, object]:
    path = prepare(root, action)
    signal = run_in_fork(lambda: perform(action, path, FaultyDisk(at=at, fault=fault)))
    state = name_state(read(path))
    siblings = {str(p) for p in path.parent.glob("*") if p != path}
    abandoned = find_abandoned(path)
    again = save_file if action in ("file", "replace") else save
    staging = again(path, Disk(), overwrite=state != "none")
    for directory in abandoned:
        remove_directory(directory)
    return {
        "at": at,
        "signal": signal,
        "state": state,
        "all_temporary": all(TEMPORARY in sibling for sibling in siblings),
        "abandoned": len(abandoned),
        "all_reported": set(abandoned) == siblings,
        "next_state": name_state(read(path)) if not staging.not_removed else "left",
        "cleared": [p.name for p in path.parent.iterdir()] == ["NAME"]
        and find_abandoned(path) == [],
    }


def kill_everywhere(root: Path, action: str) -> dict[str, object]:
    """Kills "save", "overwrite", "remove" or "withdraw" before each operation and in each write."""
    dry = FaultyDisk()
    perform(action, prepare(root, action), dry)
    operations = [operation.name for operation in dry.trace]
    kills = [kill_at(root, action, i, "kill") for i in range(len(operations))]
    writes = [i for i, operation in enumerate(operations) if operation == "write"]
    return {
        "operations": operations,
        "kills": kills + [kill_at(root, action, i, "half") for i in writes],
    }


if __name__ == "__main__":
    print(json.dumps(kill_everywhere(Path(sys.argv[1]), sys.argv[2])))
