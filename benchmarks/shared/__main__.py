"""Measures restores by jobs of several processes that need the same bytes.

Each round restores with `share_reads="never"`, `"always"` and `"auto"` in turns; the time of a job
is that of its slowest process. What XLA compiles for the moves is compiled anew each time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import statistics
import tempfile
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import templax as tx

from ..measure.processes import ChildProcess
from ..remote.store import RemoteStore
from .worker import LEAVES, make_shape, serve_job

MODES = ("never", "always", "auto")
CASES = ("columns", "replicas")
PLACES = ("raw", "zstd", "store")


HEADER = (
    "processes place  case      mode     seconds: median min   cpu s  read MiB  received"
    "      peak   planned"
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shared", description=__doc__)
    parser.add_argument("--processes", default="2,4", help="sizes of jobs; default: 2,4")
    parser.add_argument("--places", default=",".join(PLACES), help="default: all")
    parser.add_argument("--mib", type=int, default=256, help="size of the tree; default: 256")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--bandwidth", type=float, default=100.0, help="of the store, in MB/s")
    parser.add_argument("--latency", type=float, default=20.0, help="of the store, in ms")
    parser.add_argument("--dir", type=Path, help="where to save; default: the temporary directory")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.dir)))
        env: dict[str, str] = {}
        urls = dict(_save(directory, options, stack, env))
        print(HEADER)
        for count in map(int, options.processes.split(",")):
            with _run_job(count, options.mib, env) as children:
                for place, url in urls.items():
                    for case in CASES:
                        rows += _measure(children, place, url, case, options.rounds)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def _save(
    directory: Path, options: argparse.Namespace, stack: contextlib.ExitStack, env: dict[str, str]
) -> Iterator[tuple[str, str]]:
    """Saves the tree to each place, and yields the places with their URLs."""
    rng = np.random.default_rng(0)
    tree = {
        f"layer_{i}": rng.standard_normal(make_shape(options.mib), np.float32).astype(
            ml_dtypes.bfloat16
        )
        for i in range(LEAVES)
    }
    for place in options.places.split(","):
        path = str(directory / place)
        if place == "store":
            scratch = directory / "server"
            scratch.mkdir()
            store = RemoteStore(scratch, "seaweedfs")
            stack.callback(store.close)
            store.direct.upload(directory / "raw", "ckpt/")
            store.shape(latency_ms=options.latency, bytes_per_second=options.bandwidth * 1e6)
            env |= store.bucket.server.environment
            path = f"{store.bucket.url}/ckpt"
        else:
            tx.save(path, tree, compression="zstd" if place == "zstd" else None)
        yield place, path


@contextlib.contextmanager
def _run_job(count: int, mib: int, env: dict[str, str]) -> Generator[list[ChildProcess]]:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    children = [ChildProcess(serve_job, i, count, port, mib, env) for i in range(count)]
    try:
        for child in children:
            child.receive("ready")
        yield children
    finally:
        for child in children:
            child.pipe.send("stop")
        for child in children:
            child.end()


def _measure(
    children: Sequence[ChildProcess], place: str, url: str, case: str, rounds: int
) -> Iterator[dict[str, Any]]:
    """Restores in turns, the first round untimed."""
    found: dict[str, list[tuple[float, float]]] = {mode: [] for mode in MODES}
    facts: dict[str, list[int]] = {}
    for number in range(rounds + 1):
        for mode in MODES if number % 2 else MODES[::-1]:
            for child in children:
                child.pipe.send((url, case, mode))
            answers = [child.receive("done")[1:] for child in children]
            if number:
                times = max(each[0] for each in answers), sum(each[1] for each in answers)
                found[mode].append(times)
            facts[mode] = [max(each[i] for each in answers) for i in range(2, 7)]
    for mode in MODES:
        seconds, cpu = zip(*found[mode], strict=True)
        read, received, peak, planned, shared = facts[mode]
        row = {"processes": len(children), "place": place, "case": case, "mode": mode}
        row |= {"seconds": seconds, "cpu": cpu, "read_bytes": read, "received_bytes": received}
        row |= {"peak_bytes": peak, "planned_peak_bytes": planned, "shared": shared}
        middle, least = statistics.median(seconds), min(seconds)
        print(
            f"{len(children):>9} {place:6} {case:9} {mode:7} {middle:>11.3f} {least:>8.3f}"
            f" {statistics.median(cpu):>7.2f} {read / 2**20:>9.1f} {received / 2**20:>9.1f}"
            f" {peak / 2**20:>9.1f} {planned / 2**20:>9.1f}",
            flush=True,
        )
        yield row


if __name__ == "__main__":
    main()
