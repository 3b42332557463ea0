"""Saves the same trees with several libraries in turns, and reports their ratios."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Generator, Sequence
from pathlib import Path

from .files import remove_checkpoint
from .measure.prepare import prepare_workload
from .measure.sample import Sample
from .program import list_libraries, make_parser, run_each, run_workloads, take_turns
from .report.outcomes import Outcome, Row
from .restore.worker import check_checkpoint
from .save.savers import SAVERS
from .save.worker import SaveWorker
from .workloads import Workload

TREES = {
    "tree": "bfloat16 transformer",
    "matrix": "one float32 matrix",
    "small": "leaves of 256 float32",
    "tiny": "a small model",
    "reshard-axis1": "leaves on 8 devices, along axis 0",
}
"""Workload whose tree is saved → one line about that tree."""

DEFAULT = ("tree", "matrix", "small")


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser("benchmarks.saving", __doc__, TREES, SAVERS, DEFAULT)
    parser.add_argument(
        "--budget",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="skip the remaining rounds of a workload once a library's timed saves have taken so"
        " long; default: 30",
    )
    run_workloads(_measure_saves, "disks synced before each save", parser.parse_args(argv))


def _measure_saves(workload: Workload, directory: Path, options: argparse.Namespace) -> Outcome:
    """Saves in turns, each time to a new path; the first result is restored and compared.

    That first save is not timed: it also warms up.
    """
    rows = [Row(name, SAVERS[name].kind, False) for name in list_libraries(options.lib, [*SAVERS])]
    leaves, nbytes = prepare_workload(directory, workload, options.scale, ())
    with contextlib.ExitStack() as stack:
        workers = {}
        for row in rows:
            worker = SaveWorker(directory, workload, options.scale, row.library)
            stack.callback(worker.close)
            workers[row.library] = worker

        def open_worker(row: Row) -> None:
            workers[row.library].open()
            row.nbytes = workers[row.library].nbytes

        @contextlib.contextmanager
        def save(row: Row) -> Generator[tuple[Path, Sample]]:
            path = directory / f"{workload.name}-{row.library}.{row.kind}"
            os.sync()  # what other libraries left to write, and the removal of their files
            try:
                yield path, workers[row.library].save(path)
            finally:
                remove_checkpoint(path)

        def check(row: Row) -> None:
            with save(row) as (path, sample):
                row.untimed.append(sample)
                row.count_files(path)
                if reader := SAVERS[row.library].restored_by:
                    check_checkpoint(directory, workload, options.scale, reader, path)

        def time(row: Row) -> None:
            if sum(sample.seconds for sample in row.timed) < options.budget:
                with save(row) as (_, sample):
                    row.timed.append(sample)

        run_each(rows, directory, open_worker)
        run_each(rows, directory, check)
        run_each(take_turns(rows, options.pairs), directory, time)
    return Outcome(workload.name, TREES[workload.name], False, leaves, nbytes, rows, saved=True)


if __name__ == "__main__":
    main()
