"""Restores the same checkpoints with several libraries in turns, and reports their ratios."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path

from .files import locate_checkpoint
from .measure.prepare import prepare_workload
from .program import list_libraries, make_parser, run_each, run_workloads, take_turns
from .report.outcomes import Outcome, Row
from .restore.first import time_first_restore
from .restore.fresh_worker import start_worker
from .restore.libraries import LIBRARIES
from .restore.worker import drop_cache
from .workloads import OPTIONAL, WORKLOADS, Workload


def main(argv: Sequence[str] | None = None) -> None:
    default = [name for name in WORKLOADS if name not in OPTIONAL]
    parser = make_parser("benchmarks", __doc__, WORKLOADS, LIBRARIES, default)
    parser.add_argument(
        "--cold", action="store_true", help="drop the files from the page cache before each sample"
    )
    parser.add_argument(
        "--firsts",
        metavar="COUNT",
        type=int,
        default=3,
        help="first restores of new processes to time per library; default: 3",
    )
    options = parser.parse_args(argv)
    cache = "cold" if options.cold else "warm"
    run_workloads(_measure_restores, f"{cache} page cache", options)


def _measure_restores(workload: Workload, directory: Path, options: argparse.Namespace) -> Outcome:
    """Saves, then restores in turns; the results before and after the timed rounds are compared.

    The page cache is warm unless asked otherwise: the files have just been written, and the first
    comparison has read them.
    """
    rows = [
        Row(name, kind := LIBRARIES[name].choose_kind(workload), kind != workload.kind)
        for name in list_libraries(options.lib, workload.libraries)
    ]
    kinds = sorted({row.kind for row in rows})
    leaves, nbytes = prepare_workload(directory, workload, options.scale, kinds)
    with contextlib.ExitStack() as stack:
        workers = {}
        for row in rows:
            row.count_files(locate_checkpoint(directory, workload, row.kind))
            workers[row.library] = start_worker(directory, workload, options.scale, row.library)
            stack.callback(workers[row.library].close)

        def open_worker(row: Row) -> None:
            worker = workers[row.library]
            worker.open()
            row.nbytes, row.notes = worker.nbytes or nbytes, worker.notes

        def drop_cache_if_cold(row: Row) -> None:
            if options.cold:
                drop_cache(directory, workload, row.library)

        def check(row: Row) -> None:
            drop_cache_if_cold(row)
            row.untimed.append(workers[row.library].check())

        def time(row: Row) -> None:
            drop_cache_if_cold(row)
            row.timed.append(workers[row.library].time())

        run_each(rows, directory, open_worker)
        run_each(rows, directory, check)
        run_each(take_turns(rows, options.pairs), directory, time)
        run_each(rows, directory, check)

    def time_first(row: Row) -> None:
        drop_cache_if_cold(row)
        row.first_s.append(time_first_restore(directory, workload, options.scale, row.library))

    if not workload.fresh:  # else all samples are
        peers = [row for row in rows if not LIBRARIES[row.library].limit]
        run_each(take_turns(peers, options.firsts), directory, time_first)
    return Outcome(workload.name, workload.about, workload.fresh, leaves, nbytes, rows)


if __name__ == "__main__":
    main()
