"""JAX. Orbax's `args`: how an item is saved or restored.

Args of trees carry out what they say: `content` makes what is saved, `restore` restores it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import jax

import templax as tx

from ..._core.arguments import PyTree
from ..._save.contents import Tree
from ...formats.orbax.write import PYTREE, STANDARD
from .checkpoint_args import (
    CheckpointArgs,
    get_registered_args_cls,
    get_registered_handler_cls,
    has_registered_args,
    register_with_handler,
)
from .item_args import (
    ArrayRestore,
    ArraySave,
    JaxRandomKeyRestore,
    JaxRandomKeySave,
    NumpyRandomKeyRestore,
    NumpyRandomKeySave,
    ProtoRestore,
    ProtoSave,
)
from .leaf_args import ArrayRestoreArgs, RestoreArgs, SaveArgs
from .leaf_templates import cast_tree
from .transformed_restore import restore_by_legacy_function, restore_transformed
from .tree_restore import restore_tree
from .unmapped import make_getattr, make_unmapped_error

__all__ = [
    "ArrayRestore",
    "ArrayRestoreArgs",
    "ArraySave",
    "CheckpointArgs",
    "Composite",
    "JaxRandomKeyRestore",
    "JaxRandomKeySave",
    "JsonRestore",
    "JsonSave",
    "NumpyRandomKeyRestore",
    "NumpyRandomKeySave",
    "ProtoRestore",
    "ProtoSave",
    "PyTreeRestore",
    "PyTreeSave",
    "RestoreArgs",
    "SaveArgs",
    "StandardRestore",
    "StandardSave",
    "get_registered_args_cls",
    "get_registered_handler_cls",
    "has_registered_args",
    "register_with_handler",
]


_ORBAX = "orbax.checkpoint."


class _TreeSave:
    """The base of args that save a tree, which differ in their signatures alone."""

    item: PyTree
    save_args: PyTree
    custom_metadata: Any

    handler: ClassVar[str]
    """The name of the handler that checkpoints record."""

    def content(self) -> Tree:
        """The tree to save, its leaves cast as `save_args` say.

        Raises:
            UsageError: The tree is empty; or `save_args` do not fit it.
        """
        if not jax.tree.leaves(self.item) and not self.item:
            raise tx.UsageError(f"Found empty item: expected a tree to save, got {self.item}")
        tree = cast_tree(self.item, self.save_args)
        return Tree(tree, self.handler, self.custom_metadata, empty_tuples=True)


@dataclass
class StandardSave(_TreeSave, CheckpointArgs):
    """`args.StandardSave`: a tree, and how each leaf is saved.

    Example:
        >>> import numpy as np
        >>> from templax.compat import orbax as ocp
        >>> save_args = {"w": ocp.SaveArgs(dtype=np.int8)}
        >>> ocp.args.StandardSave({"w": np.zeros(3)}, save_args).content().value
        {'w': array([0, 0, 0], dtype=int8)}
    """

    handler = STANDARD

    item: PyTree
    save_args: PyTree = None
    custom_metadata: Any = None


@dataclass
class PyTreeSave(_TreeSave, CheckpointArgs):
    """`args.PyTreeSave`: a tree, and how each leaf is saved. The file size has no effect.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> ocp.args.PyTreeSave({"w": 1}).content().value
        {'w': 1}
    """

    handler = PYTREE

    item: PyTree
    save_args: PyTree = None
    ocdbt_target_data_file_size: int | None = None
    custom_metadata: Any = None


@dataclass
class JsonSave(CheckpointArgs):
    """`args.JsonSave`: a JSON value.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> ocp.args.JsonSave({"lr": 0.5})
        JsonSave(item={'lr': 0.5})
    """

    item: Any


@dataclass
class StandardRestore(CheckpointArgs):
    """`args.StandardRestore`: a template, or None for the checkpoint's own tree.

    Example:
        >>> import jax, numpy as np
        >>> from templax.compat import orbax as ocp
        >>> ocp.args.StandardRestore({"w": jax.ShapeDtypeStruct((8,), np.float32)}).strict
        True
    """

    item: PyTree = None
    strict: bool = True
    support_layout: bool = False
    fallback_sharding: jax.sharding.Sharding | None = None

    def restore(self, directory: str) -> PyTree:
        """Restores the item at this path."""
        if self.fallback_sharding is not None:
            raise make_unmapped_error(
                "fallback_sharding", "templax.restore(path, item, shardings=...)"
            )
        if self.support_layout:
            raise make_unmapped_error(
                "support_layout", "jax.device_put(tree, formats) after the restore"
            )
        return restore_tree(directory, self.item, numpy_as_saved=True)


@dataclass
class PyTreeRestore(CheckpointArgs):
    """`args.PyTreeRestore`: a template, and per leaf the args that override it.

    `partial_restore=True`, or `transforms={}` with an item, leaves the rest of the checkpoint
    unread. Other `transforms` compute the leaves of `item` from those of the checkpoint; see
    `transform_utils`. `legacy_transform_fn` is called as Orbax calls it.

    Example:
        >>> import jax, numpy as np
        >>> from templax.compat import orbax as ocp
        >>> ocp.args.PyTreeRestore({"w": jax.ShapeDtypeStruct((8,), np.float32)}).partial_restore
        False
    """

    item: PyTree = None
    restore_args: PyTree = None
    transforms: PyTree = None
    transforms_default_to_original: bool = True
    legacy_transform_fn: Any = None
    partial_restore: bool = False

    def restore(self, directory: str) -> PyTree:
        """Restores the item at this path."""
        if self.legacy_transform_fn is not None:
            if self.transforms is not None:
                raise tx.UsageError("Expected transforms= or legacy_transform_fn=, got both")
            return restore_by_legacy_function(
                directory, self.item, self.restore_args, self.legacy_transform_fn
            )
        if self.transforms or (self.transforms is not None and self._keeps_item):
            return restore_transformed(
                directory, self.item, self.restore_args, self.transforms, not self._keeps_item
            )
        partial = self.partial_restore or self.transforms is not None
        return restore_tree(
            directory,
            self.item,
            self.restore_args,
            partial=partial,
            as_stored=self.transforms is not None,
            numpy_as_saved=True,
        )

    @property
    def _keeps_item(self) -> bool:
        return not self.transforms_default_to_original


@dataclass
class JsonRestore(CheckpointArgs):
    """`args.JsonRestore`: an item that holds JSON.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> ocp.args.JsonRestore()
        JsonRestore(item=None)
    """

    item: None = None


class _NoItem(AttributeError, KeyError):
    """No item has this name. Orbax raises a KeyError; `getattr` needs an AttributeError."""


class Composite(Mapping[str, Any], CheckpointArgs):
    """`args.Composite`: item name → its args. A restore returns one of results.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> args = ocp.args
        >>> items = args.Composite(state=args.StandardRestore(), meta=args.JsonRestore())
        >>> list(items), items.meta
        (['state', 'meta'], JsonRestore(item=None))
    """

    def __init__(self, **items: Any) -> None:
        for name in items:
            if name.startswith("__"):
                raise tx.UsageError(f"Expected names of items without `__` in front, got `{name}`")
        self.__dict__["_items"] = items

    def __getitem__(self, name: str) -> Any:
        if name not in self._items:
            found = ", ".join(f"`{item}`" for item in self._items) or "none"
            raise KeyError(f"Expected one of the items {found}, got `{name}`")
        return self._items[name]

    def __getattr__(self, name: str) -> Any:
        if name == "_items" or name not in self._items:
            raise _NoItem(name)
        return self._items[name]

    def __setattr__(self, name: str, value: Any) -> None:
        raise tx.UsageError(f"A Composite can't be changed, got {name}={value!r}")

    def __and__(self, other: Mapping[str, Any]) -> Composite:
        """The items that both have."""
        return Composite(**{name: each for name, each in self.items() if name in other})

    def __or__(self, other: Mapping[str, Any]) -> Composite:
        """The items of both; where both have one, that of `other`."""
        return Composite(**{**self, **other})

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"Composite({self._items!r})"


def adopt_args(args: Any) -> Any:
    """Converts args of Orbax's own classes to those of templax; returns others as they are.

    Raises:
        NotImplementedError: They set a field that templax does not have.
    """
    if isinstance(args, CheckpointArgs) or not type(args).__module__.startswith(_ORBAX):
        return args
    name = type(args).__name__.removesuffix("Args")
    if name == Composite.__name__:
        return Composite(**{item: adopt_args(each) for item, each in args.items()})
    if name not in __all__:
        return args
    own: Any = getattr(sys.modules[__name__], name)
    known = {field.name for field in fields(own)}
    for field in fields(args):
        if field.name not in known and getattr(args, field.name) != field.default:
            raise make_unmapped_error(f"{name}.{field.name}", "leave it out")
    return own(**{each: getattr(args, each) for each in known if hasattr(args, each)})


__getattr__ = make_getattr("args.")
