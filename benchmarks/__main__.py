"""Runs libraries in turns on the same files and reports their ratios."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path

from .files import file_of
from .measure.prepare import written
from .program import healthy, in_turns, libraries, noted, parser, run
from .report.outcomes import Outcome, Row
from .restore.fresh_worker import worker_for
from .restore.libraries import LIBRARIES
from .restore.worker import drop_cache
from .workloads import WORKLOADS, Workload


def main(argv: Sequence[str] | None = None) -> None:
    asks = parser("benchmarks", __doc__, WORKLOADS, LIBRARIES)
    asks.add_argument(
        "--cold", action="store_true", help="drop the files from the page cache before each sample"
    )
    options = asks.parse_args(argv)
    run(_restored, f"{'cold' if options.cold else 'warm'} page cache", options)


def _restored(workload: Workload, directory: Path, options: argparse.Namespace) -> Outcome:
    """Saves, then restores in turns; each result is compared before and after.

    The page cache is warm unless asked otherwise: the files have just been written, and were read
    in the first check.
    """
    rows = [
        Row(name, kind := LIBRARIES[name].kind(workload), kind != workload.kind)
        for name in libraries(options.lib, workload.libraries)
    ]
    kinds = sorted({row.kind for row in rows})
    leaves, nbytes = written(directory, workload, options.scale, kinds)
    with contextlib.ExitStack() as stack:
        workers = {}
        for row in rows:
            row.wrote(file_of(directory, workload, row.kind))
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

        for row in healthy(rows):
            with noted(row, directory):
                worker = workers[row.library]
                worker.open()
                row.nbytes, row.notes = worker.nbytes or nbytes, worker.notes
        for row in healthy(rows):
            with noted(row, directory):
                sample(row, timed=False)
        for row in in_turns(rows, options.pairs):
            with noted(row, directory):
                sample(row, timed=True)
        for row in healthy(rows):
            with noted(row, directory):
                sample(row, timed=False)
    return Outcome(workload.name, workload.about, workload.fresh, leaves, nbytes, rows)


if __name__ == "__main__":
    main()
