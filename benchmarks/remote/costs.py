"""Counts the requests and the bytes of each command on a checkpoint in a bucket.

    python -m benchmarks.remote.costs --scale 0.1 --steps 1000

The proxy of the tests counts them. Nothing is slowed, and nothing is timed. Each command begins
without any knowledge of the bucket, as a new process does.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import obstore

from ..report.tables import format_size
from ..workloads import WARM_UP, WORKLOADS, count_bytes, make_values
from .store import RemoteStore

_COPIES = 32
"""Objects that are copied at a time."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.remote.costs", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--server", default="seaweedfs", help="default: seaweedfs")
    parser.add_argument("--scale", type=float, default=0.1, help="of `tree-own`; default: 0.1")
    parser.add_argument("--steps", type=int, default=1000, help="of the run; default: 1000")
    parser.add_argument("--dir", help="where the server keeps its data")
    options = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory(dir=options.dir) as scratch:
        store = RemoteStore(Path(scratch), options.server)
        try:
            os.environ |= store.bucket.server.environment
            _count_all(store, options.scale, options.steps)
        finally:
            store.close()


def _count_all(store: RemoteStore, scale: float, steps: int) -> None:
    import templax as tx

    template = WORKLOADS["tree-own"].make_stored(scale)
    tree, small = make_values(template), make_values(WARM_UP.make_stored(scale))
    url, run = f"{store.bucket.url}/model", f"{store.bucket.url}/run"
    nbytes = count_bytes(tree)
    print(f"A checkpoint of {format_size(nbytes)}, and a run of {steps:,} steps:\n")
    print("| Command | Lists | Reads | Writes | Deletes | Sent | Received |")
    print("|---|---:|---:|---:|---:|---:|---:|")

    def count(name: str, call: Callable[[], Any]) -> None:
        store.take_traffic()
        call()
        found = store.take_traffic()
        numbers = (found.lists, found.reads, found.writes, found.deletes)
        cells = [f"{number:,}" for number in numbers]
        cells += [format_size(found.sent), format_size(found.received)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)

    one = {"ln_f": template["ln_f"]}
    count("`tx.save(url, tree)`", lambda: tx.save(url, tree))
    count("`tx.save(url, tree, overwrite=True)`", lambda: tx.save(url, tree, overwrite=True))
    count("`tx.open(url)`", lambda: tx.open(url))
    count("`templax ls url`", lambda: _run_command("ls", url))
    count("`tx.restore(url, template)`", lambda: tx.restore(url, template))
    count(
        '`tx.restore(url, one_layer_norm, extra="ignore")`',
        lambda: tx.restore(url, one, extra="ignore"),
    )
    count("`templax verify url`", lambda: _run_command("verify", url))

    count("`Manager(run).save(0, small)`, the first step", lambda: _save_step(run, 0, small))
    asyncio.run(_copy_step(store, steps))
    count("`templax steps run`", lambda: _run_command("steps", run))
    count("`Manager(run).latest()`", lambda: _find_latest(run))
    count("`Manager(run).restore(template)`", lambda: _restore_latest(run, small))
    count("`Manager(run).save(1000, small)`", lambda: _save_step(run, steps, small))
    count(
        "`templax prune run --keep … --yes`, which deletes 3 steps",
        lambda: _run_command("prune", run, "--keep", str(steps - 2), "--yes"),
    )


async def _copy_step(store: RemoteStore, steps: int) -> None:
    """Makes steps 1, 2, … out of step 0."""
    there = store.direct.open_store()
    names = [name for name in store.direct.list() if name.startswith("run/0/")]
    copies = iter([(n, f"run/{i}/{n[6:]}") for i in range(1, steps) for n in names])

    async def copy() -> None:
        for source, target in copies:
            await obstore.copy_async(there, source, target)

    await asyncio.gather(*[copy() for _ in range(_COPIES)])


def _run_command(*arguments: str) -> None:
    from templax.cli import main as run

    with redirect_stdout(io.StringIO()):
        try:
            run([*arguments])
        except SystemExit as stop:
            if stop.code:
                raise RuntimeError(f"`templax {' '.join(arguments)}` failed") from stop


def _find_latest(run: str) -> None:
    import templax as tx

    with tx.Manager(run) as manager:
        assert manager.latest() is not None


def _restore_latest(run: str, template: Any) -> None:
    import templax as tx

    with tx.Manager(run) as manager:
        manager.restore(template)


def _save_step(run: str, step: int, tree: Any) -> None:
    import templax as tx

    with tx.Manager(run) as manager:
        manager.save(step, tree)


if __name__ == "__main__":
    main()
