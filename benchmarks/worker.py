"""What runs in the other processes: one that saves, and one per library, which restores, or saves,
on command.

They answer with `(word, ...)`; what ends one of them comes as `("failed", reason)`, or as
`("wrong", reason)` when a result is not what was saved.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import json
import os
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from .files import removed
from .libraries import LIBRARIES, Job, Library
from .savers import SAVERS, Save
from .workloads import WARM_UP, WORKLOADS, PyTree, Workload, named, values


@dataclass(frozen=True)
class Sample:
    """One restore, or one save.

    Attributes:
        seconds: From the call until every leaf is ready, or until the save has ended; of a fresh
            process, of all of it.
        cpu_s: Of all threads, user and system.
        peak_rss_bytes: Highest resident set during it, beyond that of the process before its
            first; of a fresh process, in all.
        read_bytes: What its read calls returned, from the page cache or not (`rchar`).
        disk_bytes: What the kernel read from the disk for it, mapped files included.
        peak_anon_bytes: As `peak_rss_bytes`, of memory that no file backs. Of untimed restores.
        stall_s: Until the call returned. Of saves that go on behind it.
    """

    seconds: float
    cpu_s: float
    peak_rss_bytes: int
    read_bytes: int
    disk_bytes: int
    peak_anon_bytes: int | None = None
    stall_s: float | None = None


class Wrong(Exception):
    """A result that is not what was saved."""


def file_of(directory: Path, workload: Workload, kind: str) -> Path:
    return directory / f"{workload.name}.{kind}"


def job_for(directory: Path, workload: Workload, scale: float, library: Library) -> Job:
    path = file_of(directory, workload, library.kind(workload))
    return Job(path, workload, scale, library.uncast)


def save(pipe: Connection, directory: Path, name: str, scale: float, kinds: Sequence[str]) -> None:
    """Writes a workload and the warm-up in some kinds, and the hashes of what to expect."""
    workload = WORKLOADS[name]
    with _Answers(pipe, workload):
        import jax

        from .files import WRITERS

        warm_up = values(WARM_UP.stored(scale))
        template = workload.stored(scale)
        tree = values(template)
        for kind in kinds:
            WRITERS[kind](file_of(directory, WARM_UP, kind), warm_up)
            WRITERS[kind](file_of(directory, workload, kind), tree)
        _expect(directory, tree, template, uncast=True)
        wanted = workload.wanted(template)
        leaves = named(tree)
        asked = {key: leaves[key].astype(t.dtype) for key, t in named(wanted).items()}
        asked = jax.tree.unflatten(jax.tree.structure(wanted), list(asked.values()))
        _expect(directory, asked, wanted, uncast=False)
        count = len(jax.tree.leaves(wanted))
        pipe.send(("saved", count, sum(leaf.nbytes for leaf in jax.tree.leaves(asked))))


def serve(pipe: Connection, directory: Path, name: str, scale: float, library: str) -> None:
    """Restores at each command: `"check"` compares the result, `"time"` does not, `"stop"` ends.

    Before that it warms up, and at the first command, `"open"`, prepares the workload.
    """
    workload = WORKLOADS[name]
    with _Answers(pipe, workload), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = LIBRARIES[library]
        if not peer.limit:
            import jax

            warm_up = job_for(directory, replace(WARM_UP, kind=workload.kind), scale, peer)
            _ = warm_up.template
            jax.block_until_ready(peer.open(warm_up)())
        pipe.send(("warm",))
        if pipe.recv() == "stop":
            return
        job = job_for(directory, workload, scale, peer)
        nbytes = job.nbytes
        restore = peer.open(job)
        if peer.limit:
            _measure(restore, 0)  # it had no warm-up
        gc.collect()
        _trim()
        rss = status("VmRSS")
        pipe.send(("ready", nbytes, job.notes))
        while (command := pipe.recv()) != "stop":
            tree, sample = _measure(restore, rss)
            pipe.send(("sample", sample))
            if command == "check" and not peer.limit:
                compare(directory, tree, job)
            if command == "check":
                pipe.send(("checked",))
            del tree


def serve_saves(pipe: Connection, directory: Path, name: str, scale: float, library: str) -> None:
    """Saves to each path it gets; `"stop"` ends. The tree is there before the first.

    Before that it warms up, and at the first command, `"open"`, makes the tree.
    """
    workload = WORKLOADS[name]
    with _Answers(pipe, workload), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = SAVERS[library]
        small = directory / f"{WARM_UP.name}-{library}.{peer.kind}"
        _measure_save(peer.open(values(WARM_UP.stored(scale))), small, 0)
        removed(small)
        pipe.send(("warm",))
        if pipe.recv() == "stop":
            return
        tree = values(workload.stored(scale))
        save = peer.open(tree)
        gc.collect()
        _trim()
        rss = status("VmRSS")
        pipe.send(("ready", sum(leaf.nbytes for leaf in named(tree).values()), []))
        while (command := pipe.recv()) != "stop":
            pipe.send(("sample", _measure_save(save, Path(command), rss)))


def _measure_save(save: Save, path: Path, rss: int) -> Sample:
    def call() -> tuple[float | None, Any]:
        begin = time.perf_counter()
        wait = save(path)
        stall_s = time.perf_counter() - begin
        return (None, None) if wait is None else (stall_s, wait())

    (stall_s, _), sample = _measure(call, rss)
    return replace(sample, stall_s=stall_s)


def restore_once(
    pipe: Connection, directory: Path, name: str, scale: float, library: str, path: Path
) -> None:
    """Compares what a save left with what it was given."""
    workload = WORKLOADS[name]
    with _Answers(pipe, workload), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        job = Job(path, workload, scale, uncast=True)
        compare(directory, LIBRARIES[library].open(job)(), job)
        pipe.send(("checked",))


def _measure(call: Callable[[], Any], rss: int) -> tuple[Any, Sample]:
    import jax

    gc.collect()  # else a restore pays for one of everything before it
    _trim()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    before = io()
    cpu, begin = time.process_time(), time.perf_counter()
    result = jax.block_until_ready(call())
    seconds, cpu_s = time.perf_counter() - begin, time.process_time() - cpu
    peak, after = status("VmHWM") - rss, io()
    read, disk = (after[key] - before[key] for key in ("rchar", "read_bytes"))
    return result, Sample(seconds, cpu_s, peak, read, disk)


def _trim() -> None:
    """Gives free memory back, as if this were the first restore of the process.

    What glibc keeps of the restores before depends on the sizes of leaves and on which threads
    allocated: it would count as growth here, and spare the first touch of fresh memory there.
    """
    with contextlib.suppress(AttributeError):  # another libc
        ctypes.CDLL(None).malloc_trim(0)


def compare(directory: Path, tree: PyTree, job: Job) -> None:
    """Holds a result to what was saved: names, dtypes, shapes, shardings, hashes of the bytes.

    Raises:
        Wrong: Names a leaf.
    """
    import jax

    found, wanted = named(tree), named(job.template)
    for name, leaf in found.items():
        if not isinstance(leaf, jax.Array):
            raise Wrong(f"{name} is a {type(leaf).__name__}")
        sharding = wanted[name].sharding if name in wanted else leaf.sharding
        if not leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
            raise Wrong(f"{name} has sharding {leaf.sharding}, asked for {sharding}")
    expected = json.loads(_expected(directory, job.uncast).read_text())
    if wrong := {key for key, _ in _hashes(found).items() ^ expected.items()}:
        raise Wrong(f"{len(wrong)} leaves differ from what was saved: {min(wrong)}")


def _expected(directory: Path, uncast: bool) -> Path:
    return directory / ("stored.json" if uncast else "asked.json")


def _expect(directory: Path, tree: PyTree, template: PyTree, *, uncast: bool) -> None:
    import jax

    assert [leaf.dtype for leaf in jax.tree.leaves(tree)] == [
        leaf.dtype for leaf in jax.tree.leaves(template)
    ]
    _expected(directory, uncast).write_text(json.dumps(_hashes(named(tree))))


def _hashes(leaves: dict[str, Any]) -> dict[str, str]:
    """Name → dtype, shape and hash of the bytes."""
    import numpy as np

    def described(leaf: Any) -> str:
        digest = hashlib.sha256(np.asarray(leaf).reshape(-1).view(np.uint8)).hexdigest()
        return f"{leaf.dtype}{leaf.shape} {digest}"

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return dict(zip(leaves, pool.map(described, leaves.values()), strict=True))


def status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def io() -> dict[str, int]:
    """/proc/self/io: bytes of this process and its threads so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return {key: int(value) for key, value in (line.split(": ") for line in lines)}


class _Answers:
    """Sends what ends a worker as a line of text: the exception may not pickle."""

    def __init__(self, pipe: Connection, workload: Workload) -> None:
        self.pipe = pipe
        self.devices = workload.devices

    def __enter__(self) -> None:
        os.environ["XLA_FLAGS"] = xla_flags(self.devices)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, Exception):
            if os.environ.get("BENCHMARKS_TRACEBACK"):
                traceback.print_exception(error)
            self.pipe.send(said(error))
        return isinstance(error, Exception)


def said(error: Exception) -> tuple[str, str]:
    """An exception as an answer: its first line, which tables have room for."""
    if isinstance(error, Wrong):
        return "wrong", str(error)
    first = str(error).strip().partition("\n")[0]
    return "failed", f"{type(error).__name__}: {first}"[:200]


def xla_flags(devices: int) -> str:
    """XLA_FLAGS for a process with so many simulated CPU devices, to be set before JAX starts."""
    force = "--xla_force_host_platform_device_count"
    flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if not f.startswith(force)]
    return " ".join([*flags, f"{force}={devices}"])
