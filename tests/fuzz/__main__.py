"""Runs fuzzing targets, each in a process of its own, and prints counts and rates.

    python -m tests.fuzz                              every target for 20 s each, on all cores
    python -m tests.fuzz zarr2 zarr3 --seconds 3600   some of them, for an hour each
    python -m tests.fuzz zarr2 --input FILE           one input again, with its traceback

Exits with 1 if an input failed. Inputs that failed are kept in `--state`, each beside a text that
says why. Once the code is fixed, copy the input to `tests/fuzz/corpus/<target>/`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

ENGINES = ("atheris", "hypothesis")


def main() -> int:
    options = _parse()
    if options.child:
        return _run_child(options)
    from .engines import has_atheris
    from .registry import TARGETS

    unknown = set(options.targets) - TARGETS.keys()
    if unknown:
        sys.exit(f"no target {sorted(unknown)}; there are {', '.join(TARGETS)}")
    names = options.targets or list(TARGETS)
    if options.input:
        return _run_again(names[0], options.input)
    if options.at_most is not None:
        options.seconds = min(options.seconds, options.at_most * options.jobs / len(names))
    options.engine = options.engine or ("atheris" if has_atheris() else "hypothesis")
    with ThreadPoolExecutor(options.jobs) as pool:
        tallies = list(pool.map(lambda name: _run_target(name, options), names))
    return _report(tallies)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("targets", nargs="*", help="default: all")
    parser.add_argument("--seconds", type=float, default=20, help="for each target (%(default)s)")
    parser.add_argument("--at-most", type=float, help="seconds for all targets together")
    parser.add_argument("--slow", type=float, default=2, help="fail inputs that take more seconds")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of atheris; 0 for a new one each time"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="targets at a time")
    parser.add_argument("--engine", choices=ENGINES, help="default: atheris if it is installed")
    parser.add_argument("--state", type=Path, default=Path(".fuzz"), help="where inputs are kept")
    parser.add_argument("--input", type=Path, help="run this input only")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _run_target(name: str, options: argparse.Namespace) -> dict:
    """Runs a target until its time is up. A process that dies is a failure, and is restarted."""
    total = {"target": name, "engine": options.engine, "executions": 0, "seconds": 0.0}
    total |= {"slowest": 0.0, "failures": {}}
    begin, deaths = time.monotonic(), 0
    while deaths < 5 and (left := options.seconds - (time.monotonic() - begin)) >= 1:
        tally = options.state / f"{name}.tally"
        tally.unlink(missing_ok=True)
        command = [sys.executable, "-m", "tests.fuzz", "--child", name, "--engine", options.engine]
        command += ["--seconds", str(left), "--state", str(options.state)]
        command += ["--slow", str(options.slow), "--seed", str(options.seed)]
        log = options.state / f"{name}.log"
        options.state.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            done = subprocess.run(command, stdout=file, stderr=file, check=False)
        part = json.loads(tally.read_text()) if tally.exists() else {}
        for key in ("executions", "seconds"):
            total[key] += part.get(key, 0)
        total["slowest"] = max(total["slowest"], part.get("slowest", 0))
        total["failures"] |= part.get("failures", {})
        if done.returncode:
            deaths += 1
            text = log.read_text("utf-8", "replace")[-4000:]
            total["failures"][f"exit {done.returncode} of the process"] = text
    _print_tally(total)
    return total


def _print_tally(tally: dict) -> None:
    rate = 60 * tally["executions"] / tally["seconds"] if tally["seconds"] else 0
    print(
        f"{tally['target']:16} {tally['engine']:10} {tally['executions']:>12,} executions"
        f" {rate:>11,.0f}/min  slowest {tally['slowest']:5.2f} s"
        f"  {len(tally['failures'])} failures",
        flush=True,
    )


def _report(tallies: list[dict]) -> int:
    count = sum(tally["executions"] for tally in tallies)
    failures = {
        f"{tally['target']}: {kind}": text
        for tally in tallies
        for kind, text in tally["failures"].items()
    }
    print(f"{count:,} executions in all, {len(failures)} failures")
    for kind, text in failures.items():
        print(f"\n== {kind}\n{text[-2500:]}")
    return 1 if failures else 0


def _run_child(options: argparse.Namespace) -> int:
    name = options.targets[0]
    if options.engine == "atheris":
        from . import engines

        engines.instrument()
    from . import engines, targets
    from .registry import TARGETS

    target, targets.MAX_SECONDS = TARGETS[name], options.slow
    targets.limit_recursion()
    options.state.mkdir(parents=True, exist_ok=True)
    recorder = engines.Recorder(target, options.engine, options.state / "failed")
    tally = options.state / f"{name}.tally"
    if options.engine == "atheris":
        grown = options.state / "corpus" / name
        engines.run_atheris(target, recorder, tally, options.seconds, grown, options.seed)
    else:
        engines.run_hypothesis(target, recorder, tally, options.seconds)
    return 0


def _run_again(name: str, path: Path) -> int:
    from .registry import TARGETS
    from .targets import Judge

    failure = Judge(TARGETS[name]).try_input(path.read_bytes())
    print("right" if failure is None else failure.text)
    return 0 if failure is None else 1


if __name__ == "__main__":
    sys.exit(main())
