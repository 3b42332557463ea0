"""Compares results with what was saved."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..jobs import Job
from ..workloads import PyTree, name_leaves


class WrongResult(Exception):
    """A result that differs from what was saved."""


def compare_result(directory: Path, tree: PyTree, job: Job) -> None:
    """Compares names, dtypes, shapes, shardings and hashes of the bytes with what was saved.

    Raises:
        WrongResult: They differ; the message names a leaf.
    """
    import jax

    found, wanted = name_leaves(tree), name_leaves(job.template)
    for name, leaf in found.items():
        if not isinstance(leaf, jax.Array):
            raise WrongResult(f"{name} is a {type(leaf).__name__}")
        sharding = wanted[name].sharding if name in wanted else leaf.sharding
        if not leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
            raise WrongResult(f"{name} has sharding {leaf.sharding}, asked for {sharding}")
    expected = json.loads(_locate_hashes(directory, job.keep_dtypes).read_text())
    if wrong := {key for key, _ in _hash_leaves(found).items() ^ expected.items()}:
        raise WrongResult(f"{len(wrong)} leaves differ from what was saved: {min(wrong)}")


def write_expected(directory: Path, tree: PyTree, template: PyTree, *, keep_dtypes: bool) -> None:
    """Writes the hashes that results are compared with.

    Args:
        directory: Where `compare_result` looks for them.
        tree: The expected result.
        template: What it is restored through.
        keep_dtypes: Whether this is the result of jobs with `keep_dtypes`.
    """
    import jax

    assert [leaf.dtype for leaf in jax.tree.leaves(tree)] == [
        leaf.dtype for leaf in jax.tree.leaves(template)
    ]
    hashes = _hash_leaves(name_leaves(tree))
    _locate_hashes(directory, keep_dtypes).write_text(json.dumps(hashes))


def _locate_hashes(directory: Path, keep_dtypes: bool) -> Path:
    return directory / ("stored.json" if keep_dtypes else "asked.json")


def _hash_leaves(leaves: dict[str, Any]) -> dict[str, str]:
    """Name → dtype, shape and hash of the bytes."""
    import numpy as np

    def hash_leaf(leaf: Any) -> str:
        digest = hashlib.sha256(np.asarray(leaf).reshape(-1).view(np.uint8)).hexdigest()
        return f"{leaf.dtype}{leaf.shape} {digest}"

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return dict(zip(leaves, pool.map(hash_leaf, leaves.values()), strict=True))
