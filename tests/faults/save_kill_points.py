"""Kills saves at each of their operations on the disk, and prints what a user finds afterwards.

This is a program, not a test. It forks once per point, so it restores nothing: JAX would start
threads, which do not survive a fork. A second process, which runs this program too, restores.
"""

from __future__ import annotations

import gc
import json
import os
import random
import runpy
import shutil
import subprocess
import sys
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import jax
import numpy as np

import templax as tx
from templax._core import chunk_grid
from templax._runs import steps as steps_module
from templax._save import jobs, writer
from templax.storage import open_source
from templax.storage.disk import DISK, Disk
from templax.storage.leftovers import TEMPORARY, find_abandoned, temporary_path
from templax.testing import FaultyDisk

run_in_fork = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).with_name("staging_kill_points.py")))
).run_in_fork

SCENARIOS = (
    *("fresh", "overwrite", "background", "exit", "zstd", "many", "left", "step", "run"),
    *("file", "npz"),
)
"""What is saved, and over what.

`background` waits for a save with `wait=False`, and `exit` ends its program instead. `left`
replaces a checkpoint that has temporary directories of killed saves beside it. `step` saves a step
of a `Manager` again, and `run` another step, after which the first is deleted. `file` saves a
single file, and `npz` replaces one.
"""

PLACES = {"fresh": "made/NAME", "file": "NAME.npz", "npz": "NAME.npz"}

COMMITS = ("rename", "exchange", "link")
"""Operations that move something to its final place."""

STEP = 7
SMALL = {
    (chunk_grid, "CHUNK_BYTES"): 256,
    (jobs, "SMALL_BYTES"): 64,
    (jobs, "PACK_BYTES"): 256,
    (jobs, "RUN_BYTES"): 512,
    (writer, "STEP_BYTES"): 128,
}
"""Sizes that make a small tree take many small writes."""


class Unsynced(Disk):
    """A disk without syncs: a kill, unlike a loss of power, loses nothing that was written."""

    def fsync(self, fd: int) -> None:
        pass


def install_disk(disk: Disk) -> None:
    """Sends all that templax does to the file system through this disk from now on."""
    methods = [name for name in vars(Disk) if not name.startswith("_")]
    vars(DISK).update({name: getattr(disk, name) for name in methods})


@contextmanager
def use_disk(disk: Disk) -> Generator[None, None, None]:
    """Sends it through this disk until the end of the block."""
    install_disk(disk)
    try:
        yield
    finally:
        vars(DISK).clear()


def tree(state: int, scenario: str = "") -> dict[str, Any]:
    """Small leaves and leaves of several chunks; each differs between states."""
    number, rows = (150, 20) if scenario == "many" else (6, 40)
    return {
        "step": state,
        "small": [np.full(5, 1000 * state + i, np.int32) for i in range(number)],
        **({} if scenario in ("file", "npz") else {"text": f"state {state}"}),
        **{
            f"w{i}": np.arange(10 * rows, dtype=np.float32).reshape(rows, 10) + state
            for i in range(2)
        },
    }


def save(scenario: str, path: Path, state: int, threads: int = 1) -> None:
    """Saves state 1, 2 or 3; the last replaces whatever exists."""
    values = tree(state, scenario)
    if scenario in ("step", "run"):
        step = STEP + (scenario == "run" and state > 1)
        with tx.Manager(path, keep=1) as manager:
            manager.save(step, values, metrics={"loss": 0.5}, overwrite=True, threads=threads)
        return
    compression = "zstd" if scenario == "zstd" else None
    in_background = state == 2 and scenario in ("background", "exit")
    overwrite = scenario not in ("fresh", "file") or state == 3
    saved = tx.save(
        path,
        values,
        overwrite=overwrite,
        wait=not in_background,
        compression=compression,
        threads=threads,
    )
    if scenario != "exit":
        saved.wait()


def prepare(scenario: str, root: Path) -> Path:
    """Creates what exists before the save; returns the path of the checkpoint or the run."""
    path = root / "at" / PLACES.get(scenario, "NAME")
    if not (root / "before").exists():
        (root / "at").mkdir(parents=True)
        if scenario not in ("fresh", "file"):
            save(scenario, path, 1)
        if scenario == "left":
            shutil.copytree(path, temporary_path(str(path)))
            shutil.copytree(path / "d", temporary_path(str(path)))
        (root / "at").rename(root / "before")
    shutil.rmtree(root / "at", ignore_errors=True)
    shutil.copytree(root / "before", root / "at")
    return path


def kill_save(disk: Disk, scenario: str, path: Path, threads: int = 1) -> int:
    """Saves state 2 through a disk in a child process; the signal that ended it, or 0."""

    def program() -> None:
        warnings.simplefilter("ignore", ResourceWarning)  # about what the parent has open
        install_disk(disk)
        save(scenario, path, 2, threads)

    return run_in_fork(program)


