"""JAX. The handlers of trees, and of single arrays."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import jax
import numpy as np

from ...._core.arguments import PyTree
from ...._save.contents import Content, Tree
from ....formats.orbax.write import HANDLERS, PYTREE, STANDARD
from ..args import PyTreeRestore, PyTreeSave, StandardRestore, StandardSave
from ..checkpoint_args import CheckpointArgs, register_with_handler
from ..item_args import ArrayRestore, ArraySave
from ..leaf_templates import cast_tree
from ..metadata.checkpoint import read_metadata
from ..metadata.tree import TreeMetadata
from ..options import check_metadata_options, check_tuning
from ..saver import PathLike
from ..unmapped import make_unmapped_error
from .built_in import BuiltInHandler, is_replaced, make_args_error

_TUNING = frozenset(
    (
        "array_metadata_validator",
        "enable_pinned_host_transfer",
        "enable_post_merge_validation",
        "handler_impl",
        "is_prioritized_key_fn",
        "memory_limit_options",
        "multiprocessing_options",
        "pytree_metadata_options",
        "restore_concurrent_bytes",
        "restore_concurrent_gb",
        "save_concurrent_bytes",
        "save_concurrent_gb",
        "save_device_host_concurrent_bytes",
        "save_device_host_concurrent_gb",
        "type_handler_registry",
        "use_compression",
        "use_ocdbt",
        "use_zarr3",
    )
)
"""The options of Orbax's handlers of trees."""

_USED = ("save", "async_save", "finalize", "make_contents", "restore", "metadata")
"""The methods that say what a handler saves and restores."""


def _has_own_handlers(registry: Any) -> bool:
    """Whether a registry of type handlers has others than those of Orbax or templax."""
    if registry is None:
        return False
    listed = getattr(registry, "_type_registry", None)
    if not isinstance(listed, list):
        return True
    handlers = [handler for _, handler in cast("list[tuple[Any, Any]]", listed)]
    return not all(type(h).__module__.startswith(("orbax.", "templax.")) for h in handlers)


class PyTreeCheckpointHandler(BuiltInHandler):
    """Saves and restores a tree, by `PyTreeSave` and `PyTreeRestore`.

    Args:
        aggregate_filename: No effect, as all other options that describe files and memory.
        **options: Those of Orbax.

    Raises:
        NotImplementedError: An option changes what is saved or restored: a
            `type_handler_registry` with handlers that are not Orbax's, or a `handler_impl` of the
            caller's own.

    Example:
        >>> import os, tempfile
        >>> from templax.compat import orbax as ocp
        >>> path = os.path.join(tempfile.mkdtemp(), "item")
        >>> handler = ocp.PyTreeCheckpointHandler()
        >>> handler.save(path, args=ocp.args.PyTreeSave({"step": 7}))
        >>> handler.restore(path)
        {'step': 7}
    """

    name = PYTREE

    def __init__(self, aggregate_filename: str | None = None, **options: Any) -> None:
        del aggregate_filename
        owner = type(self).__name__
        check_tuning(owner, options, _TUNING)
        check_metadata_options(owner, options.get("pytree_metadata_options"))
        if _has_own_handlers(options.get("type_handler_registry")):
            raise make_unmapped_error(
                f"{owner}(type_handler_registry)",
                "leave it out: convert such leaves before save and after restore, or save them as"
                " an item with a CheckpointHandler of your own",
            )
        inner = options.get("handler_impl")
        if inner is not None and is_replaced(inner, *_USED):
            raise make_unmapped_error(
                f"{owner}(handler_impl={type(inner).__name__}())",
                f"give the checkpointer or manager this handler instead of {owner}",
            )

    def make_contents(self, args: Any) -> Mapping[str, Content]:
        """See `BuiltInHandler.make_contents`."""
        if not isinstance(args, (PyTreeSave, StandardSave)):
            if not hasattr(args, "save_args"):
                raise make_args_error("args that save, such as StandardSave(tree)", args)
            metadata = getattr(args, "custom_metadata", None)
            args = PyTreeSave(args.item, args.save_args, custom_metadata=metadata)
        return {"": replace(args.content(), handler=self.typestr())}

    def restore(self, directory: PathLike, *args: Any, **kwargs: Any) -> PyTree:
        """Restores the tree in a directory, by `args=` or the arguments of its class."""
        given = self.take_args("restore", args, kwargs)
        if not isinstance(given, (PyTreeRestore, StandardRestore, BasePyTreeRestore)):
            if not hasattr(given, "item") or hasattr(given, "save_args"):
                raise make_args_error("args that restore, such as StandardRestore(template)", given)
            given = PyTreeRestore(given.item, getattr(given, "restore_args", None))
        return given.restore(os.fspath(directory))

    def metadata(self, directory: PathLike) -> TreeMetadata:
        """The leaves of the tree, without reading any array."""
        return read_metadata(os.fspath(directory)).item_metadata


