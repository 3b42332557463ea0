"""Runs libraries in turns on the same files and reports their ratios."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from importlib import metadata
from pathlib import Path

from . import chart, report
from .files import files_under
from .libraries import LIBRARIES
from .limits import threads
from .outcomes import Outcome, Row, facts
from .processes import Failed, drop_cache, worker_for, written
from .worker import Wrong, file_of
from .workloads import WORKLOADS, Workload

GIB = 1 << 30
PACKAGES = (
    *("jax", "jaxlib", "numpy", "zstandard", "orbax-checkpoint", "tensorstore"),
    *("safetensors", "flax", "equinox", "numcodecs"),
)


def main(argv: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(argv)
    chosen = [WORKLOADS[name] for name in options.workload or WORKLOADS]
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    about = _about(cold=options.cold, scale=options.scale)
    print(*(f"{key}: {value}" for key, value in about.items()), sep="\n", flush=True)
    outcomes = []
    for workload in chosen:
        with tempfile.TemporaryDirectory(prefix="templax-bench-", dir=options.dir) as scratch:
            outcomes.append(_run(workload, Path(scratch).resolve(), options))
        print(f"\n{report.table(outcomes[-1])}", flush=True)
        _write(options, about, outcomes)  # after each: a run of hours may be cut short
    if any(row.trouble.startswith("wrong") for outcome in outcomes for row in outcome.rows):
        sys.exit("A result differs from what was saved")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "workload",
        nargs="*",
        type=_one_of(WORKLOADS, "workload"),
        help=f"{', '.join(WORKLOADS)}; default: all",
    )
    parser.add_argument(
        "--lib",
        type=lambda text: [
            _one_of({**LIBRARIES, "default": 0}, "--lib")(x) for x in text.split(",")
        ],
        default=["default"],
        help=f"{', '.join(LIBRARIES)}; the first is what the others are divided by;"
        " `default`, alone or among others: what the workload names",
    )
    parser.add_argument("--pairs", type=_rounds, default=9, help="timed rounds; default: 9")
    parser.add_argument("--scale", type=float, default=1.0, help="of the bytes; default: 1")
    parser.add_argument(
        "--cold", action="store_true", help="drop the files from the page cache before each sample"
    )
    parser.add_argument("--json", metavar="FILE", help="every sample, and the summary")
    parser.add_argument("--svg", metavar="FILE", help="a chart of the ratios")
    parser.add_argument("--markdown", metavar="FILE", help="the tables, for documents")
    parser.add_argument("--dir", help="where checkpoints are written and removed again")
    return parser


def _rounds(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"Expected at least one round, got {text}")
    return int(text)


def _one_of(known: dict[str, object] | dict[str, Workload], what: str) -> Callable[[str], str]:
    def checked(name: str) -> str:
        if name not in known:
            raise argparse.ArgumentTypeError(f"Expected {what} of {', '.join(known)}, got {name!r}")
        return name

    return checked


def _run(workload: Workload, directory: Path, options: argparse.Namespace) -> Outcome:
    """Saves, then restores in turns: A B C D, D C B A, …; each result is compared before and after.

    The page cache is warm unless asked otherwise: the files have just been written, and were read
    in the first check. A library that raises leaves the rotation; its row says what it said.
    """
    rows = [
        Row(name, kind := LIBRARIES[name].kind(workload), kind != workload.kind)
        for name in _libraries(workload, options.lib)
    ]
    kinds = sorted({row.kind for row in rows})
    leaves, nbytes = written(directory, workload, options.scale, kinds)
    with contextlib.ExitStack() as stack:
        workers = {}
        for row in rows:
            row.file_bytes = sum(
                file.stat().st_size for file in files_under(file_of(directory, workload, row.kind))
            )
            workers[row.library] = worker_for(directory, workload, options.scale, row.library)
            stack.callback(workers[row.library].close)

        def sample(row: Row, *, timed: bool) -> None:
            worker = workers[row.library]
            if options.cold:
                drop_cache(directory, workload.name, row.library)
            if timed:
                row.timed.append(worker.time())
            else:
                row.untimed.append(worker.check())

        for row in _healthy(rows):
            with _noted(row, directory):
                worker = workers[row.library]
                worker.open()
                row.nbytes, row.notes = worker.nbytes or nbytes, worker.notes
        for row in _healthy(rows):
            with _noted(row, directory):
                sample(row, timed=False)
        for i in range(options.pairs):
            for row in _healthy(rows if i % 2 == 0 else rows[::-1]):
                with _noted(row, directory):
                    sample(row, timed=True)
        for row in _healthy(rows):
            with _noted(row, directory):
                sample(row, timed=False)
    return Outcome(workload.name, workload.about, workload.fresh, leaves, nbytes, rows)


def _libraries(workload: Workload, asked: Sequence[str]) -> list[str]:
    """Names in order, each once."""
    names = (n for name in asked for n in (workload.libraries if name == "default" else (name,)))
    return list(dict.fromkeys(names))


def _healthy(rows: Sequence[Row]) -> Iterator[Row]:
    return (row for row in rows if not row.trouble)


@contextlib.contextmanager
def _noted(row: Row, directory: Path) -> Generator[None]:
    try:
        yield
    except (Failed, Wrong) as error:
        word = "wrong" if isinstance(error, Wrong) else "failed"
        row.trouble = f"{word}: {error}".replace(f"{directory}{os.sep}", "")


def _write(options: argparse.Namespace, about: dict[str, str], outcomes: list[Outcome]) -> None:
    if options.json:
        found = {"about": about, "workloads": [facts(outcome) for outcome in outcomes]}
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n")
    if options.svg:
        Path(options.svg).write_text(chart.drawn(outcomes, about))
    if options.markdown:
        head = "".join(f"- {key}: {value}\n" for key, value in about.items())
        tables = "\n\n".join(report.markdown(outcome) for outcome in outcomes)
        Path(options.markdown).write_text(f"{head}\n{tables}\n")


def _about(*, cold: bool, scale: float) -> dict[str, str]:
    """Date, machine, conditions, versions."""
    cpu = Path("/proc/cpuinfo").read_text().split("model name", 1)[-1].split("\n")[0].strip("\t :")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return {
        "date": f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
        "machine": f"{len(os.sched_getaffinity(0))} cores, {cpu}, {memory:.0f} GiB",
        "load": "{:.1f} {:.1f} {:.1f}".format(*os.getloadavg()),
        "conditions": f"{os.environ['JAX_PLATFORMS']} backend,"
        f" {'cold' if cold else 'warm'} page cache, one process per library, interleaved,"
        f" limits with {threads()} threads, scale {scale:g}",
        "versions": ", ".join(_versions()),
    }


def _versions() -> Iterator[str]:
    describe = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip()
    import templax

    yield f"templax {templax.__version__} ({commit or 'no commit'})"
    yield f"python {platform.python_version()}"
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            yield f"{package} {metadata.version(package)}"


if __name__ == "__main__":
    main()
