"""JAX. Orbax's v1 functions that load."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

import templax as tx

from ....._core.arguments import PyTree
from ....._jax.versions import current_mesh
from ....._restore.together import read_together
from ...future import run_coroutine
from ...leaf_templates import make_numpy_leaf
from ...saver import PathLike
from ...unmapped import make_unmapped_error
from .checkpointable import AUTO, RESERVED, STATE
from .context import Context, get_context
from .layout import Layout, find_layout
from .options import CheckpointLayout
from .pytree_handler import is_abstract_leaf
from .registration import NoEntryError, find_load_handler
from .response import AsyncResponse, run_in_thread
from .tree import PLACEHOLDER
from .tree_loading import load_tree

__all__ = [
    "PLACEHOLDER",
    "load",
    "load_async",
    "load_checkpointables",
    "load_checkpointables_async",
    "load_pytree",
    "load_pytree_async",
]


def load(
    path: PathLike, abstract_state: PyTree = None, *, checkpointable_name: str | None = AUTO
) -> Any:
    """Loads a tree.

    Args:
        path: The checkpoint.
        abstract_state: The template, or the `metadata` of a checkpoint; None is the checkpoint's
            own tree, with numpy arrays where numpy arrays were saved.
        checkpointable_name: The name of the tree. "AUTO" is `state`, else the first tree by name;
            None is for a checkpoint of the older API that is a tree itself.

    Raises:
        InvalidLayoutError: The path holds no checkpoint, or the checkpoint no tree of this name.
        TemplateError: The checkpoint does not fit the template; lists every leaf.
        CheckpointError: The checkpoint cannot be read.

    Example:
        >>> import os, tempfile, jax, numpy as np
        >>> from templax.compat.orbax import v1 as ocp
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> ocp.save(path, {"w": np.ones((8, 6), np.float32)})
        >>> ocp.load(path, {"w": jax.ShapeDtypeStruct((8, 6), np.float32)})["w"].shape
        (8, 6)
    """
    context = check_context()
    abstract = resolve_abstract(abstract_state)
    check_name(checkpointable_name)
    check_abstract_leaves(abstract)
    spelt = os.fspath(path)

    def work() -> Any:
        layout = find_layout(spelt)
        return _load_tree(layout, layout.find_tree(checkpointable_name), abstract, context)

    return read_together(spelt, work)


def load_async(
    path: PathLike, abstract_state: PyTree = None, *, checkpointable_name: str | None = STATE
) -> AsyncResponse[Any]:
    """Like `load`, in the background. As with Orbax, for safetensors only.

    Raises:
        NotImplementedError: The layout of the context is another one.
    """
    context = check_context()
    if context.checkpoint_layout is not CheckpointLayout.SAFETENSORS:
        raise make_unmapped_error("load_async", "load, which reads with several threads")
    abstract = resolve_abstract(abstract_state)
    check_abstract_leaves(abstract)
    layout = find_layout(os.fspath(path))
    return run_in_thread(lambda: _load_tree(layout, None, abstract, context))


def load_checkpointables(path: PathLike, abstract_checkpointables: Any = None) -> dict[str, Any]:
    """Loads checkpointables: trees, and what other handlers have saved.

    Args:
        path: The checkpoint.
        abstract_checkpointables: Name → template, or None to load that one as it was saved; others
            are not loaded. Also the `checkpointables_metadata` of a checkpoint. None loads all.

    Raises:
        InvalidLayoutError: The path holds no checkpoint.
        KeyError: The checkpoint lacks a name; or no handler loads the checkpointable.
        TemplateError: A tree does not fit its template; lists every leaf.

    Example:
        >>> import os, tempfile, numpy as np
        >>> from templax.compat.orbax import v1 as ocp
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> ocp.save_checkpointables(path, {"state": {"w": np.ones(3)}, "epoch": 7})
        >>> ocp.load_checkpointables(path, {"epoch": int})
        {'epoch': 7}
    """
    check_context()
    abstract = resolve_abstract(abstract_checkpointables)
    _check_abstract(abstract)
    spelt = os.fspath(path)
    return read_together(spelt, lambda: _load_named(find_layout(spelt), abstract))


def load_checkpointables_async(
    path: PathLike, abstract_checkpointables: Any = None
) -> AsyncResponse[dict[str, Any]]:
    """Raises `NotImplementedError`, as Orbax's own does."""
    raise make_unmapped_error("load_checkpointables_async", "load_checkpointables")


def load_pytree(*args: Any, **kwargs: Any) -> Any:
    """The older name of `load`."""
    warnings.warn("Use `load` instead.", DeprecationWarning, stacklevel=2)
    return load(*args, **kwargs)


def load_pytree_async(*args: Any, **kwargs: Any) -> AsyncResponse[Any]:
    """The older name of `load_async`."""
    warnings.warn("Use `load_async` instead.", DeprecationWarning, stacklevel=2)
    return load_async(*args, **kwargs)


def check_context() -> Context:
    """The context of a call.

    Raises:
        NotImplementedError: Only some processes of the job are to take part.
    """
    context = get_context()
    active = context.multiprocessing.active_processes
    if active is not None and set(active) != set(range(jax.process_count())):
        raise make_unmapped_error(
            "MultiprocessingOptions.active_processes", "leave it out: all processes take part"
        )
    return context


