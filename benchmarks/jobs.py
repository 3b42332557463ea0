"""What a library is given to restore or to save, and the timed call that it returns."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .workloads import PyTree, Workload, count_bytes

Restore = Callable[[], PyTree]

Save = Callable[[Path], Callable[[], Any] | None]
"""Saves to a path. A save in the background returns a function that waits for its end."""


@dataclass(frozen=True)
class Job:
    """One workload for one library to restore.

    Attributes:
        path: The file or directory to restore.
        workload: What to restore.
        scale: The scale of the workload.
        keep_dtypes: Ask for the dtypes and shardings with which the tree was saved.
        notes: Filled by a library that has something to say about its run; printed below the table.
    """

    path: Path
    workload: Workload
    scale: float
    keep_dtypes: bool = False
    notes: list[str] = field(default_factory=list)

    @functools.cached_property
    def stored(self) -> PyTree:
        """The whole tree in the file, abstract."""
        return self.workload.make_stored(self.scale)

    @functools.cached_property
    def template(self) -> PyTree:
        """What to restore, abstract. Imports JAX, hence built on first use."""
        return self.stored if self.keep_dtypes else self.workload.make_template(self.stored)

    @property
    def nbytes(self) -> int:
        """Bytes of the result."""
        return count_bytes(self.template)

    @functools.cached_property
    def is_plain(self) -> bool:
        """Whether the whole tree is asked for as it is in the file, on one device."""
        return self.workload.devices == 1 and self.stored is self.template
