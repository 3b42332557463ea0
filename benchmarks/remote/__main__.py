"""Restores from a slow object store, or saves to it, with several libraries in turns."""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import obstore

from ..files import locate_checkpoint
from ..measure.prepare import prepare_workload
from ..program import list_libraries, make_parser, run_each, run_workloads, take_turns
from ..report.outcomes import Outcome, Row
from ..restore.worker import check_checkpoint
from ..workloads import WARM_UP, Workload
from .restorers import RESTORERS
from .savers import SAVERS
from .store import RemoteStore
from .worker import RestoreWorker, SaveWorker

WORKLOADS = ("tree-own", "small-own")

DEFAULT_RATES = {"restore": 100.0, "save": 25.0}
"""MB/s. SeaweedFS takes no more than 40 to 50 MB/s where two cores are shared with all else."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser("benchmarks.remote", __doc__, WORKLOADS, [*RESTORERS, *SAVERS])
    parser.set_defaults(scale=0.25, pairs=3)
    parser.add_argument("--save", action="store_true", help="save instead of restore")
    parser.add_argument("--server", default="seaweedfs", help="default: seaweedfs")
    parser.add_argument(
        "--latency",
        type=float,
        default=20.0,
        metavar="MS",
        help="what each request takes beyond what the server needs; default: 20",
    )
    parser.add_argument(
        "--bandwidth",
        type=float,
        metavar="MB/S",
        help="of all connections together, in each direction; default: 100, for saves 25",
    )
    parser.add_argument(
        "--connection-bandwidth", type=float, metavar="MB/S", help="of each connection as well"
    )
    options = parser.parse_args(argv)
    if options.bandwidth is None:
        options.bandwidth = DEFAULT_RATES["save" if options.save else "restore"]
    conditions = f"{options.server}, {options.latency:g} ms, {options.bandwidth:g} MB/s"
    if options.connection_bandwidth:
        conditions += f", {options.connection_bandwidth:g} MB/s a connection"
    measure = _measure_saves if options.save else _measure_restores
    run_workloads(measure, conditions, options)


def _open_store(
    stack: contextlib.ExitStack, directory: Path, options: argparse.Namespace
) -> RemoteStore:
    scratch = stack.enter_context(tempfile.TemporaryDirectory(dir=directory))
    store = RemoteStore(Path(scratch), options.server)
    stack.callback(store.close)
    rate = options.connection_bandwidth
    store.shape(
        latency_ms=options.latency,
        bytes_per_second=options.bandwidth * 1e6,
        connection_bytes_per_second=rate and rate * 1e6,
    )
    return store


def _measure_restores(workload: Workload, directory: Path, options: argparse.Namespace) -> Outcome:
    """Restores in turns; the results before and after the timed rounds are compared."""
    names = list_libraries(options.lib, [*RESTORERS])
    kinds = {name: RESTORERS[name].kind for name in names}
    rows = [
        Row(name, "requests" if RESTORERS[name].limit else kinds[name], False) for name in names
    ]
    leaves, nbytes = prepare_workload(
        directory, workload, options.scale, sorted({*kinds.values(), workload.kind})
    )
    with contextlib.ExitStack() as stack:
        store = _open_store(stack, directory, options)
        for kind in {*kinds.values(), workload.kind}:
            for saved in (workload, WARM_UP):
                path = locate_checkpoint(directory, saved, kind)
                if path.is_dir():
                    store.direct.upload(path, f"{path.name}/")
                else:
                    store.direct.write(path.name, path.read_bytes())
        workers = {}
        for row in rows:
            row.count_files(locate_checkpoint(directory, workload, kinds[row.library]))
            workers[row.library] = RestoreWorker(
                directory, workload, options.scale, row.library, store.bucket
            )
            stack.callback(workers[row.library].close)

        def check(row: Row) -> None:
            store.take_traffic()
            row.untimed.append(workers[row.library].run("check"))
            traffic = store.take_traffic()
            row.requests, row.moved_bytes = traffic.requests, traffic.received

        def time(row: Row) -> None:
            row.timed.append(workers[row.library].run("time"))

        _open_workers(rows, workers, directory)
        run_each(rows, directory, check)
        run_each(take_turns(rows, options.pairs), directory, time)
        run_each(rows, directory, check)
    return Outcome(workload.name, workload.about, False, leaves, nbytes, rows)


def _measure_saves(workload: Workload, directory: Path, options: argparse.Namespace) -> Outcome:
    """Saves in turns, each time to a new path; the first result is restored and compared."""
    names = list_libraries(options.lib, [*SAVERS])
    rows = [Row(name, name.partition("limit-")[2] or name, False) for name in names]
    leaves, nbytes = prepare_workload(directory, workload, options.scale, ())
    with contextlib.ExitStack() as stack:
        store = _open_store(stack, directory, options)
        workers = {}
        for row in rows:
            workers[row.library] = SaveWorker(
                directory, workload, options.scale, row.library, store.bucket
            )
            stack.callback(workers[row.library].close)

        def check(row: Row) -> None:
            store.take_traffic()
            row.untimed.append(workers[row.library].run(row.library))
            traffic = store.take_traffic()
            row.requests, row.moved_bytes = traffic.requests, traffic.sent
            if not row.library.startswith("limit-"):
                saved = directory / "saved"
                for key in store.direct.list():
                    if key.startswith(f"{row.library}/"):
                        file = saved / key
                        file.parent.mkdir(parents=True, exist_ok=True)
                        file.write_bytes(store.direct.read(key))
                path = saved / row.library
                check_checkpoint(directory, workload, options.scale, "templax", path)
                row.count_files(path)
            _remove(store, row.library)

        def time(row: Row) -> None:
            os.sync()
            row.timed.append(workers[row.library].run(row.library))
            _remove(store, row.library)

        _open_workers(rows, workers, directory)
        run_each(rows, directory, check)
        run_each(take_turns(rows, options.pairs), directory, time)
    return Outcome(workload.name, workload.about, False, leaves, nbytes, rows, saved=True)


def _open_workers(
    rows: list[Row], workers: Mapping[str, RestoreWorker | SaveWorker], directory: Path
) -> None:
    def open_worker(row: Row) -> None:
        worker = workers[row.library]
        worker.open()
        row.nbytes, row.notes = worker.nbytes, worker.notes

    run_each(rows, directory, open_worker)


def _remove(store: RemoteStore, path: str) -> None:
    found = [key for key in store.direct.list() if key == path or key.startswith(f"{path}/")]
    obstore.delete(store.direct.open_store(), found)


if __name__ == "__main__":
    main()
