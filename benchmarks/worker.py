"""The processes that do the work: one that saves, and one per library, which restores on command.

A library is a function that imports what it needs and returns `restore(path, template)`.
"""

from __future__ import annotations

import gc
import hashlib
import json
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from .workloads import WARM_UP, WORKLOADS, PyTree, Workload, values

Restore = Callable[[Path, PyTree], PyTree]


def _templax() -> Restore:
    import templax as tx

    return tx.restore


def _orbax_pytree() -> Restore:
    import orbax.checkpoint as ocp

    checkpointer = ocp.PyTreeCheckpointer()

    def restore(path: Path, template: PyTree) -> PyTree:
        args = ocp.checkpoint_utils.construct_restore_args(template)
        return checkpointer.restore(path, item=template, restore_args=args)

    return restore


def _orbax_standard() -> Restore:
    import orbax.checkpoint as ocp

    return ocp.StandardCheckpointer().restore


def _orbax_v1() -> Restore:
    from orbax.checkpoint.experimental import v1

    def restore(path: Path, template: PyTree) -> PyTree:
        return v1.load(path, template, checkpointable_name=None)

    return restore


LIBRARIES: dict[str, Callable[[], Restore]] = {
    "templax": _templax,
    "orbax-pytree": _orbax_pytree,
    "orbax-standard": _orbax_standard,
    "orbax-v1": _orbax_v1,
}


@dataclass(frozen=True)
class Sample:
    """One restore.

    Attributes:
        seconds: From the call until every leaf is ready.
        cpu_s: Of all threads, user and system.
        peak_bytes: Highest resident set during it, beyond that of the process before its first.
    """

    seconds: float
    cpu_s: float
    peak_bytes: int


def save(pipe: Connection, directory: Path, name: str) -> None:
    """Writes the checkpoint, the warm-up one and the leaves' hashes; sends (leaves, bytes)."""
    with _Reports(pipe):
        import jax

        for workload in (WARM_UP, WORKLOADS[name]):
            tree = values(workload.template())
            workload.save(directory / workload.name, tree)
            (directory / f"{workload.name}.json").write_text(json.dumps(_hashes(tree)))
        leaves = jax.tree.leaves(tree)
        pipe.send((len(leaves), sum(leaf.nbytes for leaf in leaves)))


def serve(pipe: Connection, directory: Path, name: str, library: str) -> None:
    """Restores at each command: `"check"` compares the result, `"time"` does not, `"stop"` ends."""
    with _Reports(pipe), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        restore = LIBRARIES[library]()
        _measure(restore, directory, WARM_UP, rss=0, check=True)
        gc.collect()
        rss = _status("VmRSS")
        while (command := pipe.recv()) != "stop":
            check = command == "check"
            pipe.send(_measure(restore, directory, WORKLOADS[name], rss=rss, check=check))


def _measure(
    restore: Restore, directory: Path, workload: Workload, *, rss: int, check: bool
) -> Sample:
    import jax

    path, template = directory / workload.name, workload.template()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    cpu, begin = time.process_time(), time.perf_counter()
    tree = jax.block_until_ready(restore(path, template))
    seconds, cpu_s = time.perf_counter() - begin, time.process_time() - cpu
    peak = _status("VmHWM") - rss
    if check:
        expected = json.loads((directory / f"{workload.name}.json").read_text())
        wrong = {key for key, value in _hashes(tree).items() ^ expected.items()}
        if wrong:
            raise AssertionError(f"{len(wrong)} leaves differ from what was saved: {min(wrong)}")
    return Sample(seconds, cpu_s, peak)


def _hashes(tree: PyTree) -> dict[str, str]:
    """Name → dtype, shape and hash of the bytes of each leaf, which must be a `jax.Array`."""
    import jax
    import numpy as np

    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not isinstance(leaf, jax.Array):
            raise AssertionError(f"{jax.tree_util.keystr(path)} is a {type(leaf).__name__}")
        digest = hashlib.sha256(np.asarray(leaf).reshape(-1).view(np.uint8)).hexdigest()
        found[jax.tree_util.keystr(path)] = f"{leaf.dtype}{leaf.shape} {digest}"
    return found


def _status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


class _Reports:
    """Sends the traceback of what ends a worker, as text: the exception may not pickle."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, Exception):
            self.pipe.send("".join(traceback.format_exception(error)))
        return isinstance(error, Exception)
