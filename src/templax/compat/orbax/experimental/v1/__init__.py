"""JAX. Orbax's v1 API, `orbax.checkpoint.experimental.v1`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import templax as tx

from ....._core.arguments import PyTree
from ...args import StandardRestore, StandardSave, item_contents
from ...leaf_args import PLACEHOLDER
from ...saver import PathLike, begin_save
from ...unmapped import unmapped_attribute

__all__ = [
    "PLACEHOLDER",
    "load",
    "load_pytree",
    "save",
    "save_async",
    "save_pytree",
    "save_pytree_async",
]


class AsyncResponse:
    """The handle of a save in the background."""

    def __init__(self, saved: tx.Saved) -> None:
        self._saved = saved

    def result(self, timeout: float | None = None) -> None:
        """Returns once the checkpoint is committed.

        Args:
            timeout: Seconds after which to stop waiting; the save itself continues.

        Raises:
            SaveError: The save failed.
            TimeoutError: The save is still in progress.
        """
        self._saved.wait(timeout)


def save(
    path: PathLike,
    state: PyTree,
    *,
    checkpointable_name: str = "state",
    overwrite: bool = False,
    custom_metadata: Mapping[str, Any] | None = None,
) -> None:
    """Saves a tree as an item of a checkpoint.

    Args:
        path: A path that does not exist yet, or an empty directory.
        state: Any pytree that `templax.save` takes.
        checkpointable_name: The name of the item.
        overwrite: Replaces an existing checkpoint, atomically.
        custom_metadata: JSON that is stored with the checkpoint.

    Raises:
        AlreadyExists: Something exists at `path`.
        SaveError: See `templax.save`.

    Example:
        >>> import os, tempfile, numpy as np
        >>> from templax.compat.orbax import v1 as ocp
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> ocp.save(path, {"w": np.ones(3, np.float32)})
        >>> ocp.load(path)["w"].shape
        (3,)
    """
    items = item_contents(StandardSave(state), checkpointable_name)
    begin_save(os.fspath(path), items, True, custom_metadata, overwrite)


def save_async(
    path: PathLike,
    state: PyTree,
    *,
    checkpointable_name: str = "state",
    overwrite: bool = False,
    custom_metadata: Mapping[str, Any] | None = None,
) -> AsyncResponse:
    """Like `save`, except that it returns as soon as the values are safe from later changes.

    Example:
        >>> import os, tempfile, numpy as np
        >>> from templax.compat.orbax import v1 as ocp
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> ocp.save_async(path, {"w": np.ones(3, np.float32)}).result()
        >>> os.path.exists(path)
        True
    """
    items = item_contents(StandardSave(state), checkpointable_name)
    return AsyncResponse(begin_save(os.fspath(path), items, False, custom_metadata, overwrite))


def load(
    path: PathLike, abstract_state: PyTree = None, *, checkpointable_name: str | None = "AUTO"
) -> Any:
    """Restores a tree.

    Args:
        path: The checkpoint, or the item itself.
        abstract_state: The template; None is the checkpoint's own tree.
        checkpointable_name: The item to restore. "AUTO" (the only tree) and None (`path` is the
            item) are equivalent.

    Example:
        >>> import os, tempfile, jax, numpy as np
        >>> from templax.compat.orbax import v1 as ocp
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> ocp.save(path, {"w": np.ones((8, 6), np.float32)})
        >>> ocp.load(path, {"w": jax.ShapeDtypeStruct((8, 6), np.float32)})["w"].shape
        (8, 6)
    """
    directory = os.fspath(path)
    if checkpointable_name not in ("AUTO", None):
        directory = f"{directory}/{checkpointable_name}"
    return StandardRestore(abstract_state).restore(directory)


load_pytree = load

save_pytree = save

save_pytree_async = save_async


__getattr__ = unmapped_attribute("v1.")
