"""JAX. The handler of trees: which leaves it takes, and how they are saved and loaded."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import jax
import numpy as np

import templax as tx

from ....._core.arguments import PyTree
from ....._save.contents import Tree
from ....._save.part import save_part
from .....formats.orbax.directory import TREE
from .....storage.open import open_source
from ...leaf_args import SaveArgs
from ...leaf_templates import cast_leaf
from ...unmapped import make_unmapped_error
from .context import Context, get_context
from .tree import PLACEHOLDER, Leaf
from .tree_loading import load_tree
from .tree_metadata import read_tree_metadata


class PyTreeHandler:
    """Saves a tree, and loads it.

    `save` and `save_checkpointables` make their own. A custom handler may use one to save a part of
    its item.

    Args:
        context: Its options replace those of the active context.
        array_metadata_validator: No effect.
        leaf_handler_registry, partial_save_mode: Not mapped.

    Raises:
        NotImplementedError: One that is not mapped is given.

    Example:
        >>> from templax.compat.orbax import v1 as ocp
        >>> ocp.handlers.PyTreeHandler().is_handleable({"w": 1.5, "name": object()})
        False
    """

    orbax_name = "orbax.checkpoint.experimental.v1._src.handlers.pytree_handler.PyTreeHandler"

    def __init__(
        self,
        *,
        context: Context | None = None,
        array_metadata_validator: Any = None,
        leaf_handler_registry: Any = None,
        partial_save_mode: bool = False,
    ) -> None:
        del array_metadata_validator
        if leaf_handler_registry is not None:
            raise make_unmapped_error(
                "PyTreeHandler(leaf_handler_registry)",
                "leave it out: convert such leaves before save and after load, or write a"
                " CheckpointableHandler of your own",
            )
        if partial_save_mode:
            raise make_unmapped_error("PyTreeHandler(partial_save_mode=True)", "partial.save")
        self._context = get_context() if context is None else context

    def prepare(self, tree: PyTree) -> PyTree:
        """The tree to save, its leaves cast as the options of the context say.

        Raises:
            UsageError: The tree is empty.
        """
        if tree is None:
            raise tx.UsageError("checkpointable must not be None for saving.")
        if not jax.tree.leaves(tree):
            raise tx.UsageError(f"Found empty item: {tree!r:.200}")
        options = self._context.array.saving
        scoped, default = options.scoped_storage_options_creator, options.storage_options.dtype
        if scoped is None and default is None:
            return tree

        def cast(path: Any, leaf: Any) -> Any:
            own = None if scoped is None else scoped(path, leaf)
            dtype = default if own is None or own.dtype is None else own.dtype
            if dtype is not None and isinstance(leaf, (int, float)):
                return np.asarray(leaf).astype(dtype).item()  # stays a Python number
            return cast_leaf(leaf, SaveArgs(dtype=dtype))

        return jax.tree.map_with_path(cast, tree)

    async def save(self, directory: Any, checkpointable: PyTree) -> Awaitable[None]:
        """See `CheckpointableHandler`. The values are safe from changes once this returns."""
        tree = jax.tree.map(_copy_leaf, self.prepare(checkpointable))

        async def write() -> None:
            content = Tree(tree, self.orbax_name, empty_tuples=True)
            save_part(await directory.await_creation(), {"": content}, wait=True)

        return write()

    async def load(self, directory: Any, abstract_checkpointable: PyTree = None) -> Awaitable[Any]:
        """See `CheckpointableHandler`."""
        return self._restore(str(directory), abstract_checkpointable)

    async def _restore(self, path: str, abstract: PyTree) -> PyTree:
        if open_source(path).stat(TREE) is None:
            raise tx.NotFound(
                f"Expected a tree with its `{TREE}`, found none",
                file=path,
                hint="templax.restore reads trees that have lost it",
            )
        partial = self._context.pytree.loading.partial_load
        return load_tree(path, abstract, partial=partial)

    async def metadata(self, directory: Any) -> PyTree:
        """The abstract tree of what was saved to a directory."""
        return read_tree_metadata(str(directory))

    def is_handleable(self, checkpointable: Any) -> bool:
        """Whether all leaves are of a kind that `templax.save` takes."""
        return all(is_leaf(leaf) for leaf in jax.tree.leaves(checkpointable))

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        """Whether all leaves are abstract leaves."""
        return all(is_abstract_leaf(leaf) for leaf in jax.tree.leaves(abstract_checkpointable))


def is_leaf(value: Any) -> bool:
    """Whether a leaf can be saved."""
    return isinstance(value, (Leaf, np.generic))


def is_abstract_leaf(value: Any) -> bool:
    """Whether a leaf tells how to load one: by what it is, or by its shape and dtype."""
    if value is PLACEHOLDER or is_leaf(value):
        return True
    if isinstance(value, type):
        return issubclass(value, (int, float, bytes, str, np.generic, np.ndarray))
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _copy_leaf(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        return leaf.copy()
    if isinstance(leaf, jax.Array) and leaf.is_fully_addressable:
        return leaf.copy()
    return leaf
