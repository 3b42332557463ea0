"""Saves a tree with templax in every layout that Orbax is asked to restore."""

from __future__ import annotations

from pathlib import Path

import templax as tx

from . import orbax_peer
from .trees import PyTree

OURS, OURS_ZSTD = "templax", "templax-zstd"
"""The directories of raw and of compressed checkpoints."""


def save_layouts(root: Path, name: str, tree: PyTree) -> None:
    """Saves where `orbax_peer` looks: as an item, raw and compressed, for v1, and as a step."""
    tx.save(root / OURS / name / "item", tree)
    tx.save(root / OURS_ZSTD / name / "item", tree, compression="zstd")
    tx.save(root / OURS / name / "v1" / "pytree", tree)
    with tx.Manager(root / OURS / name / "manager") as manager:
        manager.save(orbax_peer.STEP, tree, metrics=orbax_peer.METRICS, wait=True)
