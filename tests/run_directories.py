"""Directories of steps, made of checkpoints of the corpus."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from helpers import CKPT, copy_case, list_names
from templax._runs.locks import LOCK


def copy_steps(run: Path, names: Iterable[str], case: str = "orbax-0.12.8-default") -> Path:
    """Puts a copy of one checkpoint under each name. Returns `run`."""
    for name in names:
        copy_case(case, run / name)
    return run


def write_step(step: Path, *, metrics: str | None = None, **metadata: Any) -> Path:
    """Makes a step whose only tree is the item `default`. Returns `step`.

    Args:
        metrics: The text of the item `metrics`; without it there is none.
        metadata: Fields of `_CHECKPOINT_METADATA`.
    """
    shutil.copytree(CKPT, step / "default")
    about = {"item_handlers": {"default": "x"}, "commit_timestamp_nsecs": 10**18, **metadata}
    (step / "_CHECKPOINT_METADATA").write_text(json.dumps(about))
    if metrics is not None:
        (step / "metrics").mkdir()
        (step / "metrics" / "metrics").write_text(metrics)
    return step


def list_run(run: Path) -> set[str]:
    """The names in a directory of steps, without the lock file."""
    return set(list_names(run)) - {LOCK}