def _load_named(layout: Layout, abstract: Mapping[str, Any] | None) -> dict[str, Any]:
    layout.check_named()
    if not abstract:
        abstract = dict.fromkeys(layout.names)
    lacking = [name for name in abstract if name not in layout.directories]
    if lacking:
        raise KeyError(
            f"Requested checkpointables: {lacking} for loading were not found in the checkpoint."
            f" Available checkpointables: {layout.directories}"
        )
    handlers = {name: find_handler(layout, name, each) for name, each in abstract.items()}
    return run_coroutine(_run_handlers(layout, handlers, abstract))


def _load_tree(layout: Layout, name: str | None, abstract: PyTree, context: Context) -> Any:
    if layout.kind == "Safetensors":
        partial = context.pytree.loading.partial_load
        if abstract is None:
            entries = tx.open(layout.path).entries
            abstract = {each.name: make_numpy_leaf(each.shape, each.dtype) for each in entries}
        return load_tree(layout.path, abstract, partial=partial)
    handler = find_handler(layout, name, abstract)
    return run_coroutine(_run_handler(handler, find_directory(layout, name), abstract))


def find_handler(layout: Layout, name: str | None, abstract: Any) -> Any:
    """The handler that loads a checkpointable.

    Args:
        layout: The checkpoint.
        name: The name of the checkpointable; None if it is the checkpoint itself.
        abstract: The abstract checkpointable, or None.

    Raises:
        NoEntryError: See `find_load_handler`.
    """
    called = os.path.basename(layout.path.rstrip("/")) if name is None else name
    registry = get_context().checkpointables.registry
    return find_load_handler(registry, abstract, called, layout.saved_by(name))


def find_directory(layout: Layout, name: str | None) -> Any:
    """The directory of a checkpointable, as its handler gets it; see `find_handler`."""
    path = layout.path if name is None else f"{layout.path}/{name}"
    return get_context().file.path_class(path)


async def _run_handler(handler: Any, directory: Any, abstract: Any) -> Any:
    return await (await handler.load(directory, abstract))


async def _run_handlers(
    layout: Layout, handlers: Mapping[str, Any], abstract: Mapping[str, Any]
) -> dict[str, Any]:
    """Starts every handler, and then awaits them one after the other."""
    begun = dict[str, Any]()
    try:
        for name, handler in handlers.items():
            begun[name] = await handler.load(find_directory(layout, name), abstract[name])
        return {name: await _finish(layout, name, handlers[name], begun[name]) for name in begun}
    finally:
        for each in filter(inspect.iscoroutine, begun.values()):
            each.close()  # those after one that failed


async def _finish(layout: Layout, name: str, handler: Any, loading: Any) -> Any:
    try:
        return await loading
    except tx.TemplateError:
        raise
    except Exception as error:
        raise NoEntryError(
            f"Failed to load checkpointable: {name} due to incompatible handler:"
            f" {type(handler)}: {error}",
            file=layout.path,
        ) from error


def resolve_abstract(abstract: Any) -> Any:
    """Unwraps metadata, and replaces abstract meshes in a tree by the current mesh."""
    if not isinstance(abstract, Mapping) and hasattr(abstract, "commit_timestamp_nsecs"):
        return abstract.metadata
    if abstract is None:
        return None

    def use_mesh(leaf: Any) -> Any:
        sharding = getattr(leaf, "sharding", None)
        if not isinstance(sharding, jax.sharding.NamedSharding):
            return leaf
        if not isinstance(sharding.mesh, jax.sharding.AbstractMesh):
            return leaf
        mesh = current_mesh() or jax.sharding.Mesh(np.empty((), object), ())
        concrete = jax.sharding.NamedSharding(mesh, sharding.spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=concrete)

    return jax.tree.map(use_mesh, abstract)


def check_name(name: str | None) -> None:
    """Refuses a name that no tree has.

    Raises:
        UsageError: It is empty or reserved.
    """
    if name == "":
        raise tx.UsageError("Empty string is not supported as a checkpointable name in `load`.")
    if name is not None and name != AUTO and name in RESERVED:
        raise tx.UsageError(f"Provided reserved checkpointable key: {name}.")


def _check_abstract(abstract: Any) -> None:
    if abstract is None:
        return
    if not isinstance(abstract, Mapping):
        raise tx.UsageError(
            "`abstract_checkpointables` must be a valid mapping of checkpointable names to"
            f" abstract checkpointables to load, but got {type(abstract)}"
        )
    check_names(abstract)


def check_names(names: Any) -> None:
    """Refuses names that no checkpointable has.

    Raises:
        UsageError: One is empty or reserved.
    """
    if "" in names:
        raise tx.UsageError("Empty string is not supported as a checkpointable name.")
    reserved = sorted(set(names) & RESERVED)
    if reserved:
        raise tx.UsageError(f"Provided reserved checkpointable keys: {reserved}.")


def check_abstract_leaves(abstract: PyTree) -> None:
    """Checks that each leaf says how it is loaded.

    Raises:
        TypeError: A leaf does not.
    """
    for leaf in jax.tree.leaves(abstract):
        if not is_abstract_leaf(leaf):
            raise TypeError(f"Unsupported abstract leaf type for loading: `{type(leaf)}`.")
