"""The contents of a run: its steps, committed or not, and what killed saves left there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import CheckpointError, SourceError
from ..formats.orbax.directory import (
    ItemKind,
    examine_directory,
    list_saved_items,
    uncommitted_reason,
)
from ..formats.orbax.step_names import Step, is_temporary
from ..storage.source import Source, list_ahead
from .contents import list_unread
from .locks import LOCK
from .step_facts import read_commit_time, read_metrics_ahead, read_step_metrics


@dataclass(frozen=True, slots=True)
class Leftover:
    """A directory that a save left in a run, and whose name is not that of a step.

    Attributes:
        key: Its name.
        problem: Why it is not a finished save; None if nothing says so.
    """

    key: str
    problem: str | None


@dataclass(frozen=True, slots=True)
class StepDirectory:
    """A directory that a save made, or began to make, in a run.

    Attributes:
        entry: The step as it was listed, or a `Leftover`.
        url: The path of the directory.
        items: Name → kind of each item; empty if the step is an item itself.
        metrics: The metrics that the step was saved with.
        unread: Why these are unreadable; None if they are not.
        nbytes: The total size of its files; None if it was not or could not be measured.
        saved: The time of its commit, or else of the last change to a file, in Unix seconds. None
            if the files were not examined, or if the store has no times.
    """

    entry: Step | Leftover
    url: str
    items: Mapping[str, ItemKind] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    nbytes: int | None = None
    saved: float | None = None
    unread: str | None = None

    @property
    def step(self) -> int | None:
        """The step number, or None for a `Leftover`."""
        return self.entry.step if isinstance(self.entry, Step) else None

    @property
    def key(self) -> str:
        """The name of the directory."""
        return self.entry.key

    @property
    def temporary(self) -> bool:
        """Whether it has the name of a directory that a save writes to before it commits."""
        return is_temporary(self.entry.key)

    @property
    def problem(self) -> str | None:
        """Why the directory is not a finished save, or None if it is one."""
        return self.entry.problem

    @property
    def committed(self) -> bool:
        """Whether the directory is a finished save."""
        return self.entry.problem is None


@dataclass(frozen=True, slots=True)
class Run:
    """A directory of steps.

    Attributes:
        url: The path of the directory.
        evidence: How it was recognised as a run, in words; None if nothing in it says so, for lack
            of steps.
        directories: The steps by number, committed or not; then the leftovers.
        unrelated: If there are no steps, the names of what else is in the directory, such as logs.
    """

    url: str
    evidence: str | None
    directories: tuple[StepDirectory, ...]
    unrelated: tuple[str, ...] = ()

    @property
    def steps(self) -> tuple[StepDirectory, ...]:
        """The directories that have the name of a step, committed or not."""
        return tuple(d for d in self.directories if d.step is not None and not d.temporary)

    @property
    def remains(self) -> tuple[StepDirectory, ...]:
        """The directories that saves have left, or write to, and that no step is named like."""
        return tuple(d for d in self.directories if d.step is None or d.temporary)

    @property
    def committed(self) -> dict[int, StepDirectory]:
        """The committed steps by number, ascending."""
        return {d.step: d for d in self.directories if d.step is not None and d.committed}

    @property
    def leftovers(self) -> tuple[StepDirectory, ...]:
        """The directories of saves that never finished, or are in progress."""
        return tuple(d for d in self.directories if not d.committed)


def read_run(source: Source, *, sizes: bool = True) -> Run | None:
    """The contents of a directory of steps, or None if it is something else.

    Directories whose names differ by more than their numbers are not the steps of a run.

    Args:
        source: The directory.
        sizes: Whether to examine every file, for `nbytes`, and for `saved` where no time of the
            commit is recorded.
    """
    list_ahead(source)
    root = examine_directory(source)
    if root is None or root.what != "steps" or len(root.prefixes) > 1:
        return None
    entries = [*root.steps, *_find_leftovers(source, root.steps)]
    read_metrics_ahead(source, [entry.key for entry in entries])
    directories = tuple(_read_directory(source, entry, sizes) for entry in entries)
    return Run(source.url, root.evidence, directories)


def read_empty_run(source: Source, *, sizes: bool = True) -> Run | None:
    """The contents of a directory without steps; None if something in it looks like one.

    A manager begins a run there. Leftovers of saves may be in it, and what a program writes besides
    its steps.

    Args:
        source: The directory.
        sizes: See `read_run`.
    """
    info = source.stat("")
    if info is None or not info.is_dir:
        return None
    if examine_directory(source) is not None:
        return None
    leftovers = tuple(_find_leftovers(source, ()))
    known = {found.key for found in leftovers}
    if next(list_unread(source, known), None) is not None:
        return None
    names = [child.key for child in source.children()]
    evidence = f"the lock file `{LOCK}`" if LOCK in names else None
    if leftovers:
        evidence = f"the temporary directory `{leftovers[0].key}`"
    directories = tuple(_read_directory(source, found, sizes) for found in leftovers)
    unrelated = (name for name in names if name != LOCK and name.rstrip("/") not in known)
    return Run(source.url, evidence, directories, tuple(unrelated))


def read_leftovers(source: Source) -> Run | None:
    """The leftovers of unfinished saves in a directory of other things, as a run without steps.

    Returns:
        None if the directory does not exist.
    """
    info = source.stat("")
    if info is None or not info.is_dir:
        return None
    leftovers = tuple(_find_leftovers(source, ()))
    return Run(source.url, None, tuple(_read_directory(source, found, True) for found in leftovers))


def _find_leftovers(source: Source, steps: tuple[Step, ...]) -> Iterator[Leftover]:
    """The temporary directories that are not those of steps."""
    known = {step.key for step in steps}
    for info in source.children():
        key = info.key.rstrip("/")
        if info.is_dir and is_temporary(key) and key not in known:
            try:
                problem = uncommitted_reason(source.at(key))
            except SourceError as error:
                problem = str(error)
            yield Leftover(key, problem)


def _read_directory(source: Source, entry: Step | Leftover, sizes: bool) -> StepDirectory:
    child = source.at(entry.key)
    nbytes = changed = saved = unread = None
    items, metrics = dict[str, ItemKind](), dict[str, Any]()
    try:
        nbytes, changed = _measure_files(child) if sizes else (None, None)
        items = list_saved_items(child)
        saved = read_commit_time(child)
        metrics = read_step_metrics(child)
    except CheckpointError as error:
        unread = error.what
    except SourceError as error:
        unread = str(error)
    return StepDirectory(
        entry=entry,
        url=child.url,
        items=items,
        metrics=metrics,
        nbytes=nbytes,
        saved=saved or changed,
        unread=unread,
    )


def _measure_files(source: Source) -> tuple[int | None, float | None]:
    """The bytes of all files, and the time of the last change to one or to the directory.

    None for the bytes if some can't be read, or are behind a link that is not followed.
    """
    nbytes, times = 0, []
    root = source.stat("")
    infos = list(source.walk())
    unread = any(isinstance(info.problem, SourceError) for info in infos)
    for info in infos if root is None else [root, *infos]:
        nbytes += info.size
        if info.modified is not None:
            times.append(info.modified)
    return None if unread else nbytes, max(times, default=None)
