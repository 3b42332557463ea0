"""Orbax's `args`: how an item, or one leaf of it, is saved or restored.

Each knows its part of `templax.restore`, or what to hand to a save.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

import templax as tx

from ..._core.arguments import PyTree
from ..._save.item import Json
from ...formats.orbax.directory import ItemKind, list_items
from ...storage.open import open_source
from .metadata import TreeMetadata
from .options import unmapped

__all__ = [
    "ArrayRestoreArgs",
    "Composite",
    "JsonRestore",
    "JsonSave",
    "PyTreeRestore",
    "PyTreeSave",
    "RestoreArgs",
    "SaveArgs",
    "StandardRestore",
    "StandardSave",
]


PLACEHOLDER = ...
"""A template leaf or subtree that is not restored."""


@dataclass(frozen=True)
class RestoreArgs:
    """How one leaf comes back; it overrides what the template's leaf says.

    Attributes:
        restore_type: `jax.Array`, `np.ndarray`, `int`, `float`, `bool` or `str`. None: as the
            template's leaf.
        dtype: Wanted instead of the template's, within what `templax.restore(cast="float")` allows.

    Example:
        >>> RestoreArgs(restore_type=np.ndarray).dtype is None
        True
    """

    restore_type: Any = None
    dtype: Any = None


@dataclass(frozen=True)
class ArrayRestoreArgs(RestoreArgs):
    """`RestoreArgs` of a `jax.Array`.

    Attributes:
        mesh, mesh_axes: A `NamedSharding` in two parts, used if `sharding` is None.
        sharding: Where the array goes.
        global_shape, shape: The shape it must have; one meaning, two names.
        strict: No effect: an array is never padded or cut to fit.

    Example:
        >>> ArrayRestoreArgs(global_shape=(8, 4)).restore_type is jax.Array
        True
    """

    restore_type: Any = jax.Array
    mesh: jax.sharding.Mesh | None = None
    mesh_axes: jax.sharding.PartitionSpec | None = None
    sharding: Any = None
    global_shape: tuple[int, ...] | None = None
    shape: tuple[int, ...] | None = None
    strict: bool = True


@dataclass(frozen=True)
class SaveArgs:
    """How one leaf is saved.

    Attributes:
        dtype: It is cast to this first, by JAX or NumPy.
        aggregate, chunk_byte_size, shard_axes: No effect: they are about files.

    Example:
        >>> SaveArgs(dtype=np.float16).aggregate
        False
    """

    aggregate: bool = False
    dtype: Any = None
    chunk_byte_size: int | None = None
    shard_axes: tuple[int, ...] = ()


@dataclass(frozen=True)
class StandardSave:
    """`args.StandardSave`: a tree, and per leaf how it is saved.

    Example:
        >>> StandardSave({"w": np.zeros(3)}, {"w": SaveArgs(dtype=np.int8)}).content()
        {'w': array([0, 0, 0], dtype=int8)}
    """

    item: PyTree
    save_args: PyTree = None
    custom_metadata: Any = None

    def content(self) -> PyTree:
        """What is saved, with leaves cast as asked."""
        return _content(self.item, self.save_args, self.custom_metadata)


@dataclass(frozen=True)
class PyTreeSave:
    """`args.PyTreeSave`: a tree, and per leaf how it is saved. The size of files has no effect.

    Example:
        >>> PyTreeSave({"w": 1}).content()
        {'w': 1}
    """

    item: PyTree
    save_args: PyTree = None
    ocdbt_target_data_file_size: int | None = None
    custom_metadata: Any = None

    def content(self) -> PyTree:
        """What is saved, with leaves cast as asked."""
        return _content(self.item, self.save_args, self.custom_metadata)


@dataclass(frozen=True)
class JsonSave:
    """`args.JsonSave`: a JSON value.

    Example:
        >>> JsonSave({"lr": 0.5}).content().value
        {'lr': 0.5}
    """

    item: Any

    def content(self) -> Json:
        """What is saved."""
        return Json(self.item)


@dataclass(frozen=True)
class StandardRestore:
    """`args.StandardRestore`: a template, or None for the checkpoint's own tree.

    Example:
        >>> StandardRestore({"w": jax.ShapeDtypeStruct((8,), np.float32)}).strict
        True
    """

    item: PyTree = None
    strict: bool = True
    support_layout: bool = False
    fallback_sharding: jax.sharding.Sharding | None = None

    def restore(self, directory: str) -> PyTree:
        if self.fallback_sharding is not None:
            raise unmapped("fallback_sharding", "templax.restore(path, item, shardings=...)")
        if self.support_layout:
            raise unmapped("support_layout", "jax.device_put(tree, formats) after the restore")
        return _restore(directory, self.item, None, partial=False)


@dataclass(frozen=True)
class PyTreeRestore:
    """`args.PyTreeRestore`: a template, and per leaf what overrides it.

    `partial_restore=True`, or `transforms={}` with an item, leaves the rest of the checkpoint
    unread. Other transforms are `templax.restore(..., rename=)`.

    Example:
        >>> PyTreeRestore({"w": jax.ShapeDtypeStruct((8,), np.float32)}).partial_restore
        False
    """

    item: PyTree = None
    restore_args: PyTree = None
    transforms: PyTree = None
    transforms_default_to_original: bool = True
    legacy_transform_fn: Any = None
    partial_restore: bool = False

    def restore(self, directory: str) -> PyTree:
        if self.transforms or self.legacy_transform_fn is not None:
            raise unmapped("transforms", 'templax.restore(path, item, rename={"old": "new"})')
        if self.transforms is not None and not self.transforms_default_to_original:
            raise unmapped(
                "transforms_default_to_original=False",
                'templax.restore(path, item, missing="keep", extra="ignore")',
            )
        partial = self.partial_restore or self.transforms is not None
        return _restore(directory, self.item, self.restore_args, partial=partial)


@dataclass(frozen=True)
class JsonRestore:
    """`args.JsonRestore`: an item that holds JSON.

    Example:
        >>> JsonRestore()
        JsonRestore(item=None)
    """

    item: None = None

    def restore(self, directory: str) -> Any:
        source = open_source(directory)
        files = [entry.key for entry in source.children() if not entry.is_dir]
        # "metadata", or the item's own name; a commit marker may lie beside it.
        named = [key for key in files if key in ("metadata", os.path.basename(directory))]
        if not named:
            raise tx.NotFound("Expected a JSON item, found none", file=directory)
        return msgspec.json.decode(source.read(named[0]))


class Composite(Mapping[str, Any]):
    """`args.Composite`: item name → how to save or restore it; what comes back is one, too.

    Example:
        >>> items = Composite(state=StandardRestore(), meta=JsonRestore())
        >>> list(items), items.meta
        (['state', 'meta'], JsonRestore(item=None))
    """

    def __init__(self, **items: Any) -> None:
        self._items = items

    def __getitem__(self, name: str) -> Any:
        return self._items[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._items:
            raise AttributeError(name)
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"Composite({self._items!r})"

    def restore(self, directory: str) -> Composite:
        there = items_in(directory)
        for name in self:
            if name not in there:
                found = ", ".join(f"`{item}`" for item in there) or "none"
                raise KeyError(f"Expected item `{name}` in {directory}, found {found}")
        asked = {name: as_saved(there[name]) if a is None else a for name, a in self.items()}
        return Composite(**{n: a.restore(f"{directory}/{n}") for n, a in asked.items()})


SAVES = (StandardSave, PyTreeSave, JsonSave, Composite)


def item_contents(asked: Any, name: str) -> dict[str, Any]:
    """Item name → the tree or `Json` that is saved under it.

    Args:
        asked: One of `SAVES`.
        name: Of the item, if it is one that has none.
    """
    named = asked if isinstance(asked, Composite) else {name: asked}
    for each in named.values():
        if not isinstance(each, SAVES[:-1]):
            raise tx.UsageError(
                f"Expected args that save, such as StandardSave(tree), got {type(each).__name__}"
            )
    return {name: each.content() for name, each in named.items()}


def _content(item: PyTree, save_args: PyTree, custom_metadata: Any) -> PyTree:
    if custom_metadata is not None:
        raise unmapped("custom_metadata of an item", "that of save(), for the whole checkpoint")
    if item is None:
        raise tx.UsageError("Expected a tree to save, got None")
    if save_args is None:
        return item
    return jax.tree.map(_cast, item, save_args, is_leaf=lambda leaf: leaf is None)


def _cast(leaf: Any, asked: SaveArgs | None) -> Any:
    """A leaf in the dtype that its save args ask for."""
    dtype = None if asked is None else asked.dtype
    if dtype is None or leaf is None or isinstance(leaf, str):
        return leaf
    if isinstance(leaf, jax.Array):
        key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return leaf if key else leaf.astype(dtype)
    if isinstance(leaf, np.ndarray):
        return leaf.astype(dtype)
    number = isinstance(leaf, (int, float, complex, np.generic))
    return np.dtype(dtype).type(leaf) if number else leaf  # of what it is none, the save says so


def _restore(directory: str, item: PyTree, restore_args: PyTree, *, partial: bool) -> PyTree:
    checkpoint: Any = directory
    template = tree_of(item)
    if template is None:
        checkpoint = tx.open(directory)
        template = checkpoint.template()
    if restore_args is not None:
        template = jax.tree.map(_wanted, template, tree_of(restore_args))
    return tx.restore(checkpoint, template, extra="ignore" if partial else "error")


def tree_of(item: PyTree) -> PyTree:
    return item.tree if isinstance(item, TreeMetadata) else item


def _wanted(leaf: Any, asked: RestoreArgs) -> Any:
    """The template leaf that a leaf of `item` and its restore args describe together."""
    kind, dtype = asked.restore_type, asked.dtype
    if leaf is ... or leaf is str or isinstance(leaf, str):
        return leaf
    if kind in (int, float, bool, str):
        return kind
    if isinstance(leaf, (type, int, float)):
        if kind is None:
            return leaf if dtype is None else type(np.zeros((), dtype).item())
        leaf = np.zeros((), leaf if isinstance(leaf, type) else type(leaf))
    shape, sharding = leaf.shape, getattr(leaf, "sharding", None)
    if isinstance(asked, ArrayRestoreArgs):
        shape = next((s for s in (asked.global_shape, asked.shape) if s is not None), shape)
        if asked.sharding is not None:
            sharding = asked.sharding
        elif asked.mesh is not None and asked.mesh_axes is not None:
            sharding = jax.sharding.NamedSharding(asked.mesh, asked.mesh_axes)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    dtype = leaf.dtype if dtype is None else dtype
    if kind is np.ndarray or (kind is None and isinstance(leaf, np.ndarray)):
        return np.broadcast_to(np.empty((), dtype), shape)  # abstract: takes no memory
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def construct_restore_args(
    target: PyTree,
    sharding_tree: PyTree | None = None,
    set_global_shape: bool = True,
    support_layout: bool = False,
    strict: bool = True,
) -> PyTree:
    """Restore args that say what the leaves of `target` say.

    Args:
        target: Arrays, `ShapeDtypeStruct`s, numpy arrays, Python values.
        sharding_tree: Same tree, a sharding or None per leaf; instead of those of `target`.
        set_global_shape: Hold arrays to their shape in `target`.
        support_layout, strict: Without effect.

    Example:
        >>> construct_restore_args({"w": np.zeros(3, np.int8)})
        {'w': RestoreArgs(restore_type=<class 'numpy.ndarray'>, dtype=dtype('int8'))}
    """

    def one(leaf: Any, sharding: Any) -> RestoreArgs:
        if isinstance(leaf, (jax.ShapeDtypeStruct, jax.Array)):
            if isinstance(leaf, jax.ShapeDtypeStruct) and sharding is None:
                return RestoreArgs(np.ndarray, leaf.dtype)
            shape = leaf.shape if set_global_shape else None
            return ArrayRestoreArgs(dtype=leaf.dtype, sharding=sharding, global_shape=shape)
        if isinstance(leaf, np.ndarray):
            return RestoreArgs(np.ndarray, leaf.dtype)
        return RestoreArgs(leaf if isinstance(leaf, type) else type(leaf))

    tree = tree_of(target)
    shardings = tree_of(sharding_tree)
    if shardings is None:
        shardings = jax.tree.map(lambda leaf: getattr(leaf, "sharding", None), tree)
    return jax.tree.map(one, tree, shardings)


def items_in(directory: str) -> dict[str, ItemKind]:
    """Name → kind of each item of a step."""
    return list_items(open_source(directory))


def as_saved(kind: ItemKind) -> StandardRestore | JsonRestore:
    """How an item of a kind is restored where nothing more is said."""
    return JsonRestore() if kind == "json" else StandardRestore()


def __getattr__(name: str) -> NoReturn:
    if name.startswith("__"):
        raise AttributeError(name)
    raise AttributeError(
        f"templax.compat.orbax does not map `args.{name}`; "
        f"hint: templax.save(path, tree) and templax.restore(path, template)"
    )
