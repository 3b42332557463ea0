"""JAX. Orbax's v1 functions that describe a checkpoint without loading it."""

from __future__ import annotations

import datetime
import logging
import os
import pprint
import warnings
from typing import Any, Generic, TypeVar

import jax

import templax as tx

from ...future import run_coroutine
from ...saver import PathLike
from .checkpointable import AUTO
from .context import get_context
from .layout import Layout, find_layout
from .loading import check_context, check_name, find_directory, find_handler

_log = logging.getLogger("templax")

_T = TypeVar("_T")

_UNREADABLE = (
    tx.TemplaxError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    NotImplementedError,
)
"""What handlers raise about files that they did not write."""

PyTreeMetadata = Any
"""For annotations: a tree whose leaves describe those that were saved."""


class CheckpointMetadata(Generic[_T]):
    """The metadata of a checkpoint. It can be the template of a load.

    Args:
        path: The path of the checkpoint.
        metadata: The tree of abstract leaves; of several checkpointables, name → metadata.
        init_timestamp_nsecs, commit_timestamp_nsecs: When the save began and when it was committed,
            in nanoseconds since the epoch; None if that is not recorded.
        custom_metadata: The JSON that was saved with the checkpoint, or None.

    Example:
        >>> import os, tempfile, numpy as np
        >>> from templax.compat.orbax import v1 as ocp
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> ocp.save(path, {"w": np.ones((8, 6), np.float32)}, custom_metadata={"lr": 0.1})
        >>> found = ocp.metadata(path)
        >>> found.metadata["w"].shape, found.custom_metadata
        ((8, 6), {'lr': 0.1})
    """

    def __init__(
        self,
        path: Any,
        *,
        metadata: _T,
        init_timestamp_nsecs: int | None = None,
        commit_timestamp_nsecs: int | None = None,
        custom_metadata: Any = None,
    ) -> None:
        self._path, self._metadata, self._custom_metadata = path, metadata, custom_metadata
        self._init_nsecs, self._commit_nsecs = init_timestamp_nsecs, commit_timestamp_nsecs

    @property
    def path(self) -> Any:
        """The path of the checkpoint."""
        return self._path

    @property
    def metadata(self) -> _T:
        """The tree of abstract leaves; of several checkpointables, name → metadata."""
        return self._metadata

    @property
    def init_timestamp_nsecs(self) -> int | None:
        """When the save began, in nanoseconds since the epoch, or None."""
        return self._init_nsecs

    @property
    def commit_timestamp_nsecs(self) -> int | None:
        """When the save was committed, in nanoseconds since the epoch, or None."""
        return self._commit_nsecs

    @property
    def init_timestamp(self) -> datetime.datetime | None:
        """When the save began, in UTC, or None."""
        return make_time(self._init_nsecs)

    @property
    def commit_timestamp(self) -> datetime.datetime | None:
        """When the save was committed, in UTC, or None."""
        return make_time(self._commit_nsecs)

    @property
    def custom_metadata(self) -> Any:
        """The JSON that was saved with the checkpoint, or None."""
        return self._custom_metadata

    def _list_properties(self) -> dict[str, Any]:
        return {
            "metadata": self.metadata,
            "init_timestamp_nsecs": self.init_timestamp_nsecs,
            "commit_timestamp_nsecs": self.commit_timestamp_nsecs,
            "custom_metadata": self.custom_metadata,
        }

    def __repr__(self) -> str:
        return f"CheckpointMetadata({pprint.pformat(self._list_properties())})"


def make_time(nsecs: int | None) -> datetime.datetime | None:
    """The time, in UTC, of a number of nanoseconds since the epoch."""
    return None if nsecs is None else datetime.datetime.fromtimestamp(nsecs / 1e9, tz=datetime.UTC)


