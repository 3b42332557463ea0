"""Orbax's `path.step`: how the directories of steps are named and found."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import templax as tx

from ...._runs.step_facts import read_commit_time
from ....formats.orbax import directory
from ....formats.orbax.step_metadata import step_metadata
from ....formats.orbax.step_names import Step, final_name, is_temporary
from ....storage.leftovers import TEMPORARY
from ....storage.local import Local
from ....storage.open import open_source
from ..unmapped import make_getattr

if TYPE_CHECKING:
    from ..saver import PathLike

__all__ = [
    "ALLOWED_STEP_NAME_PATTERN",
    "TMP_DIR_STEP_PATTERN",
    "TMP_DIR_SUFFIX",
    "Metadata",
    "NameFormat",
    "TemporaryPath",
    "all_temporary_paths",
    "any_checkpoint_step",
    "build_step_metadatas",
    "build_step_path",
    "checkpoint_steps",
    "checkpoint_steps_paths",
    "composite_name_format",
    "find_step_path",
    "get_save_directory",
    "is_checkpoint_finalized",
    "is_path_finalized",
    "is_path_temporary",
    "is_standard_name_format",
    "is_tmp_checkpoint",
    "latest_step_metadata",
    "maybe_find_step_metadata",
    "single_host_load_and_broadcast_name_format",
    "standard_name_format",
    "step_from_checkpoint_name",
    "step_metadata_of_checkpoint_path",
    "step_prefix_with_underscore",
    "tmp_checkpoints",
]

TMP_DIR_SUFFIX = f"{TEMPORARY}-"
"""Part of the name of every save that has not finished."""

ALLOWED_STEP_NAME_PATTERN = r"(.+)_(\d+)"
"""The name of a step that has a prefix."""

TMP_DIR_STEP_PATTERN = rf".*?_*?(\d+){re.escape(TEMPORARY)}"
"""The start of the name of a step whose save has not finished."""


@dataclass(frozen=True)
class Metadata:
    """A step that was found.

    Attributes:
        step: Its number.
        path: Its directory.
    """

    step: int
    path: Path

    @cached_property
    def _step_metadata(self) -> dict[str, Any]:
        return step_metadata(Local(os.fspath(self.path)))

    @property
    def init_timestamp_nsecs(self) -> int | None:
        """The time at which its save began, in Unix nanoseconds, or None."""
        return self._step_metadata.get("init_timestamp_nsecs")

    @property
    def commit_timestamp_nsecs(self) -> int | None:
        """The time of its commit in Unix nanoseconds, or None."""
        return self._step_metadata.get("commit_timestamp_nsecs")

    @property
    def commit_timestamp(self) -> datetime.datetime:
        """The time of its commit, or else of the last change to its directory, in UTC."""
        noted = read_commit_time(Local(os.fspath(self.path)))
        seconds = os.stat(self.path).st_mtime if noted is None else noted
        return datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC)


MetadataT = TypeVar("MetadataT", bound=Metadata)
FoundT = TypeVar("FoundT", bound=Metadata, covariant=True)


class NameFormat(Protocol[FoundT]):
    """How a manager names steps and finds them; one of your own needs no base class.

    `standard_name_format` and `composite_name_format` make the usual ones. Those of Orbax itself
    are accepted as well.
    """

    def build_name(self, step: int) -> str:
        """The name of the directory of a new step."""
        ...

    def find_all(self, base_path: PathLike) -> Iterator[FoundT]:
        """The committed steps below a directory."""
        ...

    def find_step(self, base_path: PathLike, step: int) -> FoundT:
        """A committed step.

        Raises:
            ValueError: There is none of this number.
        """
        ...


@dataclass(frozen=True)
class _StandardNameFormat(NameFormat[Metadata]):
    step_prefix: str | None = None
    step_format_fixed_length: int | None = None
    single_host_load_and_broadcast: bool = False

    def __str__(self) -> str:
        return f'StandardNameFormat("{self.build_name(1234)}")'

    def build_name(self, step: int) -> str:
        """See `NameFormat`."""
        prefix = step_prefix_with_underscore(self.step_prefix)
        return f"{prefix}{step:0{self.step_format_fixed_length or 0}d}"

    def find_all(self, base_path: PathLike) -> Iterator[Metadata]:
        """See `NameFormat`."""
        for step in _list_steps(base_path):
            if step.committed and step.key == self.build_name(step.step):
                yield Metadata(step.step, Path(os.fspath(base_path), step.key))

    def find_step(self, base_path: PathLike, step: int) -> Metadata:
        """See `NameFormat`."""
        found = next((each for each in self.find_all(base_path) if each.step == step), None)
        if found is None:
            name = self.build_name(step)
            raise tx.UsageError(f"Expected step {step} as {base_path}/{name}, found none")
        return found


def standard_name_format(
    *,
    step_prefix: str | None = None,
    step_format_fixed_length: int | None = None,
    single_host_load_and_broadcast: bool = False,
    temporary_path_cls: Any = None,
    atomicity_options: Any = None,
) -> NameFormat[Metadata]:
    """A format whose names are a number, with an optional prefix and leading zeros.

    Args:
        step_prefix: Put before the number, with `_` in between.
        step_format_fixed_length: The number is padded with zeros to this many digits.
        single_host_load_and_broadcast: No effect: process 0 always lists the steps for all.
        temporary_path_cls, atomicity_options: No effect.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> names = ocp.path.step.standard_name_format(step_prefix="at", step_format_fixed_length=6)
        >>> names.build_name(23)
        'at_000023'
    """
    return _StandardNameFormat(
        step_prefix, step_format_fixed_length, single_host_load_and_broadcast
    )


@dataclass(frozen=True)
class _CompositeNameFormat(NameFormat[Metadata]):
    write_name_format: NameFormat[Metadata]
    read_name_formats: Sequence[NameFormat[Metadata]]

    def __post_init__(self) -> None:
        if self.write_name_format not in self.read_name_formats:
            raise tx.UsageError(
                f"Expected write_name_format {self.write_name_format} among read_name_formats, got"
                f" {', '.join(map(str, self.read_name_formats)) or 'none'}"
            )

    def __str__(self) -> str:
        return f"Composite([{','.join(map(str, self.read_name_formats))}])"

    def build_name(self, step: int) -> str:
        """See `NameFormat`."""
        return self.write_name_format.build_name(step)

    def find_all(self, base_path: PathLike) -> Iterator[Metadata]:
        """See `NameFormat`."""
        found = (each for names in self.read_name_formats for each in names.find_all(base_path))
        yield from {each.path: each for each in found}.values()

    def find_step(self, base_path: PathLike, step: int) -> Metadata:
        """See `NameFormat`."""
        for names in self.read_name_formats:
            found = maybe_find_step_metadata(base_path, names, step=step)
            if found is not None:
                return found
        raise tx.UsageError(f"Expected step {step} as {self} in {base_path}, found none")


def composite_name_format(
    write_name_format: NameFormat[Metadata], read_name_formats: Sequence[NameFormat[Metadata]]
) -> NameFormat[Metadata]:
    """A format that names new steps in one way, and finds steps named in several.

    Args:
        write_name_format: Names new steps.
        read_name_formats: Find steps; of two steps with the same number, the one of the format
            that comes first counts. They include `write_name_format`.

    Raises:
        UsageError: `write_name_format` is not one of `read_name_formats`.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> step = ocp.path.step
        >>> new, old = step.standard_name_format(), step.standard_name_format(step_prefix="ckpt")
        >>> step.composite_name_format(new, [new, old]).build_name(7)
        '7'
    """
    return _CompositeNameFormat(write_name_format, tuple(read_name_formats))


def is_standard_name_format(name_format: NameFormat[Metadata]) -> bool:
    """Whether `standard_name_format` made it."""
    return isinstance(name_format, _StandardNameFormat)


def single_host_load_and_broadcast_name_format(
    name_format: NameFormat[Metadata],
) -> NameFormat[Metadata]:
    """A standard format with `single_host_load_and_broadcast=True`.

    Raises:
        UsageError: `name_format` is not a standard format.
    """
    if not isinstance(name_format, _StandardNameFormat):
        raise tx.UsageError(f"Expected a format of standard_name_format(), got {name_format}")
    return replace(name_format, single_host_load_and_broadcast=True)


def step_prefix_with_underscore(step_prefix: str | None) -> str:
    """The prefix of step names with `_` after it, or "" for none."""
    return "" if step_prefix is None else f"{step_prefix}_"


def build_step_path(base_path: PathLike, name_format: NameFormat[Metadata], step: int) -> Path:
    """The path of a step, whether there is one or not."""
    return Path(os.fspath(base_path), name_format.build_name(step))


def build_step_metadatas(
    step_paths: Iterable[Path], build_metadata: Callable[[Path], MetadataT | None]
) -> Iterator[MetadataT]:
    """Yields what a function makes of the path of each step, except None."""
    for path in step_paths:
        made = build_metadata(path)
        if made is not None:
            yield made


def latest_step_metadata(root_path: PathLike, name_format: NameFormat[Metadata]) -> Metadata | None:
    """The committed step with the highest number, or None."""
    found = sorted(name_format.find_all(root_path), key=lambda each: each.path.name, reverse=True)
    return max(found, key=lambda each: each.step, default=None)


def maybe_find_step_metadata(
    base_path: PathLike, name_format: NameFormat[Metadata], *, step: int
) -> Metadata | None:
    """A committed step, or None."""
    try:
        return name_format.find_step(base_path, step)
    except ValueError:
        return None


def find_step_path(
    base_path: PathLike,
    name_format: NameFormat[Metadata],
    *,
    step: int,
    include_uncommitted: bool = False,
) -> Path:
    """The path of a step.

    Args:
        base_path: The directory of the run.
        name_format: How its steps are named.
        step: The number.
        include_uncommitted: Whether a save that has not finished counts, and comes first.

    Raises:
        ValueError: There is none.
    """
    name = name_format.build_name(step)
    for temporary in all_temporary_paths(base_path) if include_uncommitted else ():
        if temporary.get_final().name == name:
            return temporary.get()
    return Path(name_format.find_step(base_path, step).path)


def step_metadata_of_checkpoint_path(
    checkpoint_path: PathLike, name_format: NameFormat[Metadata]
) -> Metadata:
    """The step at a path.

    Raises:
        ValueError: It is no committed step of this format.
    """
    path = Path(os.fspath(checkpoint_path))
    for found in name_format.find_all(path.parent):
        if found.path.name == path.name:
            return found
    raise tx.UsageError(f"Expected a committed step named like {name_format}, found none at {path}")


def get_save_directory(
    step: int,
    directory: PathLike,
    name: str | None = None,
    step_prefix: str | None = None,
    override_directory: PathLike | None = None,
    step_format_fixed_length: int | None = None,
    step_name_format: NameFormat[Metadata] | None = None,
) -> Path:
    """The path of a step, or of one of its items.

    Args:
        step: The number.
        directory: The directory of the run.
        name: The item; None for the step itself.
        step_prefix, step_format_fixed_length: See `standard_name_format`.
        override_directory: The path of the step instead.
        step_name_format: How the step is named instead.
    """
    names = step_name_format or standard_name_format(
        step_prefix=step_prefix, step_format_fixed_length=step_format_fixed_length
    )
    given = None if override_directory is None else Path(os.fspath(override_directory))
    path = given or build_step_path(directory, names, step)
    return path if name is None else path / name


def step_from_checkpoint_name(name: str) -> int:
    """The number in the name of a step, or of one whose save has not finished.

    Raises:
        UsageError: The name has none.
    """
    found = re.fullmatch(r"(?:.+_)?(\d+)", final_name(name))
    if found is None:
        raise tx.UsageError(f"Expected the name of a step, got {name!r}")
    return int(found[1])


def checkpoint_steps_paths(checkpoint_dir: PathLike) -> list[Path]:
    """The directories of the committed steps of a run, whatever their prefix."""
    found = [step for step in _list_steps(checkpoint_dir) if step.committed]
    return [Path(os.fspath(checkpoint_dir), step.key) for step in found]


def checkpoint_steps(checkpoint_dir: PathLike) -> list[int]:
    """The numbers of the committed steps of a run, whatever their prefix.

    Example:
        >>> import tempfile
        >>> from templax.compat import orbax as ocp
        >>> ocp.path.step.checkpoint_steps(tempfile.mkdtemp())
        []
    """
    return [step.step for step in _list_steps(checkpoint_dir) if step.committed]


def any_checkpoint_step(checkpoint_dir: PathLike) -> int | None:
    """The number of some committed step, or None."""
    return next(iter(checkpoint_steps(checkpoint_dir)), None)


@dataclass(frozen=True)
class TemporaryPath:
    """The directory of a save that has not finished.

    Attributes:
        path: The directory.
    """

    path: Path

    def get(self) -> Path:
        """The directory."""
        return self.path

    def get_final(self) -> Path:
        """The path that it gets once the save is committed."""
        return self.path.with_name(final_name(self.path.name))


def all_temporary_paths(root_directory: PathLike, **options: Any) -> list[TemporaryPath]:
    """The saves in a directory that have not finished. Options have no effect."""
    root = os.fspath(root_directory)
    names = [info.key.rstrip("/") for info in open_source(root).children() if info.is_dir]
    return [TemporaryPath(Path(root, name)) for name in names if is_path_temporary(name)]


def tmp_checkpoints(checkpoint_dir: PathLike, **options: Any) -> list[str]:
    """The names of the saves in a directory that have not finished."""
    return [each.get().name for each in all_temporary_paths(checkpoint_dir)]


def is_path_temporary(path: PathLike, **options: Any) -> bool:
    """Whether a path is that of a save that has not finished. Options have no effect."""
    return is_temporary(os.path.basename(os.fspath(path)))


def is_path_finalized(path: PathLike, **options: Any) -> bool:
    """Whether a committed checkpoint is at a path. Options have no effect."""
    source = open_source(path)
    return os.path.isdir(path) and directory.uncommitted_reason(source) is None


is_checkpoint_finalized = is_path_finalized
is_tmp_checkpoint = is_path_temporary


def _list_steps(base_path: PathLike) -> tuple[Step, ...]:
    return directory.list_steps(open_source(base_path))


__getattr__ = make_getattr("path.step.")
