"""Kills saves at each of their operations on the disk, and prints what a user finds then.

Run as a program. It forks once per point, so it restores nothing: that would start JAX's threads,
which a fork leaves behind. A second process looks, which is this program, too.
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
from templax import _layout, _steps, _write
from templax.sources import open_source
from templax.sources._disk import DISK, Disk
from templax.sources._leftovers import TEMPORARY, temporary
from templax.sources._staging import stale
from templax.testing import FaultyDisk

killed = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).with_name("staging_points.py")))
).killed

WHATS = ("fresh", "overwrite", "background", "exit", "zstd", "many", "left", "step", "run")
"""`background` waits for a save with `wait=False`; `exit` comes to the end of its program instead;
`left` replaces a checkpoint beside which killed saves left theirs; `step` is one of a `Manager`,
and `run` another one, after which the first is deleted."""

STEP = 7
SMALL = {
    (_layout, "CHUNK_BYTES"): 256,
    (_write, "SMALL_BYTES"): 64,
    (_write, "PACK_BYTES"): 256,
    (_write, "RUN_BYTES"): 512,
    (_write, "STEP_BYTES"): 128,
}
"""Sizes that make many writes of few bytes in place of few of many."""


class Unsynced(Disk):
    """A disk that is never waited for: a kill, other than a loss of power, takes nothing along."""

    def fsync(self, fd: int) -> None:
        pass


def install(disk: Disk) -> None:
    """From now on, everything that templax does to the file system goes through this disk."""
    methods = [name for name in vars(Disk) if not name.startswith("_")]
    vars(DISK).update({name: getattr(disk, name) for name in methods})


@contextmanager
def everywhere(disk: Disk) -> Generator[None, None, None]:
    """Until the end of the block only."""
    install(disk)
    try:
        yield
    finally:
        vars(DISK).clear()


def tree(state: int, many: bool = False) -> dict[str, Any]:
    """Small leaves and some of several chunks; every value differs between states."""
    number, rows = (150, 20) if many else (6, 40)
    return {
        "step": state,
        "small": [np.full(5, 1000 * state + i, np.int32) for i in range(number)],
        "text": f"state {state}",
        **{
            f"w{i}": np.arange(10 * rows, dtype=np.float32).reshape(rows, 10) + state
            for i in range(2)
        },
    }


def save(what: str, path: Path, state: int, threads: int = 1) -> None:
    """Saves state 1, 2 or 3; the last over whatever is there."""
    values = tree(state, what == "many")
    if what in ("step", "run"):
        step = STEP + (what == "run" and state > 1)
        with tx.Manager(path, keep=1) as manager:
            manager.save(step, values, metrics={"loss": 0.5}, overwrite=True, threads=threads)
        return
    compression = "zstd" if what == "zstd" else None
    goes_on = state == 2 and what in ("background", "exit")
    overwrite = what != "fresh" or state == 3
    saved = tx.save(
        path,
        values,
        overwrite=overwrite,
        wait=not goes_on,
        compression=compression,
        threads=threads,
    )
    if what != "exit":
        saved.wait()


def prepare(what: str, root: Path) -> Path:
    """What is there before; the place of the checkpoint, or of the run."""
    path = root / "at" / ("made/NAME" if what == "fresh" else "NAME")
    if not (root / "before").exists():
        (root / "at").mkdir(parents=True)
        if what != "fresh":
            save(what, path, 1)
        if what == "left":
            shutil.copytree(path, temporary(str(path)))
            shutil.copytree(path / "d", temporary(str(path)))
        (root / "at").rename(root / "before")
    shutil.rmtree(root / "at", ignore_errors=True)
    shutil.copytree(root / "before", root / "at")
    return path


def run(disk: Disk, what: str, path: Path, threads: int = 1) -> int:
    """The signal that ended a process which saved the new state through a disk, 0 for none."""

    def program() -> None:
        warnings.simplefilter("ignore", ResourceWarning)  # of what is open in the one that forks
        install(disk)
        save(what, path, 2, threads)

    return killed(program)


def count(what: str, path: Path, threads: int = 1) -> list[str]:
    """The operations of a save."""
    disk = FaultyDisk(disk=Unsynced())
    with everywhere(disk):
        save("background" if what == "exit" else what, path, 2, threads)
    return [operation.name for operation in disk.trace]


# --- what a user finds


def bits(found: Any) -> list[tuple[str, bytes]]:
    arrays = map(np.asarray, jax.tree.leaves(found))
    return [(array.dtype.str, array.tobytes()) for array in arrays]


def there(what: str, path: Path) -> str:
    """Which state is restored, bit for bit."""
    template = tree(0, what == "many")
    options: Any = {"verify": "required", "threads": 1}
    try:
        if what in ("step", "run"):
            manager = tx.Manager(path)
            found = manager.restore(template, **options) if manager.steps() else None
        else:
            found = tx.restore(path, template, **options) if os.path.lexists(path) else None
    except tx.TemplaxError as error:
        return f"damaged: {error}"
    if found is None:
        return "none"
    states = {"old": 1, "new": 2, "next": 3}
    same = [name for name, n in states.items() if bits(found) == bits(tree(n, what == "many"))]
    return same[0] if same else "mixed"


def look(what: str, path: Path) -> dict[str, Any]:
    """What is there, visible or not; then saves again."""
    state = there(what, path)
    places = [path / str(STEP), path / str(STEP + 1)] if what in ("step", "run") else [path]
    parent = places[0].parent
    siblings = {str(p) for p in parent.glob("[!.]*") if p not in places}
    left = {directory for place in places for directory in stale(place)}
    steps = _steps.run(open_source(parent)) if parent.exists() else None
    with everywhere(Unsynced()):
        save(what, path, 3)
    return {
        "there": state,
        "listed": [] if steps is None else list(steps.committed),
        "hidden": all(TEMPORARY in sibling for sibling in siblings),
        "left": len(left),
        "reported": left == siblings,
        "again": there(what, path),
        "cleared": [p.name for p in parent.glob("[!.]*")],
    }


# --- the two processes


@contextmanager
def looking() -> Iterator[Any]:
    """What `look` says, of another process."""
    process = subprocess.Popen(
        [sys.executable, __file__, "look"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def ask(what: str, path: Path) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([what, str(path)]) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield ask
    process.communicate()


def point(
    ask: Any, root: Path, what: str, at: int, fault: Literal["kill", "half"], threads: int = 1
) -> dict[str, Any]:
    path = prepare(what, root)
    disk = FaultyDisk(at=at, fault=fault, disk=Unsynced())
    signal = run(disk, what, path, threads)
    return {"at": at, "fault": fault, "signal": signal, **ask(what, path)}


def points(ask: Any, root: Path, what: str, every: int) -> dict[str, Any]:
    """What comes of a kill at every point, or at every so many."""
    names = count(what, prepare(what, root))
    writes = [i for i, name in enumerate(names) if name == "write"]
    kills = [point(ask, root, what, i, "kill") for i in range(0, len(names), every)]
    kills += [point(ask, root, what, i, "half") for i in writes[::every]]
    return {"what": what, "operations": names, "kills": kills}


def anywhere(ask: Any, root: Path, number: int) -> dict[str, Any]:
    """What comes of kills at random points, while four threads write and one syncs."""
    _write.SYNC_BYTES = 1024
    what, chosen = "overwrite", random.Random(0)
    names = count(what, prepare(what, root), threads=4)
    ats = [chosen.randrange(len(names)) for _ in range(number)]
    kills = [point(ask, root, what, at, "half" if at % 2 else "kill", threads=4) for at in ats]
    return {"what": "threads", "operations": names, "kills": kills}


def main() -> None:
    for (module, name), size in SMALL.items():
        setattr(module, name, size)
    if sys.argv[1] == "look":
        for line in sys.stdin:
            what, path = json.loads(line)
            print(json.dumps(look(what, Path(path))), flush=True)
        return
    root, every, *whats = sys.argv[1:]
    jax.process_count = lambda: 1  # JAX's own starts all of its threads
    gc.freeze()
    with looking() as ask:
        for what in whats:
            place = Path(root) / what
            if what == "threads":
                found = anywhere(ask, place, 200 // int(every))
            else:
                found = points(ask, place, what, int(every))
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