def list_operations(scenario: str, path: Path, threads: int = 1) -> list[str]:
    """The names of the operations of a whole save."""
    disk = FaultyDisk(disk=Unsynced())
    with use_disk(disk):
        save("background" if scenario == "exit" else scenario, path, 2, threads)
    return [operation.name for operation in disk.trace]


def leaf_bytes(found: Any) -> list[tuple[str, bytes]]:
    arrays = map(np.asarray, jax.tree.leaves(found))
    return [(array.dtype.str, array.tobytes()) for array in arrays]


def find_state(scenario: str, path: Path) -> str:
    """The state that is restored bit for bit: "none", "old", "new", "next", or what is wrong."""
    template = tree(0, scenario)
    options: Any = {"verify": "required", "threads": 1}
    try:
        if scenario in ("step", "run"):
            manager = tx.Manager(path)
            found = manager.restore(template, **options) if manager.steps() else None
        else:
            found = tx.restore(path, template, **options) if os.path.lexists(path) else None
    except tx.TemplaxError as error:
        return f"damaged: {error}"
    if found is None:
        return "none"
    states = {"old": 1, "new": 2, "next": 3}
    leaves = leaf_bytes(found)
    same = [name for name, n in states.items() if leaves == leaf_bytes(tree(n, scenario))]
    return same[0] if same else "mixed"


def inspect(scenario: str, path: Path) -> dict[str, Any]:
    """Reports what the killed save left, saves state 3, and reports again."""
    state = find_state(scenario, path)
    places = [path / str(STEP), path / str(STEP + 1)] if scenario in ("step", "run") else [path]
    parent = places[0].parent
    siblings = {str(p) for p in parent.glob("[!.]*") if p not in places}
    abandoned = {directory for place in places for directory in find_abandoned(place)}
    steps = steps_module.read_run(open_source(parent)) if parent.exists() else None
    with use_disk(Unsynced()):
        save(scenario, path, 3)
    return {
        "state": state,
        "listed": [] if steps is None else list(steps.committed),
        "all_temporary": all(TEMPORARY in sibling for sibling in siblings),
        "abandoned": len(abandoned),
        "all_reported": abandoned == siblings,
        "next_state": find_state(scenario, path),
        "cleared": [p.name for p in parent.glob("[!.]*")],
    }


@contextmanager
def run_inspector() -> Iterator[Any]:
    """Starts a process that answers with the result of `inspect`."""
    process = subprocess.Popen(
        [sys.executable, __file__, "inspect"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def ask(scenario: str, path: Path) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([scenario, str(path)]) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield ask
    process.communicate()


def kill_at(
    ask: Any, root: Path, scenario: str, at: int, fault: Literal["kill", "half"], threads: int = 1
) -> dict[str, Any]:
    path = prepare(scenario, root)
    disk = FaultyDisk(at=at, fault=fault, disk=Unsynced())
    signal = kill_save(disk, scenario, path, threads)
    return {"at": at, "fault": fault, "signal": signal, **ask(scenario, path)}


def kill_everywhere(ask: Any, root: Path, scenario: str, every: int) -> dict[str, Any]:
    """Kills saves before each operation and in each write, or at one in `every` of these points.

    Those around a commit are never left out. Most scenarios have the same operations, so that each
    begins with another one.
    """
    names = list_operations(scenario, prepare(scenario, root))
    writes = [i for i, name in enumerate(names) if name == "write"]
    first = SCENARIOS.index(scenario) % every
    commits = {i + after for i, name in enumerate(names) for after in (0, 1) if name in COMMITS}
    chosen = {*range(first, len(names), every), *commits} & {*range(len(names))}
    kills = [kill_at(ask, root, scenario, i, "kill") for i in sorted(chosen)]
    kills += [kill_at(ask, root, scenario, i, "half") for i in writes[first::every]]
    return {"scenario": scenario, "operations": names, "kills": kills}


def kill_at_random(ask: Any, root: Path, number: int) -> dict[str, Any]:
    """Kills saves at random points, while four threads write and one syncs."""
    writer.SYNC_BYTES = 1024
    scenario, chosen = "overwrite", random.Random(0)
    names = list_operations(scenario, prepare(scenario, root), threads=4)
    ats = [chosen.randrange(len(names)) for _ in range(number)]
    kills = [
        kill_at(ask, root, scenario, at, "half" if at % 2 else "kill", threads=4) for at in ats
    ]
    return {"scenario": "threads", "operations": names, "kills": kills}


def main() -> None:
    for (module, name), size in SMALL.items():
        setattr(module, name, size)
    if sys.argv[1] == "inspect":
        for line in sys.stdin:
            scenario, path = json.loads(line)
            print(json.dumps(inspect(scenario, Path(path))), flush=True)
        return
    root, every, *scenarios = sys.argv[1:]
    jax.process_count = lambda: 1  # that of JAX starts its threads
    gc.freeze()
    with run_inspector() as ask:
        for scenario in scenarios:
            place = Path(root) / scenario
            if scenario == "threads":
                found = kill_at_random(ask, place, 200 // int(every))
            else:
                found = kill_everywhere(ask, place, scenario, int(every))
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
