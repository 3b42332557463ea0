"""The fields of the JSON that `templax ls` and `templax steps` print: checkpoints and runs.

docs/reference/cli.md documents them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._catalog.catalog import Catalog
from .._catalog.entry import LeafEntry
from .._catalog.fingerprint import recorded_fingerprint
from .._runs.steps import Run, StepDirectory
from .json import select_fields
from .listing import make_restore_code


def catalog_fields(catalog: Catalog, shown: Sequence[LeafEntry]) -> dict[str, Any]:
    """A checkpoint, as `templax ls` prints it.

    Args:
        catalog: The checkpoint.
        shown: The leaves to list.
    """
    recorded = None if catalog.fingerprints is None else recorded_fingerprint(catalog)
    leaves = [
        {
            **select_fields(entry, "name", "path", "kind"),
            "dtype": entry.dtype_name,
            "shape": entry.user_shape,
            **select_fields(entry, "nbytes", "parameter_count", "saved_sharding"),
            "fingerprint": None if recorded is None else recorded.leaves[entry.name],
        }
        for entry in shown
    ]
    return {
        **select_fields(catalog, "url", "format", "evidence", "uncommitted", "metadata"),
        "fingerprint": None if recorded is None else str(recorded),
        "leaf_count": len(catalog.entries),
        **select_fields(catalog, "nbytes", "parameter_count"),
        "leaves": leaves,
        "restore": make_restore_code(catalog),
    }


def run_fields(run: Run) -> dict[str, Any]:
    """The steps of a run, as `templax steps` prints them."""
    return {
        "url": run.url,
        "format": "orbax",
        "evidence": run.evidence,
        "latest": max(run.committed, default=None),
        "steps": [_step_fields(found) for found in run.steps],
        "others": [_step_fields(found) for found in run.remains],
    }


def _step_fields(found: StepDirectory) -> dict[str, Any]:
    names = ("step", "url", "committed", "problem", "items", "metrics", "nbytes", "saved")
    return select_fields(found, *names) | ({"metrics": None} if found.unread is not None else {})
