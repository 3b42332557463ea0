"""What a directory of steps holds: the steps, finished or not, and what dead saves left there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..formats.orbax.directory import (
    ItemKind,
    Step,
    examine_directory,
    step_metadata,
    step_metrics,
    uncommitted_reason,
)
from ..storage.leftovers import TEMPORARY
from ..storage.source import Source


@dataclass(frozen=True, slots=True)
class StepDirectory:
    """A directory that a save made, or began to make, below a run.

    Attributes:
        step: Its number; None of what a save left that was none of a step.
        key: Its name.
        url: Where it is.
        problem: Why it is not a finished save; None if it is one.
        items: Name → kind; empty if the step is an item itself.
        metrics: What it was saved with.
        nbytes: Of its files; None if they were not counted.
        saved: When, in Unix seconds: its commit, or else the last change of a file (None if the
            files were not looked at, or the store does not say).
    """

    step: int | None
    key: str
    url: str
    problem: str | None = None
    items: Mapping[str, ItemKind] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    nbytes: int | None = None
    saved: float | None = None

    @property
    def committed(self) -> bool:
        return self.problem is None


@dataclass(frozen=True, slots=True)
class Run:
    """A directory of steps.

    Attributes:
        url: Where it is.
        evidence: Why it is one, in words.
        directories: By number, those that are no step last; committed or not.
    """

    url: str
    evidence: str
    directories: tuple[StepDirectory, ...]

    @property
    def steps(self) -> tuple[StepDirectory, ...]:
        """Those with a number, committed or not."""
        return tuple(d for d in self.directories if d.step is not None)

    @property
    def committed(self) -> dict[int, StepDirectory]:
        """The finished steps by number, ascending."""
        return {d.step: d for d in self.directories if d.step is not None and d.committed}

    @property
    def leftovers(self) -> tuple[StepDirectory, ...]:
        """What saves left that never finished, or are under way."""
        return tuple(d for d in self.directories if not d.committed)


def read_run(source: Source, *, sizes: bool = True) -> Run | None:
    """A directory of steps; None if it is something else.

    Args:
        source: The directory.
        sizes: Whether to look at every file, for `nbytes` and where there is no time of the commit.
    """
    root = examine_directory(source)
    if root is None or root.what != "steps":
        return None
    found = [*root.steps, *_others(source, root.steps)]
    directories = tuple(_directory(source, each, sizes) for each in found)
    return Run(source.url, root.evidence, directories)


def _others(source: Source, steps: tuple[Step, ...]) -> Iterator[str]:
    """Temporary directories of what is no step, by name."""
    known = {step.key for step in steps}
    for info in source.children():
        key = info.key.rstrip("/")
        if info.is_dir and TEMPORARY in key and key not in known:
            yield key


def _directory(source: Source, found: Step | str, sizes: bool) -> StepDirectory:
    step, key = (None, found) if isinstance(found, str) else (found.step, found.key)
    child = source.at(key)
    nbytes, changed = _files(child) if sizes else (None, None)
    root = examine_directory(child)
    return StepDirectory(
        step=step,
        key=key,
        url=child.url,
        problem=uncommitted_reason(child) if isinstance(found, str) else found.problem,
        items=dict(root.items) if root is not None else {},
        metrics=step_metrics(child),
        nbytes=nbytes,
        saved=_commit_time(child) or changed,
    )


def _files(source: Source) -> tuple[int, float | None]:
    """Bytes of all files, and when the last of them, or the directory, was changed."""
    nbytes, times = 0, []
    root = source.stat("")
    infos = list(source.walk())
    for info in infos if root is None else [root, *infos]:
        nbytes += info.size
        if info.modified is not None:
            times.append(info.modified)
    return nbytes, max(times, default=None)


def _commit_time(source: Source) -> float | None:
    nanoseconds = step_metadata(source).get("commit_timestamp_nsecs")
    if isinstance(nanoseconds, int) and 0 < nanoseconds < 2**63:  # a file may say anything
        return nanoseconds / 1e9
    return None
