"""Checkpoints that do not match their template, and what follows from the hints of the match."""

from __future__ import annotations

import re
from typing import Any

import templax as tx
from helpers import checkpoint_like, f32

DENSE = {"kernel": f32(3, 8), "bias": f32(8)}
MLP = {"Dense_0": DENSE, "Dense_1": {"kernel": f32(8, 4), "bias": f32(4)}}


def fail_match(checkpoint: Any, template: Any, **options: Any) -> tx.Match:
    """Matches two abstract trees; asserts that they do not match."""
    match = tx.check(checkpoint_like(checkpoint), template, **options)
    assert not match.ok
    return match


def follow_hints(match: tx.Match, checkpoint: Any, template: Any, **options: Any) -> tx.Match:
    """Matches again with the keyword arguments that the hints spell."""
    for hint in {m.hint for m in match.mismatches if m.hint}:
        options |= eval(f"dict({hint})", {"re": re})  # noqa: S307 - the tests are about hints being valid Python
    return tx.check(checkpoint_like(checkpoint), template, **options)


def has_no_hint(match: tx.Match) -> bool:
    """Whether neither the report nor a mismatch carries a hint."""
    return "hint" not in str(match) and all(m.hint is None for m in match.mismatches)


def mismatched_trees(n: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A checkpoint and a template with `n` leaves of different shapes."""
    names = [f"w{i:02}" for i in range(n)]
    return dict.fromkeys(names, f32(2)), dict.fromkeys(names, f32(3))
