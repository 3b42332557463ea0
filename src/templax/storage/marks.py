"""Names by which the state of a save is known: whoever reads a directory looks for them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

TEMPORARY = ".orbax-checkpoint-tmp"
"""Part of the name of every unfinished save, whichever program writes it."""

LEASE = "templax.lease"
"""The object that a checkpoint in an object store has while it is saved or deleted; see `lease.py`.

Without the marker of a commit beside it, it is a sign of a save that has not finished.
"""

COMMITTED = "commit_success.txt"
"""The object that a save to an object store writes last, as Orbax does."""

DATA_FILE = re.compile(r"(?:[^/]+/)*d/[0-9a-f]{32}")
"""The files of a save that hold values. They are written before all others."""

DELETION = "_CHECKPOINT_DELETION"
"""Orbax puts this into a checkpoint before it begins to delete it."""

STEP_METADATA = "_CHECKPOINT_METADATA"
"""The file that tells, among other things, when a checkpoint was committed."""


def list_foreign_names(paths: Iterable[str], own: Collection[str]) -> list[str]:
    """The names in a directory that an unfinished save has neither written nor begun to replace.

    Args:
        paths: All files in it, relative to it.
        own: The names that the lease of the save lists. Files that are named as saves name their
            values are not foreign either.
    """
    foreign = {
        path.partition("/")[0] for path in paths if path != LEASE and not DATA_FILE.fullmatch(path)
    }
    return sorted(foreign.difference(own))
