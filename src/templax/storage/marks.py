"""Names by which the state of a save is known: whoever reads a directory looks for them."""

from __future__ import annotations

TEMPORARY = ".orbax-checkpoint-tmp"
"""Part of the name of every unfinished save, whichever program writes it."""

LEASE = "templax.lease"
"""The object that a checkpoint in an object store has while it is saved or deleted; see `lease.py`.

Without the marker of a commit beside it, it is a sign of a save that has not finished.
"""

COMMITTED = "commit_success.txt"
"""The object that a save to an object store writes last, as Orbax does."""

STEP_METADATA = "_CHECKPOINT_METADATA"
"""The file that tells, among other things, when a checkpoint was committed."""
