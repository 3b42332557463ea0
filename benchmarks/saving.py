"""Has libraries save the same trees in turns and reports their ratios."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from .files import removed
from .measure.prepare import written
from .program import healthy, in_turns, libraries, noted, parser, run
from .report.outcomes import Outcome, Row
from .restore.worker import restored
from .save.savers import SAVERS
from .save.worker import SaveWorker
from .workloads import Workload

SAVED = {
    "tree": "bfloat16 transformer",
    "matrix": "one float32 matrix",
    "small": "leaves of 256 float32",
    "tiny": "a small model",
    "reshard-axis1": "leaves on 8 devices, along axis 0",
}
"""Workload whose tree is saved → what that is."""

DEFAULT = ("tree", "matrix", "small")


def main(argv: Sequence[str] | None = None) -> None:
    asks = parser("benchmarks.saving", __doc__, SAVED, SAVERS, DEFAULT)
    asks.add_argument(
        "--budget",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="of timed saves, after which a library sits out the remaining rounds of a workload;"
        " default: 30",
    )
    run(_saved, "disks synced before each save", asks.parse_args(argv))


def _saved(workload: Workload, directory: Path, options: argparse.Namespace) -> Outcome:
    """Saves in turns, each time where nothing is; the first result is restored and compared.

    That first save is not timed: it also warms up.
    """
    rows = [Row(name, SAVERS[name].kind, False) for name in libraries(options.lib, [*SAVERS])]
    leaves, nbytes = written(directory, workload, options.scale, ())
    with contextlib.ExitStack() as stack:
        workers = {}
        for row in rows:
            worker = SaveWorker(directory, workload, options.scale, row.library)
            stack.callback(worker.close)
            workers[row.library] = worker
        for row in healthy(rows):
            with noted(row, directory):
                workers[row.library].open()
                row.nbytes = workers[row.library].nbytes

        def save(row: Row, *, timed: bool) -> None:
            path = directory / f"{workload.name}-{row.library}.{row.kind}"
            os.sync()  # what others left to write, and the removal of what they wrote
            try:
                sample = workers[row.library].save(path)
                (row.timed if timed else row.untimed).append(sample)
                if timed:
                    return
                row.wrote(path)
                if reader := SAVERS[row.library].restored_by:
                    restored(directory, workload, options.scale, reader, path)
            finally:
                removed(path)

        for row in healthy(rows):
            with noted(row, directory):
                save(row, timed=False)
        for row in in_turns(rows, options.pairs):
            if sum(sample.seconds for sample in row.timed) < options.budget:
                with noted(row, directory):
                    save(row, timed=True)
    return Outcome(workload.name, SAVED[workload.name], False, leaves, nbytes, rows, saved=True)


if __name__ == "__main__":
    main()
