"""JAX. The metadata of checkpoints and of runs, and the files that hold it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, fields
from typing import Any

import templax as tx

from ....formats.orbax.directory import STEP_METADATA
from ....formats.orbax.step_metadata import read_step_metadata
from ....storage.file_staging import FileStaging
from ....storage.open import open_source
from ..logging.step_statistics import SaveStepStatistics
from ..saver import PathLike
from .tree import TreeMetadata, read_tree_metadata


@dataclass
class StepMetadata:
    """The metadata of a checkpoint.

    Attributes:
        item_handlers: The handler of the item, or item name → its handler.
        item_metadata: A `TreeMetadata`; item name → that of each of several items.
        metrics: The metrics of a step.
        performance_metrics: What the save noted about its speed.
        init_timestamp_nsecs, commit_timestamp_nsecs: When the save began and when it was committed,
            in nanoseconds since the epoch; None if that is not recorded.
        custom_metadata: The JSON that was saved with the checkpoint.
    """

    item_handlers: Any = None
    item_metadata: Any = None
    metrics: Any = field(default_factory=dict[str, Any])
    performance_metrics: Any = field(default_factory=SaveStepStatistics)
    init_timestamp_nsecs: int | None = None
    commit_timestamp_nsecs: int | None = None
    custom_metadata: Any = field(default_factory=dict[str, Any])


@dataclass
class RootMetadata:
    """The metadata of a directory of steps.

    Attributes:
        internal_metadata: What Orbax notes for itself.
        custom_metadata: The `metadata` that its manager was made with.
    """

    internal_metadata: Any = field(default_factory=dict[str, Any])
    custom_metadata: Any = field(default_factory=dict[str, Any])


def get_step_metadata(path: PathLike) -> StepMetadata:
    """What `_CHECKPOINT_METADATA` of a checkpoint says. The items themselves are not opened.

    Raises:
        UsageError: There is no such file.

    Example:
        >>> import os, tempfile
        >>> from templax.compat import orbax as ocp
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> ocp.PyTreeCheckpointer().save(path, {"step": 7}, custom_metadata={"lr": 0.5})
        >>> ocp.metadata.get_step_metadata(path).custom_metadata
        {'lr': 0.5}
    """
    source = open_source(path)
    if source.stat(STEP_METADATA) is None:
        raise tx.UsageError(f"Expected `{STEP_METADATA}` in {source.url}, found none")
    return make_step_metadata(read_step_metadata(source))


def make_step_metadata(about: dict[str, Any], item_metadata: Any = None) -> StepMetadata:
    """The metadata that a checkpoint's `_CHECKPOINT_METADATA` describes.

    Args:
        about: Its content.
        item_metadata: That of the items.
    """
    known = ("init_timestamp_nsecs", "commit_timestamp_nsecs", "item_handlers")
    return StepMetadata(
        item_metadata=item_metadata,
        metrics=about.get("metrics") or {},
        performance_metrics=_read_statistics(about.get("performance_metrics") or {}),
        custom_metadata=about.get("custom_metadata") or {},
        **{name: about.get(name) for name in known},
    )


def _read_statistics(found: dict[str, Any]) -> SaveStepStatistics:
    names = {each.name for each in fields(SaveStepStatistics)}
    return SaveStepStatistics(**{name: found[name] for name in names & found.keys()})


def read_metadata(directory: PathLike) -> StepMetadata:
    """The metadata of a checkpoint that holds one tree, without reading any array."""
    catalog = tx.open(directory)
    found = make_step_metadata(read_step_metadata(open_source(directory)))
    found.item_metadata = read_tree_metadata(catalog)
    return found


class MetadataStore:
    """Reads and writes the JSON of a metadata file. Writes are atomic.

    Args:
        enable_write: Whether it may write. Otherwise, `write` and `update` do nothing.

    Example:
        >>> import os, tempfile
        >>> from templax.compat import orbax as ocp
        >>> store = ocp.metadata.metadata_store(enable_write=True)
        >>> path = os.path.join(tempfile.mkdtemp(), "notes")
        >>> store.update(path, lr=0.5)
        >>> store.read(path)
        {'lr': 0.5}
    """

    def __init__(self, enable_write: bool) -> None:
        self._writes = enable_write

    def is_blocking_writer(self) -> bool:
        """Whether `write` returns when the file is written: always."""
        return True

    def read(self, file_path: PathLike) -> dict[str, Any] | None:
        """The content of a file; None if it does not exist or is not a JSON object."""
        try:
            with open(file_path, encoding="utf-8") as file:
                found = json.load(file)
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None  # pyright: ignore[reportUnknownVariableType]

    def write(self, file_path: PathLike, metadata: dict[str, Any]) -> None:
        """Writes a file, replacing an existing one."""
        if self._writes:
            text = json.dumps(metadata)
            with FileStaging(file_path, overwrite=True) as staging:
                staging.put(os.path.basename(os.fspath(file_path)), text.encode())
                staging.commit()

    def update(self, file_path: PathLike, **changes: Any) -> None:
        """Changes some keys of a file, which is created if need be."""
        self.write(file_path, {**(self.read(file_path) or {}), **changes})

    def wait_until_finished(self) -> None:
        """Does nothing, as writes are never in progress."""

    def close(self) -> None:
        """Does nothing."""


def metadata_store(*, enable_write: bool, blocking_write: bool = False) -> MetadataStore:
    """A store for metadata files. Its writes always block.

    Args:
        enable_write: See `MetadataStore`.
        blocking_write: No effect.
    """
    return MetadataStore(enable_write)


__all__ = [
    "MetadataStore",
    "RootMetadata",
    "StepMetadata",
    "TreeMetadata",
    "get_step_metadata",
    "metadata_store",
    "read_metadata",
]