def metadata(
    path: PathLike, checkpointable_name: str | None = AUTO
) -> CheckpointMetadata[PyTreeMetadata]:
    """Describes a tree of a checkpoint; no array is read.

    Its leaves have the `shape`, `dtype` and, of a `jax.Array`, the `sharding` of what was saved.
    Numbers are the zero of their type. `load` accepts it as it is, or with other leaves.

    Args:
        path: The checkpoint.
        checkpointable_name: See `load`.

    Returns:
        The metadata. Its `metadata` is None if the tree can't be read; the log says why.

    Raises:
        InvalidLayoutError: The path holds no checkpoint, or the checkpoint no tree of this name.

    Example:
        >>> import os, tempfile, jax, numpy as np
        >>> from templax.compat.orbax import v1 as ocp
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> ocp.save(path, {"w": np.ones((8, 6), np.float32), "step": 7})
        >>> tree = ocp.metadata(path).metadata
        >>> tree["w"].dtype, tree["step"]
        (dtype('float32'), 0)
        >>> sorted(ocp.load(path, tree))
        ['step', 'w']
    """
    check_context()
    check_name(checkpointable_name)
    layout = find_layout(os.fspath(path))
    if layout.kind == "Safetensors":
        return _describe_safetensors(layout)
    name = layout.find_tree(checkpointable_name)
    return _describe(layout, _read(layout, name))


def checkpointables_metadata(path: PathLike) -> CheckpointMetadata[dict[str, Any]]:
    """Describes the checkpointables of a checkpoint; no array is read.

    Args:
        path: The checkpoint.

    Returns:
        The metadata. Its `metadata` maps each name to what its handler describes: for a tree, that
        is what `metadata` returns. It is None for what can't be read; the log says why.

    Raises:
        InvalidLayoutError: The path holds no checkpoint, or one without named checkpointables.

    Example:
        >>> import os, tempfile, numpy as np
        >>> from templax.compat.orbax import v1 as ocp
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> ocp.save_checkpointables(path, {"state": {"w": np.ones(3)}, "config": {"lr": 0.1}})
        >>> found = ocp.checkpointables_metadata(path).metadata
        >>> found["config"], found["state"]["w"].shape
        ({'lr': 0.0}, (3,))
    """
    check_context()
    layout = find_layout(os.fspath(path))
    layout.check_named()
    return _describe(layout, {name: _read(layout, name) for name in layout.names})


def pytree_metadata(*args: Any, **kwargs: Any) -> CheckpointMetadata[PyTreeMetadata]:
    """The older name of `metadata`."""
    warnings.warn("Use `metadata` instead.", DeprecationWarning, stacklevel=2)
    return metadata(*args, **kwargs)


def _read(layout: Layout, name: str | None) -> Any:
    """Asks the handler of a checkpointable to describe it; None, with a warning, if it fails."""
    handler, directory = find_handler(layout, name, None), find_directory(layout, name)
    try:
        return run_coroutine(handler.metadata(directory))
    except _UNREADABLE as error:
        text = "nothing is known of %s, which %s does not read: %s"
        _log.warning(text, directory, type(handler).__name__, error)
        return None


def _describe(layout: Layout, found: Any) -> CheckpointMetadata[Any]:
    about = layout.about
    return CheckpointMetadata(
        get_context().file.path_class(layout.path),
        metadata=found,
        init_timestamp_nsecs=about.get("init_timestamp_nsecs"),
        commit_timestamp_nsecs=about.get("commit_timestamp_nsecs"),
        custom_metadata=about.get("custom_metadata"),
    )


def _describe_safetensors(layout: Layout) -> CheckpointMetadata[Any]:
    catalog = tx.open(layout.path)
    return CheckpointMetadata(
        get_context().file.path_class(layout.path),
        metadata={e.name: jax.ShapeDtypeStruct(e.shape, e.dtype) for e in catalog.entries},
        commit_timestamp_nsecs=os.stat(layout.path).st_mtime_ns,
        custom_metadata=dict(catalog.metadata),
    )