class BasePyTreeCheckpointHandler(PyTreeCheckpointHandler):
    """`PyTreeCheckpointHandler` under another name, without transforms."""

    name = f"{HANDLERS}base_pytree_checkpoint_handler.BasePyTreeCheckpointHandler"


class StandardCheckpointHandler(PyTreeCheckpointHandler):
    """Saves and restores a tree, by `StandardSave` and `StandardRestore`."""

    name = STANDARD

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)


class ArrayCheckpointHandler(BuiltInHandler):
    """Saves and restores an array or a number, by `ArraySave` and `ArrayRestore`.

    Args:
        checkpoint_name: The name of the only leaf of the tree that it is saved as.

    Example:
        >>> import os, tempfile, numpy as np
        >>> from templax.compat import orbax as ocp
        >>> path = os.path.join(tempfile.mkdtemp(), "item")
        >>> handler = ocp.handlers.ArrayCheckpointHandler()
        >>> handler.save(path, args=ocp.args.ArraySave(np.arange(3)))
        >>> restore_args = ocp.RestoreArgs(restore_type=np.ndarray)
        >>> handler.restore(path, args=ocp.args.ArrayRestore(restore_args=restore_args))
        array([0, 1, 2])
    """

    name = f"{HANDLERS}array_checkpoint_handler.ArrayCheckpointHandler"

    def __init__(self, checkpoint_name: str | None = None) -> None:
        self._leaf = checkpoint_name or "checkpoint"

    def make_contents(self, args: ArraySave) -> Mapping[str, Content]:
        """See `BuiltInHandler.make_contents`.

        Raises:
            TypeError: The item is neither an array nor a number.
        """
        item = args.item
        if not isinstance(item, (jax.Array, np.ndarray, np.generic, int, float, complex)):
            raise TypeError(f"Expected an array or a number, got {type(item).__name__}")
        save_args = None if args.save_args is None else {self._leaf: args.save_args}
        tree = cast_tree({self._leaf: item}, save_args)
        return {"": Tree(tree, self.name)}

    def restore(self, directory: PathLike, *args: Any, **kwargs: Any) -> Any:
        """Restores the array in a directory, by `args=ArrayRestore(...)`."""
        given = self.take_args("restore", args, kwargs)
        item = None if given.item is None else {self._leaf: given.item}
        restore_args = None if given.restore_args is None else {self._leaf: given.restore_args}
        tree = PyTreeRestore(item, restore_args).restore(os.fspath(directory))
        return tree[self._leaf]


@dataclass
class BasePyTreeSave(PyTreeSave):
    """What `BasePyTreeCheckpointHandler` saves: `PyTreeSave` under another name."""

    handler = BasePyTreeCheckpointHandler.name


@dataclass
class BasePyTreeRestore(CheckpointArgs):
    """What `BasePyTreeCheckpointHandler` restores: `PyTreeRestore` without transforms."""

    item: PyTree = None
    restore_args: PyTree = None
    partial_restore: bool = False

    def restore(self, directory: str) -> PyTree:
        """Restores the item at this path."""
        partial = self.partial_restore
        args = PyTreeRestore(self.item, self.restore_args, partial_restore=partial)
        return args.restore(directory)


for _handler, _save, _restore in (
    (PyTreeCheckpointHandler, PyTreeSave, PyTreeRestore),
    (BasePyTreeCheckpointHandler, BasePyTreeSave, BasePyTreeRestore),
    (StandardCheckpointHandler, StandardSave, StandardRestore),
    (ArrayCheckpointHandler, ArraySave, ArrayRestore),
):
    register_with_handler(_handler, for_save=True)(_save)
    register_with_handler(_handler, for_restore=True)(_restore)
