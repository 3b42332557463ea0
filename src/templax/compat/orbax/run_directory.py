"""The directory of a run: its committed steps, its own metadata, and what killed saves left."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import templax as tx

from ...formats.orbax import directory
from ...storage.leftovers import TEMPORARY, is_abandoned, remove_directory
from ...storage.local import Local
from ...storage.open import open_source
from ...storage.staging import Staging

_ROOT_METADATA = "_ROOT_METADATA"


def find_committed(root: str, prefix: str, *, own: bool) -> dict[int, str]:
    """Number → name of each committed step of a run; other runs may lie in the directory.

    Args:
        root: The directory to list.
        prefix: The part before the number in the names of the run's steps.
        own: Only steps with this prefix. Otherwise, if the prefix is empty and no step is named
            without one, those with the prefix of the latest step.
    """
    steps = [step for step in directory.list_steps(open_source(root)) if step.committed]
    if not (own or prefix or any(directory.step_prefix(s.key) == prefix for s in steps)):
        prefix = directory.step_prefix(steps[-1].key) if steps else ""
    return {s.step: s.key for s in steps if directory.step_prefix(s.key) == prefix}


def write_root_metadata(root: str, metadata: Mapping[str, Any]) -> None:
    """Writes the metadata of a run, unless an earlier manager of the directory has written its."""
    text = json.dumps({"internal_metadata": {}, "custom_metadata": metadata})
    path = os.path.join(root, "metadata")
    with suppress(tx.AlreadyExists), Staging(path, overwrite=False) as staging:
        staging.put(_ROOT_METADATA, text.encode())
        staging.commit()


def read_root_metadata(root: str) -> Any:
    """The metadata of a run, or None if no manager has written any."""
    path = os.path.join(root, "metadata", _ROOT_METADATA)
    if not os.path.exists(path):
        return None
    return json.loads(Path(path).read_bytes()).get("custom_metadata") or {}


def remove_leftovers(root: str) -> None:
    """Removes what killed saves left behind."""
    for info in Local(root).children():
        path = os.path.join(root, info.key.rstrip("/"))
        with suppress(OSError, tx.SaveError):  # leftovers do no harm
            if TEMPORARY in info.key and is_abandoned(path):
                remove_directory(path)
