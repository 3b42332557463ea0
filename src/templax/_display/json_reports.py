"""The fields of the JSON that `templax check`, `convert`, `diff`, `plan` and `verify` print.

docs/reference/cli.md documents them.
"""

from __future__ import annotations

from typing import Any

from .._audit.diff_result import Diff, LeafDiff
from .._audit.result import Verified
from .._catalog.entry import LeafEntry
from .._convert.result import Converted
from .._match.result import Match
from .._plan.job import JobPlan, list_figures
from .._plan.plan import Plan, plan_figures
from .json import select_fields


def match_fields(match: Match) -> dict[str, Any]:
    """A comparison, as `templax check` prints it."""
    mismatch = ("problem", "name", "expected", "found", "note", "hint")
    return {
        **select_fields(match, "ok", "url", "summary", "rename"),
        "mismatches": [select_fields(m, *mismatch) for m in match.mismatches],
        "casts": match.casts,
        "matched": len(match.pairs),
        **select_fields(match, "supplied", "kept", "skipped", "ignored", "undecidable"),
        **select_fields(match, "unused_patterns"),
    }


def plan_fields(plan: Plan) -> dict[str, Any]:
    """The figures of a plan, as `templax plan` prints them."""
    figures = {name.replace(" ", "_"): figure for name, figure, _ in plan_figures(plan)}
    return {
        "ok": True,
        "url": plan.match.url,
        **figures,
        "unverified": plan.unverified,
        "filled": plan.filled,
        **select_fields(plan.match, "supplied", "kept", "ignored"),
    }


def job_fields(plan: JobPlan) -> dict[str, Any]:
    """What the hosts of a job would read, as `templax plan --mesh` prints it."""
    columns: dict[str, dict[str, int]] = {n: {} for n in ("least", "median", "most", "all_hosts")}
    for what, *values in list_figures(plan):
        for column, value in zip(columns.values(), values, strict=True):
            column[what.replace(" ", "_")] = value
    return {
        "ok": True,
        "url": plan.match.url,
        **select_fields(plan.topology, "hosts", "devices_per_host", "mesh", "platform"),
        **columns,
        "worst_hosts": plan.worst.hosts,
        **select_fields(plan, "distinct_bytes", "repeated_bytes", "whole", "threads"),
        **select_fields(plan.match, "supplied", "kept", "ignored"),
    }


def verification_fields(verified: Verified) -> dict[str, Any]:
    """A verification, as `templax verify` prints it."""
    damage = ("what", "leaf", "box", "file", "start", "stop", "hint")
    return {
        **select_fields(verified, "ok", "url", "leaves"),
        "damages": [select_fields(error, *damage) for error in verified.damages],
        **select_fields(
            verified, "checked_bytes", "unchecked_bytes", "unchecked", "filled", "unread", "seconds"
        ),
    }


def conversion_fields(converted: Converted) -> dict[str, Any]:
    """A conversion, as `templax convert` prints it."""
    return {
        "ok": True,
        **select_fields(converted, "source", "source_format", "path", "format", "leaves"),
        **select_fields(converted, "value_bytes", "nbytes"),
        "fingerprint": str(converted.fingerprint),
        **select_fields(converted, "verified", "casts", "overflows", "lost"),
        **select_fields(converted, "filled", "shared"),
        **select_fields(converted, "resumed_bytes", "restarted", "not_removed", "seconds"),
    }


def diff_fields(diff: Diff) -> dict[str, Any]:
    """A comparison of two checkpoints, as `templax diff` prints it."""
    return {
        "ok": not diff.differs,
        "identical": diff.identical,
        "a": {"url": diff.a, "format": diff.format_a},
        "b": {"url": diff.b, "format": diff.format_b},
        "differing": len(diff.differing),
        **select_fields(diff, "by_fingerprint", "by_reading"),
        "leaves": [_leaf_fields(leaf) for leaf in diff.leaves],
        **select_fields(diff, "shardings", "empties", "unread", "seconds"),
    }


def _leaf_fields(leaf: LeafDiff) -> dict[str, Any]:
    return {
        **select_fields(leaf, "name", "differences", "basis", "values", "note"),
        "a": _entry_fields(leaf.a),
        "b": _entry_fields(leaf.b),
    }


def _entry_fields(entry: LeafEntry | None) -> dict[str, Any] | None:
    if entry is None:
        return None
    return {
        **select_fields(entry, "name", "kind"),
        "dtype": entry.dtype_name,
        "shape": entry.user_shape,
        **select_fields(entry, "nbytes", "saved_sharding", "value"),
    }
