"""JAX. Orbax's v1 functions that save."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax

import templax as tx

from ....._core.arguments import PyTree
from ....._hosts.agreement import open_call
from ....._save.background import start_save
from ....._save.contents import File, Tree
from ....._save.destination import Destination
from ....._save.item import Json, check_item_names
from ....._save.options import make_options
from .....formats.orbax.directory import V1_MARK
from ...saver import PathLike, raise_path_exists
from .checkpointable import STATE
from .context import Context
from .foreign import HandlerItem
from .json_handler import JsonHandler
from .loading import check_context, check_names
from .options import CheckpointLayout
from .pytree_handler import PyTreeHandler, is_leaf
from .registration import find_save_handler
from .response import AsyncResponse, SaveResponse
from .tree import Leaf

__all__ = [
    "save",
    "save_async",
    "save_checkpointables",
    "save_checkpointables_async",
    "save_pytree",
    "save_pytree_async",
]


def save(
    path: PathLike,
    state: PyTree,
    *,
    checkpointable_name: str = STATE,
    overwrite: bool = False,
    custom_metadata: Mapping[str, Any] | None = None,
) -> None:
    """Saves a tree.

    Args:
        path: A path that does not exist yet, or an empty directory.
        state: Any pytree of arrays, numbers and strings.
        checkpointable_name: Its name in the checkpoint.
        overwrite: Replaces an existing checkpoint, atomically.
        custom_metadata: JSON that is stored with the checkpoint.

    Raises:
        AlreadyExists: Something exists at `path`.
        SaveError: See `templax.save`.
        UsageError: `state` has no leaves, or one that can't be saved.

    Example:
        >>> import os, tempfile, numpy as np
        >>> from templax.compat.orbax import v1 as ocp
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> ocp.save(path, {"w": np.ones(3, np.float32)})
        >>> ocp.load(path)["w"].shape
        (3,)
    """
    check_leaves(state)
    begin_save(path, {checkpointable_name: state}, overwrite, custom_metadata, wait=True)


def save_async(
    path: PathLike,
    state: PyTree,
    *,
    checkpointable_name: str = STATE,
    overwrite: bool = False,
    custom_metadata: Mapping[str, Any] | None = None,
) -> AsyncResponse[None]:
    """Like `save`, except that it returns as soon as the values are safe from later changes.

    Example:
        >>> import os, tempfile, numpy as np
        >>> from templax.compat.orbax import v1 as ocp
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> ocp.save_async(path, {"w": np.ones(3, np.float32)}).result()
        >>> os.path.exists(path)
        True
    """
    check_leaves(state)
    return begin_save(path, {checkpointable_name: state}, overwrite, custom_metadata, wait=False)


def save_checkpointables(
    path: PathLike,
    checkpointables: Mapping[str, Any],
    *,
    overwrite: bool = False,
    custom_metadata: Mapping[str, Any] | None = None,
) -> None:
    """Saves checkpointables: trees, JSON values, and what other handlers save.

    Args:
        path, overwrite, custom_metadata: See `save`.
        checkpointables: Name → what to save. The registry of the context decides who saves it.

    Raises:
        AlreadyExists, SaveError: See `save`.
        KeyError: No handler saves one of them.
        UsageError: There are none, or a name is empty or reserved.

    Example:
        >>> import os, tempfile, numpy as np
        >>> from templax.compat.orbax import v1 as ocp
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> ocp.save_checkpointables(path, {"params": {"w": np.ones(3)}, "note": {"lr": 0.1}})
        >>> ocp.load_checkpointables(path)["note"]
        {'lr': 0.1}
    """
    begin_save(path, checkpointables, overwrite, custom_metadata, wait=True)


def save_checkpointables_async(
    path: PathLike,
    checkpointables: Mapping[str, Any],
    *,
    overwrite: bool = False,
    custom_metadata: Mapping[str, Any] | None = None,
) -> AsyncResponse[None]:
    """Like `save_checkpointables`, except that it returns as soon as the values are safe."""
    return begin_save(path, checkpointables, overwrite, custom_metadata, wait=False)


def save_pytree(*args: Any, **kwargs: Any) -> None:
    """The older name of `save`."""
    warnings.warn("Use `save` instead.", DeprecationWarning, stacklevel=2)
    save(*args, **kwargs)


def save_pytree_async(*args: Any, **kwargs: Any) -> AsyncResponse[None]:
    """The older name of `save_async`."""
    warnings.warn("Use `save_async` instead.", DeprecationWarning, stacklevel=2)
    return save_async(*args, **kwargs)


def begin_save(
    path: PathLike,
    checkpointables: Mapping[str, Any],
    overwrite: bool,
    custom_metadata: Mapping[str, Any] | None,
    *,
    wait: bool,
    decide: Callable[[], Destination] | None = None,
) -> SaveResponse[None]:
    """Saves checkpointables, or begins to.

    Args:
        path, overwrite, custom_metadata: See `save`.
        checkpointables: See `save_checkpointables`.
        wait: Whether to return only when the checkpoint is committed.
        decide: Decides on process 0 where the save goes, if that is not `path` itself.
    """
    directory = os.fspath(path)
    call = open_call("saving", directory)
    with call.report_errors():
        context = check_context()
        items = make_contents(checkpointables)
        response = SaveResponse[None](None)
        after = None if wait else context.asynchronous.post_finalization_callback

        def finish(_: Any) -> None:
            if after is not None:
                after()
            response.complete()

        options = make_options(metadata=custom_metadata, overwrite=overwrite)
        options = replace(options, after=finish, marks=(V1_MARK,))
        decide = decide or functools.partial(Destination, directory)
        with raise_path_exists():
            response.saved = start_save(call, directory, items, options, decide, wait=wait)
        return response


def make_contents(checkpointables: Any, metrics: Any = None) -> dict[str, Any]:
    """Name → what `start_save` takes for a checkpointable.

    Args:
        checkpointables: See `save_checkpointables`.
        metrics: JSON that is saved as the checkpointable `metrics`, if there is any.
    """
    context = check_context()
    check_checkpointables(checkpointables)
    if context.checkpoint_layout is CheckpointLayout.SAFETENSORS:
        raise NotImplementedError(
            'Orbax does not save safetensors; hint: templax.save(path, tree, format="safetensors")'
        )
    named = dict(checkpointables) | ({"metrics": metrics} if metrics else {})
    items = {name: _make_content(name, each, context) for name, each in named.items()}
    check_item_names(items)
    return items


def _make_content(name: str, checkpointable: Any, context: Context) -> Any:
    """What `start_save` takes for a checkpointable, unless it is that already."""
    if isinstance(checkpointable, Tree):
        return checkpointable
    handler = find_save_handler(context.checkpointables.registry, checkpointable, name)
    if isinstance(handler, PyTreeHandler):
        tree = handler.prepare(checkpointable)
        return Tree(tree, PyTreeHandler.orbax_name, empty_tuples=True)
    if isinstance(handler, JsonHandler):
        data = Json(checkpointable).encode(name)
        return File(data, handler.filename, type(handler).orbax_name)
    return HandlerItem(handler, checkpointable, context)


def check_checkpointables(checkpointables: Any) -> None:
    """Checks that checkpointables are a mapping with valid names.

    Raises:
        UsageError: They are not.
    """
    if not checkpointables or not isinstance(checkpointables, Mapping):
        raise tx.UsageError(
            "`checkpointables` must be a valid dict of checkpointable names to desired"
            f" checkpointables to save, but got {type(checkpointables)}"
        )
    check_names(checkpointables)


def check_leaves(state: PyTree) -> None:
    """Checks that all leaves can be saved.

    Raises:
        UsageError: A leaf can't be.
    """
    for leaf in jax.tree.leaves(state):
        if not is_leaf(leaf):
            raise tx.UsageError(
                f"Unsupported leaf type for saving: `{type(leaf)}`. Supported leaf types are:"
                f" {Leaf}."
            )
