"""Runs libraries in turns on the same files and reports their ratios."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from .worker import LIBRARIES, Sample, save, serve
from .workloads import WORKLOADS

MIB = 1 << 20
PACKAGES = ("jax", "jaxlib", "numpy", "zstandard", "orbax-checkpoint", "tensorstore")


@dataclass(frozen=True)
class Outcome:
    """A workload's samples: library → one per round, and the untimed ones around them."""

    workload: str
    leaves: int
    nbytes: int
    timed: dict[str, list[Sample]]
    untimed: dict[str, list[Sample]]

    def peak_bytes(self, library: str) -> int:
        return max(s.peak_bytes for s in self.timed[library] + self.untimed[library])

    def ratios(self, library: str) -> list[float]:
        """Of each round: seconds of this library over those of the first."""
        ours = next(iter(self.timed.values()))
        pairs = zip(self.timed[library], ours, strict=True)
        return [theirs.seconds / our.seconds for theirs, our in pairs]


def main(argv: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(argv)
    libraries = options.lib.split(",")
    if unknown := sorted(set(libraries) - LIBRARIES.keys()):
        sys.exit(f"Expected --lib of {', '.join(LIBRARIES)}, got {', '.join(unknown)}")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    about = {"date": f"{datetime.datetime.now():%Y-%m-%d %H:%M}", **_machine(), **_versions()}
    print(*(f"{key}: {value}" for key, value in about.items()), sep="\n", flush=True)
    outcomes = []
    for name in options.workload or WORKLOADS:
        with tempfile.TemporaryDirectory(prefix="templax-bench-", dir=options.dir) as scratch:
            outcomes.append(_run(name, libraries, options.pairs, Path(scratch)))
        print(f"\n{_table(outcomes[-1])}", flush=True)
    if options.json:
        report = {"about": about, "workloads": [_facts(outcome) for outcome in outcomes]}
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("workload", nargs="*", help=f"{', '.join(WORKLOADS)}; default: all")
    parser.add_argument(
        "--lib", default=",".join(LIBRARIES), help="the first is what the others are divided by"
    )
    parser.add_argument("--pairs", type=int, default=9, help="timed rounds; default: 9")
    parser.add_argument("--json", metavar="FILE", help="every sample, and the summary")
    parser.add_argument("--dir", help="where checkpoints are written and removed again")
    return parser


def _run(name: str, libraries: Sequence[str], rounds: int, scratch: Path) -> Outcome:
    """Saves, then restores in turns: A B C D, D C B A, …; each result is compared before and after.

    The page cache is warm: the files have just been written, and were read in the first check.
    """
    with _started(save, scratch, name) as saver:
        leaves, nbytes = saver()
    with contextlib.ExitStack() as stack:
        workers = {
            lib: stack.enter_context(_started(serve, scratch, name, lib)) for lib in libraries
        }
        untimed = {lib: [worker("check")] for lib, worker in workers.items()}
        timed: dict[str, list[Sample]] = {lib: [] for lib in libraries}
        for i in range(rounds):
            for lib in libraries if i % 2 == 0 else reversed(libraries):
                timed[lib].append(workers[lib]("time"))
        for lib, worker in workers.items():
            untimed[lib].append(worker("check"))
            worker("stop")
    return Outcome(name, leaves, nbytes, timed, untimed)


@contextlib.contextmanager
def _started(target: Callable[..., None], *args: object) -> Iterator[Callable[..., Any]]:
    """A process of its own; call it with a command to get the answer."""
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *args), daemon=True)
    process.start()
    theirs.close()

    def ask(command: str | None = None) -> Any:
        if command is not None:
            pipe.send(command)
        if command == "stop":
            return None
        try:
            answer = pipe.recv()
        except EOFError:
            process.join()
            answer = f"died with exit code {process.exitcode}"
        if isinstance(answer, str):
            sys.exit(f"{target.__name__} {' '.join(map(str, args))}: {answer}")
        return answer

    try:
        yield ask
    except BaseException:
        process.terminate()
        raise
    finally:
        process.join()


def _machine() -> dict[str, str]:
    cpu = Path("/proc/cpuinfo").read_text().split("model name", 1)[-1].split("\n")[0].strip("\t :")
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / MIB
    return {
        "machine": f"{len(os.sched_getaffinity(0))} cores, {cpu}, {memory:.0f} GiB",
        "load": "{:.1f} {:.1f} {:.1f}".format(*os.getloadavg()),
        "conditions": "CPU backend, warm page cache, one process per library, interleaved",
    }


def _versions() -> dict[str, str]:
    import templax

    root = Path(__file__).parent
    describe = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip()
    found = [f"templax {templax.__version__} ({commit})", f"python {platform.python_version()}"]
    return {"versions": ", ".join(found + [f"{p} {metadata.version(p)}" for p in PACKAGES])}


def _quartiles(numbers: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third."""
    if len(numbers) < 2:
        return (numbers[0],) * 3
    low, middle, high = statistics.quantiles(numbers, n=4, method="inclusive")
    return low, middle, high


def _facts(outcome: Outcome) -> dict[str, Any]:
    def summary(numbers: list[float]) -> dict[str, float]:
        low, middle, high = _quartiles(numbers)
        return {"median": middle, "q1": low, "q3": high, "min": min(numbers)}

    return {
        "workload": outcome.workload,
        "leaves": outcome.leaves,
        "bytes": outcome.nbytes,
        "libraries": {
            lib: {
                "seconds": summary([s.seconds for s in samples]),
                "ratio": summary(outcome.ratios(lib)),
                "cpu_s": summary([s.cpu_s for s in samples]),
                "peak_bytes": outcome.peak_bytes(lib),
                "samples": [asdict(s) for s in samples],
            }
            for lib, samples in outcome.timed.items()
        },
    }


def _table(outcome: Outcome) -> str:
    first = next(iter(outcome.timed))
    rounds = len(outcome.timed[first])
    lines = [
        f"{outcome.workload}: {WORKLOADS[outcome.workload].about}; {outcome.leaves:,} leaves,"
        f" {outcome.nbytes / MIB:,.1f} MiB; {rounds} rounds; results equal",
        f"{'':16}{'seconds: median [quartiles] min':>40}{'cpu':>8}{'peak RSS':>14}"
        f"{'ratio to ' + first + ' [quartiles]':>34}",
    ]
    for lib, samples in outcome.timed.items():
        seconds = [s.seconds for s in samples]
        low, middle, high = _quartiles(seconds)
        spread = f"{middle:.3f} [{low:.3f}-{high:.3f}] {min(seconds):.3f}"
        cpu = statistics.median(s.cpu_s for s in samples)
        peak = outcome.peak_bytes(lib)
        low, middle, high = _quartiles(outcome.ratios(lib))
        lines.append(
            f"{lib:16}{spread:>40}{cpu:>8.3f}{f'{peak / outcome.nbytes:.2f}x tree':>14}"
            f"{f'{middle:.2f} [{low:.2f}-{high:.2f}]':>34}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
