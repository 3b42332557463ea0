"""Results held to what was saved."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..jobs import Job
from ..workloads import PyTree, named


class Wrong(Exception):
    """A result that is not what was saved."""


def compare(directory: Path, tree: PyTree, job: Job) -> None:
    """Holds a result to what was saved: names, dtypes, shapes, shardings, hashes of the bytes.

    Raises:
        Wrong: Names a leaf.
    """
    import jax

    found, wanted = named(tree), named(job.template)
    for name, leaf in found.items():
        if not isinstance(leaf, jax.Array):
            raise Wrong(f"{name} is a {type(leaf).__name__}")
        sharding = wanted[name].sharding if name in wanted else leaf.sharding
        if not leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
            raise Wrong(f"{name} has sharding {leaf.sharding}, asked for {sharding}")
    expected = json.loads(_expected(directory, job.uncast).read_text())
    if wrong := {key for key, _ in _hashes(found).items() ^ expected.items()}:
        raise Wrong(f"{len(wrong)} leaves differ from what was saved: {min(wrong)}")


def _expected(directory: Path, uncast: bool) -> Path:
    return directory / ("stored.json" if uncast else "asked.json")


def expect(directory: Path, tree: PyTree, template: PyTree, *, uncast: bool) -> None:
    import jax

    assert [leaf.dtype for leaf in jax.tree.leaves(tree)] == [
        leaf.dtype for leaf in jax.tree.leaves(template)
    ]
    _expected(directory, uncast).write_text(json.dumps(_hashes(named(tree))))


def _hashes(leaves: dict[str, Any]) -> dict[str, str]:
    """Name → dtype, shape and hash of the bytes."""
    import numpy as np

    def described(leaf: Any) -> str:
        digest = hashlib.sha256(np.asarray(leaf).reshape(-1).view(np.uint8)).hexdigest()
        return f"{leaf.dtype}{leaf.shape} {digest}"

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return dict(zip(leaves, pool.map(described, leaves.values()), strict=True))
