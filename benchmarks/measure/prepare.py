"""Saves a workload, and the hashes that its restores are compared with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from ..files import WRITERS, list_files, locate_checkpoint
from ..workloads import WARM_UP, WORKLOADS, Workload, count_bytes, make_values, name_leaves
from .compare import write_expected
from .processes import ChildProcess, report_errors


def prepare_workload(
    directory: Path, workload: Workload, scale: float, kinds: Sequence[str]
) -> tuple[int, int]:
    """Saves a workload in a process of its own, and waits until it is on the disk.

    Args:
        directory: Where to write.
        workload: What to save.
        scale: The scale of the workload.
        kinds: The kinds of files to write; may be empty, for the hashes alone.

    Returns:
        Leaves and bytes of the result of a restore.
    """
    child = ChildProcess(_write_workload, directory, workload.name, scale, kinds)
    try:
        _, leaves, nbytes = child.receive("saved")
    finally:
        child.end()
    for kind in kinds:
        for path in list_files(locate_checkpoint(directory, workload, kind)):
            with path.open("rb") as file:
                os.fsync(file.fileno())  # the page cache can't drop dirty pages
    return leaves, nbytes


def _write_workload(
    pipe: Connection, directory: Path, name: str, scale: float, kinds: Sequence[str]
) -> None:
    workload = WORKLOADS[name]
    with report_errors(pipe, workload):
        import jax

        warm_up = make_values(WARM_UP.make_stored(scale))
        stored = workload.make_stored(scale)
        tree = make_values(stored)
        for kind in kinds:
            WRITERS[kind](locate_checkpoint(directory, WARM_UP, kind), warm_up)
            WRITERS[kind](locate_checkpoint(directory, workload, kind), tree)
        write_expected(directory, tree, stored, keep_dtypes=True)
        template = workload.make_template(stored)
        leaves = name_leaves(tree)
        asked = [leaves[key].astype(t.dtype) for key, t in name_leaves(template).items()]
        result = jax.tree.unflatten(jax.tree.structure(template), asked)
        write_expected(directory, result, template, keep_dtypes=False)
        pipe.send(("saved", len(asked), count_bytes(result)))
