"""What the programs here share: their options, their rounds, and what they write."""

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
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from importlib import metadata
from pathlib import Path

from .limits.threads import threads
from .measure.compare import Wrong
from .measure.processes import Failed
from .report import chart, tables
from .report.outcomes import Outcome, Row, facts
from .workloads import WORKLOADS, Workload

GIB = 1 << 30
PACKAGES = (
    *("jax", "jaxlib", "numpy", "zstandard", "orbax-checkpoint", "tensorstore"),
    *("safetensors", "flax", "equinox", "numcodecs"),
)

Measure = Callable[[Workload, Path, argparse.Namespace], Outcome]


def parser(
    program: str,
    about: str | None,
    workloads: Collection[str],
    libraries: Collection[str],
    default: Sequence[str] = (),
) -> argparse.ArgumentParser:
    """What every program can be asked.

    Args:
        default: The workloads that run if none is named; empty: all.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=about)
    parser.add_argument(
        "workload",
        nargs="*",
        type=_one_of(workloads, "workload"),
        default=[*(default or workloads)],
        help=f"{', '.join(workloads)}; default: {', '.join(default) or 'all'}",
    )
    library = _one_of([*libraries, "default"], "--lib")
    parser.add_argument(
        "--lib",
        type=lambda text: [library(name) for name in text.split(",")],
        default=["default"],
        help=f"{', '.join(libraries)}; the first is what the others are divided by;"
        " `default`, alone or among others: what the workload is about",
    )
    parser.add_argument("--pairs", type=_rounds, default=9, help="timed rounds; default: 9")
    parser.add_argument("--scale", type=float, default=1.0, help="of the bytes; default: 1")
    parser.add_argument("--json", metavar="FILE", help="every sample, and the summary")
    parser.add_argument("--svg", metavar="FILE", help="a chart of the ratios")
    parser.add_argument("--markdown", metavar="FILE", help="the tables, for documents")
    parser.add_argument("--dir", help="where checkpoints are written and removed again")
    return parser


def _rounds(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"Expected at least one round, got {text}")
    return int(text)


def _one_of(known: Collection[str], what: str) -> Callable[[str], str]:
    def checked(name: str) -> str:
        if name not in known:
            raise argparse.ArgumentTypeError(f"Expected {what} of {', '.join(known)}, got {name!r}")
        return name

    return checked


def run(measure: Measure, conditions: str, options: argparse.Namespace) -> None:
    """Measures one workload after the other, each in a directory of its own, and reports.

    Args:
        conditions: What is the same for all of them.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    about = _about(conditions, options.scale)
    print(*(f"{key}: {value}" for key, value in about.items()), sep="\n", flush=True)
    outcomes: list[Outcome] = []
    for name in options.workload:
        with tempfile.TemporaryDirectory(prefix="templax-bench-", dir=options.dir) as scratch:
            outcomes.append(measure(WORKLOADS[name], Path(scratch).resolve(), options))
        print(f"\n{tables.table(outcomes[-1])}", flush=True)
        _write(options, about, outcomes)  # after each: a run of hours may be cut short
    if any(row.trouble.startswith("wrong") for outcome in outcomes for row in outcome.rows):
        sys.exit("A result differs from what was saved")


def libraries(asked: Sequence[str], default: Sequence[str]) -> list[str]:
    """Names in order, each once."""
    names = (n for name in asked for n in (default if name == "default" else (name,)))
    return list(dict.fromkeys(names))


def healthy(rows: Sequence[Row]) -> Iterator[Row]:
    """Those that nothing has gone wrong with by the time they are reached."""
    return (row for row in rows if not row.trouble)


def in_turns(rows: Sequence[Row], rounds: int) -> Iterator[Row]:
    """A B C D, D C B A, …: what slows the machine down slows down neighbours."""
    for i in range(rounds):
        yield from healthy(rows if i % 2 == 0 else rows[::-1])


@contextlib.contextmanager
def noted(row: Row, directory: Path) -> Generator[None]:
    """A library that fails leaves the rotation; its row says what it said."""
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
        texts = "\n\n".join(tables.markdown(outcome) for outcome in outcomes)
        Path(options.markdown).write_text(f"{head}\n{texts}\n")


def _about(conditions: str, scale: float) -> dict[str, str]:
    """Date, machine, conditions, versions."""
    cpu = Path("/proc/cpuinfo").read_text().split("model name", 1)[-1].split("\n")[0].strip("\t :")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return {
        "date": f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
        "machine": f"{len(os.sched_getaffinity(0))} cores, {cpu}, {memory:.0f} GiB",
        "load": "{:.1f} {:.1f} {:.1f}".format(*os.getloadavg()),
        "conditions": f"{os.environ['JAX_PLATFORMS']} backend, {conditions},"
        f" one process per library, interleaved, limits with {threads()} threads,"
        f" scale {scale:g}",
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
