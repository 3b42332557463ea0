"""JAX. Orbax's v1 API, `orbax.checkpoint.experimental.v1`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NoReturn

import templax as tx

from ..._core.arguments import PyTree
from .args import PLACEHOLDER, StandardRestore, StandardSave, item_contents
from .saver import PathLike, begin_save

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
    """A save that goes on in the background."""

    def __init__(self, saved: tx.Saved) -> None:
        self._saved = saved

    def result(self, timeout: float | None = None) -> None:
        """Returns once the checkpoint is there.

        Args:
            timeout: Seconds after which to give up waiting.

        Raises:
            SaveError: It was not saved.
            TimeoutError: It goes on.
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
        path: Where nothing is, or an empty directory.
        state: Any pytree that `templax.save` takes.
        checkpointable_name: Of the item.
        overwrite: Replaces a checkpoint that is there, in one step.
        custom_metadata: JSON that goes with it.

    Raises:
        AlreadyExists: Something is there.
        SaveError: As of `templax.save`.

    Example:
        >>> import numpy as np
        >>> path = getfixture("tmp_path") / "ckpt"
        >>> save(path, {"w": np.ones(3, np.float32)})
        >>> load(path)["w"].shape
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
    """Begins what `save` does; returns as soon as the values are safe.

    Example:
        >>> import numpy as np
        >>> path = getfixture("tmp_path") / "ckpt"
        >>> save_async(path, {"w": np.ones(3, np.float32)}).result()
        >>> path.exists()
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
        checkpointable_name: An item. "AUTO" (the only tree) and None (`path` is the item) are one.

    Example:
        >>> tree = load("tests/corpus/orbax-0.12.8-v1/ckpt")
        >>> tree["state"]["params"]["layers"][0]["w"].shape
        (8, 6)
    """
    directory = os.fspath(path)
    if checkpointable_name not in ("AUTO", None):
        directory = f"{directory}/{checkpointable_name}"
    return StandardRestore(abstract_state).restore(directory)


load_pytree = load

save_pytree = save

save_pytree_async = save_async


def __getattr__(name: str) -> NoReturn:
    raise AttributeError(
        f"templax.compat.orbax has no `v1.{name}`; "
        f"hint: templax.save(path, tree) and templax.restore(path, template)"
    )
