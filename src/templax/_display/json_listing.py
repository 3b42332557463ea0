"""The fields of the JSON that `templax ls`, `steps` and `prune` print: checkpoints and runs.

docs/reference/cli.md documents them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._audit.account_result import ByteAccount
from .._catalog.catalog import Catalog
from .._catalog.entry import LeafEntry
from .._catalog.fingerprint import recorded_fingerprint
from .._runs.steps import Run, StepDirectory
from .json import select_fields


def catalog_fields(catalog: Catalog, shown: Sequence[LeafEntry], code: str) -> dict[str, Any]:
    """A checkpoint, as `templax ls` prints it.

    Args:
        catalog: The checkpoint.
        shown: The leaves to list.
        code: What restores the checkpoint.
    """
    recorded = None if catalog.fingerprints is None else recorded_fingerprint(catalog)
    leaves = [
        {
            **select_fields(entry, "name", "path", "kind"),
            "dtype": entry.dtype_name,
            "shape": entry.user_shape,
            **select_fields(entry, "nbytes", "parameter_count", "saved_sharding", "quantisation"),
            **select_fields(entry, "made_from", "undecodable"),
            "fingerprint": None if recorded is None else recorded.leaves[entry.name],
        }
        for entry in shown
    ]
    return {
        **select_fields(catalog, "url", "format", "evidence", "uncommitted", "metadata", "unread"),
        "fingerprint": None if recorded is None else str(recorded),
        "leaf_count": len(catalog.entries),
        **select_fields(catalog, "nbytes", "parameter_count"),
        "leaves": leaves,
        "restore": code,
    }


def account_fields(account: ByteAccount) -> dict[str, Any]:
    """What the bytes of a checkpoint are for, as `templax ls --bytes` prints it."""
    return {
        **select_fields(account, "url", "format", "nbytes", "decoded", "kinds"),
        "files": [select_fields(file, "file", "nbytes", "kinds") for file in account.files],
        "parts": [select_fields(part, "kind", "what", "nbytes") for part in account.parts],
        "leaves": [
            select_fields(leaf, "name", "stored", "inline", "nbytes") for leaf in account.leaves
        ],
        "shared": [select_fields(shared, "leaves", "nbytes") for shared in account.shared],
        "gaps": [select_fields(gap, "file", "start", "stop", "what") for gap in account.gaps],
        "unread": account.unread,
    }


def run_fields(run: Run) -> dict[str, Any]:
    """The steps of a run, as `templax steps` prints them."""
    return {
        "url": run.url,
        "format": None if run.evidence is None else "orbax",
        "evidence": run.evidence,
        "latest": max(run.committed, default=None),
        "steps": [_step_fields(found) for found in run.steps],
        "others": [_step_fields(found) for found in run.remains],
    }


def prune_fields(run: Run, stays: Mapping[str, str], *, dry_run: bool, ok: bool) -> dict[str, Any]:
    """What `templax prune` did, or would do: the fields of `templax steps`, and each one's fate.

    Args:
        run: The run before anything was deleted.
        stays: The name of each directory that stays, and the reason.
        dry_run: Whether nothing was to be deleted.
        ok: Whether everything that no rule keeps was, or would be, deleted.
    """
    fields = run_fields(run)
    for shown, directories in ((fields["steps"], run.steps), (fields["others"], run.remains)):
        for each, found in zip(shown, directories, strict=True):
            going = found.key not in stays
            each |= {"stays": stays.get(found.key), "deleted": going and not dry_run}
    going = [found for found in run.directories if found.key not in stays]
    return {
        "ok": ok,
        "dry_run": dry_run,
        "freed_nbytes": sum(found.nbytes or 0 for found in going),
        **fields,
    }


def _step_fields(found: StepDirectory) -> dict[str, Any]:
    names = ("step", "url", "committed", "problem", "items", "metrics", "nbytes", "saved")
    return select_fields(found, *names) | ({"metrics": None} if found.unread is not None else {})
