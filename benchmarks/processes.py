"""What saves and restores cost in jobs of several processes, of two versions of templax.

    python -m benchmarks.processes --before ../other/src --processes 1,2,4 --rounds 20

One job per version runs all the time. Each round makes every call once in either job, in turns, so
that other work on the machine slows both down alike. A sample is the time of the slowest process.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_LEAVES, _ROWS, _MIB = 20, 64, 1 << 20

_IMPORT = (
    "import time; t = time.perf_counter(); import templax;"
    "templax.save; templax.restore; print(time.perf_counter() - t)"
)


def _make_trees(jax: Any) -> dict[str, Any]:
    """The trees, sharded over one device of each process."""
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("x",)), PartitionSpec("x"))

    def make(rows: int, columns: int) -> Any:
        values = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
        return jax.make_array_from_callback(values.shape, sharding, lambda i: values[i])

    small = {f"leaf{i}": make(_ROWS, 4) for i in range(_LEAVES)}
    return {"small": small, "64 MiB": {"w": make(64, _MIB // 4)}}


def _serve(directory: str) -> None:
    """Makes one call for each line of the input, and prints how long it took."""
    index, count = int(os.environ["BENCH_INDEX"]), int(os.environ["BENCH_COUNT"])
    import jax

    if count > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(os.environ["BENCH_ADDRESS"], count, index)
    import templax as tx

    calls: dict[str, Callable[[], float]] = {}

    def add(name: str, tree: Any) -> None:
        template = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), tree
        )
        slug = name.replace(" ", "")
        path, root = f"{directory}/{slug}", f"{directory}/run-{slug}"
        manager = tx.Manager(root, keep=2)
        steps = iter(range(1 << 30))

        def clock(call: Callable[[], Any]) -> float:
            begin = time.perf_counter()
            result = call()
            seconds = time.perf_counter() - begin
            if isinstance(result, tx.Saved):
                result.wait()
            return seconds

        def save(*, wait: bool) -> float:
            return clock(lambda: tx.save(path, tree, overwrite=True, wait=wait))

        calls[f"{name}: tx.save, whole"] = lambda: save(wait=True)
        calls[f"{name}: tx.save(wait=False), stall"] = lambda: save(wait=False)
        calls[f"{name}: tx.restore"] = lambda: clock(lambda: tx.restore(path, template))
        calls[f"{name}: Manager.save, whole"] = lambda: clock(
            lambda: manager.save(next(steps), tree, wait=True)
        )
        calls[f"{name}: Manager.save(wait=False), stall"] = lambda: clock(
            lambda: manager.save(next(steps), tree, wait=False)
        )
        calls[f"{name}: Manager.restore"] = lambda: clock(lambda: manager.restore(template))

    for name, tree in _make_trees(jax).items():
        add(name, tree)
    print(json.dumps(list(calls)), flush=True)
    for line in sys.stdin:
        print(calls[line.rstrip("\n")](), flush=True)
    os._exit(0)  # JAX's own shutdown would wait for the other processes


class _Job:
    """The processes of one version."""

    def __init__(self, source: str, count: int, directory: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        # The benchmark itself by its file, so that both versions are measured by the same code.
        command = [sys.executable, __file__, "--serve", directory]
        common = os.environ | {
            "PYTHONPATH": source,
            "JAX_PLATFORMS": "cpu",
            "BENCH_COUNT": str(count),
            "BENCH_ADDRESS": f"127.0.0.1:{port}",
        }
        self._processes = [
            subprocess.Popen(
                command,
                env=common | {"BENCH_INDEX": str(i)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=None if os.environ.get("BENCH_VERBOSE") else subprocess.DEVNULL,
                text=True,
            )
            for i in range(count)
        ]
        self.calls: list[str]
        self.calls, *_ = [json.loads(self._read(p)) for p in self._processes]

    def _read(self, process: subprocess.Popen[str]) -> str:
        """The next line that is not a word of Gloo's."""
        assert process.stdout is not None
        while line := process.stdout.readline():
            if not line.startswith("[Gloo]"):
                return line
        raise RuntimeError("a process ended; BENCH_VERBOSE=1 shows what it says")

    def measure(self, call: str) -> float:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{call}\n")
            process.stdin.flush()
        return max(float(self._read(p)) for p in self._processes)

    def close(self) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            process.wait()


def _measure_import(source: str) -> float:
    command = [sys.executable, "-c", _IMPORT]
    env = os.environ | {"PYTHONPATH": source}
    return float(subprocess.run(command, env=env, check=True, capture_output=True).stdout)


def _print_row(name: str, before: list[float], after: list[float]) -> None:
    a, b = statistics.median(before), statistics.median(after)
    low, ratio, high = statistics.quantiles([y / x for x, y in zip(before, after, strict=True)])
    print(
        f"| {name} | {a * 1e3:.1f} | {b * 1e3:.1f} | {b / a:.2f} |"
        f" {ratio:.2f} [{low:.2f}–{high:.2f}] |",
        flush=True,
    )


def _compare(sources: list[str], counts: list[int], rounds: int, directory: str | None) -> None:
    samples: list[list[float]]
    for count in counts:
        print(f"\n{count} process(es); load {os.getloadavg()[0]:.1f}\n")
        print("| Call | before, ms | after, ms | ratio of medians | median ratio [quartiles] |")
        print("|---|---:|---:|---:|---:|", flush=True)
        if count == 1:
            samples = [[], []]
            for i in range(rounds + 1):
                for which, source in enumerate(sources):
                    seconds = _measure_import(source)
                    if i > 0:
                        samples[which].append(seconds)
            _print_row("import templax", *samples)
        with tempfile.TemporaryDirectory(dir=directory) as place:
            paths = [str(Path(place, str(i))) for i in range(len(sources))]
            for path in paths:
                Path(path).mkdir()
            jobs = [_Job(s, count, p) for s, p in zip(sources, paths, strict=True)]
            times: dict[str, list[list[float]]] = {c: [[], []] for c in jobs[0].calls}
            for i in range(rounds + 1):
                for call in jobs[0].calls:
                    turns = (0, 1) if i % 2 else (1, 0)
                    for which in turns:
                        seconds = jobs[which].measure(call)
                        if i > 0:  # the first round warms up
                            times[call][which].append(seconds)
            for call, (before, after) in times.items():
                _print_row(call, before, after)
            for job in jobs:
                job.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    here = str(Path(__file__).resolve().parents[1] / "src")
    parser.add_argument("--before", default=here, help="src of the version to compare with")
    parser.add_argument("--after", default=here, help="src of the version that is measured")
    parser.add_argument("--processes", default="1,2,4", help="numbers of processes")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--dir", help="where to save")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        _serve(options.serve)
        return
    counts = [int(n) for n in options.processes.split(",")]
    _compare([options.before, options.after], counts, options.rounds, options.dir)


if __name__ == "__main__":
    main()
