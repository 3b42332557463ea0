"""A workload saved, and what to expect of its restores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from ..files import WRITERS, file_of, files_under
from ..workloads import WARM_UP, WORKLOADS, Workload, named, values
from .compare import expect
from .processes import Answers, Child


def written(
    directory: Path, workload: Workload, scale: float, kinds: Sequence[str]
) -> tuple[int, int]:
    """Saves a workload in a process of its own, and waits until the disk has it.

    Returns:
        Leaves and bytes that are asked for.
    """
    child = Child(save, directory, workload.name, scale, kinds)
    try:
        _, leaves, nbytes = child.answer("saved")
    finally:
        child.end()
    for kind in kinds:
        for file in files_under(file_of(directory, workload, kind)):
            with file.open("rb") as opened:
                os.fsync(opened.fileno())  # dirty pages can't be dropped from the page cache
    return leaves, nbytes


def save(pipe: Connection, directory: Path, name: str, scale: float, kinds: Sequence[str]) -> None:
    """Writes a workload and the warm-up in some kinds, and the hashes of what to expect."""
    workload = WORKLOADS[name]
    with Answers(pipe, workload):
        import jax

        warm_up = values(WARM_UP.stored(scale))
        template = workload.stored(scale)
        tree = values(template)
        for kind in kinds:
            WRITERS[kind](file_of(directory, WARM_UP, kind), warm_up)
            WRITERS[kind](file_of(directory, workload, kind), tree)
        expect(directory, tree, template, uncast=True)
        wanted = workload.wanted(template)
        leaves = named(tree)
        asked = {key: leaves[key].astype(t.dtype) for key, t in named(wanted).items()}
        asked = jax.tree.unflatten(jax.tree.structure(wanted), list(asked.values()))
        expect(directory, asked, wanted, uncast=False)
        count = len(jax.tree.leaves(wanted))
        pipe.send(("saved", count, sum(leaf.nbytes for leaf in jax.tree.leaves(asked))))
