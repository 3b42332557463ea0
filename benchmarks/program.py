"""What both programs share: options, rounds, and reports."""

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
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

from .limits.threads import count_threads
from .measure.compare import WrongResult
from .measure.processes import LibraryError
from .report import chart, tables
from .report.outcomes import Outcome, Row, collect_facts
from .workloads import WORKLOADS, Workload

GIB = 1 << 30
PACKAGES = (
    *("jax", "jaxlib", "numpy", "zstandard", "orbax-checkpoint", "tensorstore"),
    *("safetensors", "flax", "equinox", "numcodecs", "torch"),
)

Measure = Callable[[Workload, Path, argparse.Namespace], Outcome]


def make_parser(
    program: str,
    about: str | None,
    workloads: Collection[str],
    libraries: Collection[str],
    default: Sequence[str] = (),
) -> argparse.ArgumentParser:
    """The options that both programs have.

    Args:
        program: What follows `python -m`.
        about: The description that `--help` prints.
        workloads: The workloads that can be named.
        libraries: The libraries that can be named.
        default: The workloads that run if none is named; empty for all of them.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=about)
    parser.add_argument(
        "workload",
        nargs="*",
        type=_make_choice(workloads, "workload"),
        default=[*(default or workloads)],
        help=f"any of {', '.join(workloads)}; default: {', '.join(default) or 'all'}",
    )
    choose_library = _make_choice([*libraries, "default"], "--lib")
    parser.add_argument(
        "--lib",
        metavar="NAME,...",
        type=lambda text: [choose_library(name) for name in text.split(",")],
        default=["default"],
        help=f"libraries to run, of {', '.join(libraries)}; `default` stands for the usual ones of"
        " the workload; ratios divide by the first",
    )
    parser.add_argument(
        "--pairs",
        metavar="ROUNDS",
        type=_parse_rounds,
        default=9,
        help="number of timed rounds; default: 9",
    )
    parser.add_argument(
        "--scale",
        metavar="FACTOR",
        type=float,
        default=1.0,
        help="multiplies the bytes of each tree; default: 1",
    )
    parser.add_argument("--json", metavar="FILE", help="write all samples and their summary")
    parser.add_argument("--svg", metavar="FILE", help="write a chart of the ratios")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables for a document")
    parser.add_argument("--dir", help="write checkpoints here; they are removed at the end")
    return parser


def _parse_rounds(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"Expected at least one round, got {text}")
    return int(text)


def _make_choice(known: Collection[str], what: str) -> Callable[[str], str]:
    def choose(name: str) -> str:
        if name not in known:
            raise argparse.ArgumentTypeError(f"Expected {what} of {', '.join(known)}, got {name!r}")
        return name

    return choose


def run_workloads(measure: Measure, conditions: str, options: argparse.Namespace) -> None:
    """Measures the workloads one by one, each in a directory of its own, and reports.

    Args:
        measure: Measures one workload below a directory.
        conditions: What the report says about all measurements.
        options: What `make_parser` parsed.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    about = _describe_run(conditions, options.scale)
    print(*(f"{key}: {value}" for key, value in about.items()), sep="\n", flush=True)
    outcomes: list[Outcome] = []
    for name in options.workload:
        with tempfile.TemporaryDirectory(prefix="templax-bench-", dir=options.dir) as scratch:
            outcomes.append(measure(WORKLOADS[name], Path(scratch).resolve(), options))
        print(f"\n{tables.format_table(outcomes[-1])}", flush=True)
        _write_reports(options, about, outcomes)  # each time: a run of hours may be interrupted
    if any(row.trouble.startswith("wrong") for outcome in outcomes for row in outcome.rows):
        sys.exit("A result differs from what was saved")


def list_libraries(names: Sequence[str], default: Sequence[str]) -> list[str]:
    """The names in order, each once, with those of `default` in place of "default"."""
    expanded = (n for name in names for n in (default if name == "default" else (name,)))
    return list(dict.fromkeys(expanded))


def take_turns(rows: Sequence[Row], rounds: int) -> Iterator[Row]:
    """A B C D, D C B A, …, so that a slow spell of the machine hits neighbours alike."""
    for i in range(rounds):
        yield from rows if i % 2 == 0 else rows[::-1]


def run_each(rows: Iterable[Row], directory: Path, action: Callable[[Row], None]) -> None:
    """Runs an action for each library. One that fails is skipped from then on.

    Args:
        rows: The libraries; one may occur more than once.
        directory: Is cut from paths in errors.
        action: Its error becomes the `trouble` of the row.
    """
    for row in rows:
        if row.trouble:
            continue
        try:
            action(row)
        except (LibraryError, WrongResult) as error:
            word = "wrong" if isinstance(error, WrongResult) else "failed"
            row.trouble = f"{word}: {error}".replace(f"{directory}{os.sep}", "")


def _write_reports(
    options: argparse.Namespace, about: dict[str, str], outcomes: list[Outcome]
) -> None:
    if options.json:
        report = {"about": about, "workloads": [collect_facts(outcome) for outcome in outcomes]}
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    if options.svg:
        Path(options.svg).write_text(chart.draw_chart(outcomes, about))
    if options.markdown:
        head = "".join(f"- {key}: {value}\n" for key, value in about.items())
        texts = "\n\n".join(tables.format_markdown(outcome) for outcome in outcomes)
        Path(options.markdown).write_text(f"{head}\n{texts}\n")


def _describe_run(conditions: str, scale: float) -> dict[str, str]:
    """Date, machine, conditions, versions."""
    cpu = Path("/proc/cpuinfo").read_text().split("model name", 1)[-1].split("\n")[0].strip("\t :")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return {
        "date": f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
        "machine": f"{len(os.sched_getaffinity(0))} cores, {cpu}, {memory:.0f} GiB",
        "load": "{:.1f} {:.1f} {:.1f}".format(*os.getloadavg()),
        "conditions": f"{os.environ['JAX_PLATFORMS']} backend, {conditions},"
        f" one process per library, interleaved, limits with {count_threads()} threads,"
        f" scale {scale:g}",
        **({"bytecode": "templax is compiled in each process"} if sys.dont_write_bytecode else {}),
        "versions": ", ".join(_list_versions()),
    }


def _list_versions() -> Iterator[str]:
    describe = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip()
    import templax

    yield f"templax {templax.__version__} ({commit or 'no commit'})"
    yield f"python {platform.python_version()}"
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            yield f"{package} {metadata.version(package)}"
