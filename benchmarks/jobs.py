"""What a library is given to restore or to save, and the call that it gives back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .workloads import PyTree, Workload, named

Restore = Callable[[], PyTree]

Save = Callable[[Path], Callable[[], Any] | None]
"""Saves to a path. If something goes on behind it, it gives what waits for the end of that."""


@dataclass(frozen=True)
class Job:
    """One workload as one library gets it.

    Attributes:
        path: The file or directory to restore.
        workload: What is asked.
        scale: Of the workload.
        uncast: Ask for the dtypes in the file.
        notes: A library may say how it did it; printed below the table.
    """

    path: Path
    workload: Workload
    scale: float
    uncast: bool = False
    notes: list[str] = field(default_factory=list)

    @functools.cached_property
    def stored(self) -> PyTree:
        """The whole tree in the file, abstract."""
        return self.workload.stored(self.scale)

    @functools.cached_property
    def template(self) -> PyTree:
        """What is asked for, abstract. Needs JAX, so that the process from its start builds it."""
        return self.stored if self.uncast else self.workload.wanted(self.stored)

    @property
    def nbytes(self) -> int:
        """Of what is asked for."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in named(self.template).values())

    @functools.cached_property
    def plain(self) -> bool:
        """The tree as it is in the file, on one device: libraries without options suffice."""
        return self.workload.devices == 1 and self.stored is self.template
