"""JAX. Makes template leaves from those of `item`, their restore args and the checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

import templax as tx

from ..._catalog.entry import LeafEntry
from ..._core.arguments import PyTree
from ..._core.text import list_names
from ..._jax.paths import name_leaf
from ..._jax.support import abstract_array, find_key_dtype
from ..._template.flatten import flatten_tree
from .leaf_args import MOST_NAMED, PLACEHOLDER
from .metadata.sharding import resolve_sharding
from .metadata.tree import unwrap_tree
from .metadata.value import leaf_kind

_log = logging.getLogger("templax")

_PYTHON = (int, float, complex, bool, str)

STRUCTURE_ERROR = (
    "User-provided restore item and on-disk value metadata tree structures do not match"
)
"""How Orbax begins its errors about trees that differ: programs look for it."""


def make_template(item: PyTree) -> PyTree:
    """Makes a template for `templax.restore` from a tree that may hold metadata of leaves.

    Shardings in the metadata are used. If the devices of the save are not there, the leaves go
    to JAX's default device, and a warning names them. An array without a sharding was saved from
    NumPy, and becomes a NumPy array again.
    """
    tree = unwrap_tree(item)
    if not any(map(leaf_kind, jtu.tree_leaves(tree))):
        return tree
    elsewhere: list[str] = []
    flat = flatten_tree(tree)
    leaves = [_from_metadata(name_leaf(keys), leaf, elsewhere) for keys, leaf in flat.keyed]
    if elsewhere:
        text = "saved on devices that are not there, restored on the default device: %s"
        _log.warning(text, list_names(elsewhere, MOST_NAMED))
    return flat.treedef.unflatten(leaves)


def _from_metadata(name: str, leaf: Any, elsewhere: list[str]) -> Any:
    kind = leaf_kind(leaf)
    if kind is None:
        return leaf
    if kind == "string":
        return str
    if kind == "scalar":
        python = type(np.zeros((), leaf.dtype).item())
        return python if np.dtype(python) == leaf.dtype else abstract_array((), leaf.dtype)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        template: Any = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    elif leaf.sharding is None:
        return make_numpy_leaf(tuple(leaf.shape), np.dtype(leaf.dtype))
    else:
        template = abstract_array(tuple(leaf.shape), np.dtype(leaf.dtype))
    if leaf.sharding is None or not isinstance(template, jax.ShapeDtypeStruct):
        return template
    try:
        sharding = resolve_sharding(leaf.sharding)
    except ValueError:
        elsewhere.append(name)
        return template
    return jax.ShapeDtypeStruct(template.shape, template.dtype, sharding=sharding)


def is_leaf_args(x: Any) -> bool:
    """Whether an object says how a leaf is restored, whatever its class."""
    return hasattr(x, "restore_type") and hasattr(x, "dtype")


def name_leaf_args(tree: PyTree) -> dict[str, Any]:
    """Name of the leaf → its args, or None where the tree has None.

    Args:
        tree: A tree of restore args or of save args.
    """
    keyed, _ = jtu.tree_flatten_with_path(unwrap_tree(tree), is_leaf=lambda x: x is None)
    return {name_leaf(keys): args for keys, args in keyed}


def apply_restore_args(
    template: PyTree,
    restore_args: PyTree,
    stored: Mapping[str, LeafEntry],
    *,
    partial: bool = False,
    as_stored: bool = False,
) -> PyTree:
    """Makes a template whose leaves are as restore args say.

    Args:
        template: The tree to restore.
        restore_args: A tree with args at each leaf of `template`.
        stored: Name → leaf of the checkpoint: gives the shape and dtype where neither does.
        partial: Whether there may be args for leaves that `template` lacks.
        as_stored: Whether arrays whose args give no shape get the stored one, as with Orbax if
            there are transforms. A warning names those whose shape in `template` differs.

    Raises:
        UsageError: A leaf has no args, or args have no leaf; or the args contradict themselves.
    """
    asked = name_leaf_args(restore_args)
    flat = flatten_tree(template)
    names = [name_leaf(keys) for keys, _ in flat.keyed]
    rows = list(zip(names, flat.leaves, strict=True))
    lacking = [name for name, leaf in rows if name not in asked and leaf is not PLACEHOLDER]
    if lacking:
        raise tx.UsageError(
            f"{STRUCTURE_ERROR}: expected restore args for each leaf of the item, found none for"
            f" {list_names(lacking, MOST_NAMED)}"
        )
    known = {*names, *[name_leaf(keys) for keys, _ in flat.repeats]}
    idle = _find_idle(asked, known, template)
    if idle and not partial:
        raise tx.UsageError(
            f"{STRUCTURE_ERROR}: expected restore args for leaves of the item only, got some for"
            f" {list_names(idle, MOST_NAMED)}; hint: partial_restore=True"
        )
    if as_stored:
        rows = take_stored_shapes(rows, asked, stored)
    return flat.treedef.unflatten(
        [
            leaf if args is None else describe_leaf(leaf, args, stored.get(name))
            for (name, leaf), args in zip(rows, map(asked.get, names), strict=True)
        ]
    )


def _find_idle(asked: Mapping[str, Any], known: Container[str], tree: PyTree) -> list[str]:
    """The names of args that belong neither to a leaf nor to an empty node or anything below it."""
    idle = [name for name, args in asked.items() if name not in known and args is not None]
    if not idle:
        return idle
    keyed, _ = jtu.tree_flatten_with_path(tree, is_leaf=lambda x: not jtu.tree_leaves(x))
    empty = [f"{name_leaf(keys)}." for keys, node in keyed if not jtu.tree_leaves(node)]
    return [n for n in idle if not any(node == "." or f"{n}.".startswith(node) for node in empty)]


def take_stored_shapes(
    rows: Iterable[tuple[str, Any]], asked: Mapping[str, Any], stored: Mapping[str, LeafEntry]
) -> list[tuple[str, Any]]:
    """Leaves of a template with the shapes of the checkpoint, where their args say none.

    A warning names those that change.

    Args:
        rows: Names and leaves.
        asked: Name → restore args.
        stored: Name → leaf of the checkpoint.
    """
    changed: list[str] = []
    result: list[tuple[str, Any]] = []
    for name, leaf in rows:
        entry, args = stored.get(name), asked.get(name)
        says_none = args is not None and getattr(args, "global_shape", None) is None
        if entry is not None and says_none and _is_array_of_other_shape(leaf, entry):
            changed.append(name)
            leaf = _reshape(leaf, entry.shape, entry.dtype)
        result.append((name, leaf))
    if changed:
        text = "restored in the stored shape, and not in that of item=: %s; hint: global_shape="
        _log.warning(text, list_names(changed, MOST_NAMED))
    return result


def _is_array_of_other_shape(leaf: Any, entry: LeafEntry) -> bool:
    shape = () if isinstance(leaf, (int, float)) else getattr(leaf, "shape", None)
    return entry.kind == "array" and shape is not None and tuple(shape) != entry.shape


def _reshape(leaf: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        return make_numpy_leaf(shape, leaf.dtype)
    if isinstance(leaf, (int, float)):  # it only names a leaf
        return jax.ShapeDtypeStruct(shape, dtype)
    return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))


def describe_leaf(leaf: Any, asked: Any, stored: LeafEntry | None = None) -> Any:
    """The template leaf that a leaf of `item` and its restore args describe together.

    Args:
        leaf: The leaf of `item`.
        asked: Its restore args, of any class that has their attributes.
        stored: The leaf of the checkpoint, if it has one.
    """
    kind, dtype = asked.restore_type, asked.dtype
    if leaf is PLACEHOLDER or kind is type(PLACEHOLDER):
        return PLACEHOLDER
    if leaf is str or isinstance(leaf, str) or kind in _PYTHON:
        return kind if kind in _PYTHON else leaf
    if not hasattr(leaf, "shape") or isinstance(leaf, type):
        if kind is None:
            number = isinstance(leaf, (type, int, float))
            return leaf if dtype is None or not number else type(np.zeros((), dtype).item())
        stand_in = _make_stand_in(leaf, stored)
        if stand_in is None:
            return leaf  # the restore names what does not fit
        leaf = stand_in
    shapes = getattr(asked, "global_shape", None), getattr(asked, "shape", None)
    shape = next((shape for shape in shapes if shape is not None), leaf.shape)
    sharding = find_sharding(asked)
    sharding = getattr(leaf, "sharding", None) if sharding is None else sharding
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    dtype = leaf.dtype if dtype is None else dtype
    if kind is np.ndarray or (kind is None and isinstance(leaf, np.ndarray)):
        return make_numpy_leaf(shape, dtype)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _make_stand_in(leaf: Any, stored: LeafEntry | None) -> Any:
    """Gives a leaf that is only there to name one, such as `0`, a shape and a dtype."""
    if stored is not None and stored.kind == "string":
        return None
    if stored is not None and stored.kind == "key":
        return jax.ShapeDtypeStruct(stored.user_shape, find_key_dtype(stored.key_impl))
    if stored is not None:
        return jax.ShapeDtypeStruct(stored.shape, stored.dtype)
    number = isinstance(leaf, (type, int, float))
    return np.zeros((), leaf if isinstance(leaf, type) else type(leaf)) if number else None


def make_numpy_leaf(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """The template leaf of a NumPy array, which takes no memory."""
    return np.broadcast_to(np.empty((), dtype), shape)


def has_unplaced_arrays(template: PyTree) -> bool:
    """Whether a template has abstract arrays that say no sharding."""
    return any(map(_is_unplaced, jtu.tree_leaves(template)))


def use_saved_numpy(template: PyTree, numpy: Container[str]) -> PyTree:
    """A template in which abstract arrays without a sharding are NumPy's, where those were saved.

    For Orbax, too, such a leaf says the shape and the dtype, and the checkpoint the rest.

    Args:
        template: A template.
        numpy: The names of the leaves that were saved from NumPy.
    """
    flat = flatten_tree(template)
    return flat.treedef.unflatten(
        [make_saved_numpy(x) if name_leaf(keys) in numpy else x for keys, x in flat.keyed]
    )


def make_saved_numpy(leaf: Any) -> Any:
    """The template leaf in place of one that stands for a saved NumPy array; others stay."""
    return make_numpy_leaf(leaf.shape, leaf.dtype) if _is_unplaced(leaf) else leaf


def _is_unplaced(leaf: Any) -> bool:
    if not isinstance(leaf, jax.ShapeDtypeStruct) or leaf.sharding is not None:
        return False
    return not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def find_sharding(asked: Any) -> Any:
    """The sharding that restore args ask for, or None.

    Raises:
        UsageError: A mesh without axes, or axes without a mesh.
    """
    sharding = resolve_sharding(getattr(asked, "sharding", None))
    mesh, axes = getattr(asked, "mesh", None), getattr(asked, "mesh_axes", None)
    if sharding is not None or (mesh is None and axes is None):
        return sharding
    if mesh is None or axes is None:
        raise tx.UsageError(f"Expected mesh= and mesh_axes=, got {mesh!r} and {axes!r}")
    return jax.sharding.NamedSharding(mesh, axes)


def cast_tree(tree: PyTree, save_args: PyTree) -> PyTree:
    """A tree whose leaves have the dtypes that save args ask for.

    Args:
        tree: The tree to save.
        save_args: A tree with args at each of its leaves, and maybe at its empty nodes. None casts
            nothing.

    Raises:
        UsageError: A leaf has no args, or args have no leaf.
    """
    if save_args is None:
        return tree
    asked = name_leaf_args(save_args)
    flat = flatten_tree(tree)
    names = [name_leaf(keys) for keys, _ in flat.keyed]
    known = {*names, *[name_leaf(keys) for keys, _ in flat.repeats]}
    lacking = [name for name in names if name not in asked]
    idle = _find_idle(asked, known, tree)
    if lacking or idle:
        what = f"found none for {list_names(lacking, MOST_NAMED)}"
        what = what if lacking else f"got some for {list_names(idle, MOST_NAMED)}"
        raise tx.UsageError(f"Expected save args for each leaf of the tree, {what}")
    rows = zip(names, flat.leaves, strict=True)
    return flat.treedef.unflatten([cast_leaf(leaf, asked[name]) for name, leaf in rows])


def cast_leaf(leaf: Any, asked: Any) -> Any:
    """A leaf in the dtype that its save args ask for."""
    dtype = None if asked is None else asked.dtype
    if dtype is None or leaf is None or isinstance(leaf, str):
        return leaf
    if isinstance(leaf, jax.Array):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return leaf if is_key else leaf.astype(dtype)
    if isinstance(leaf, np.ndarray):
        return leaf.astype(dtype)
    if isinstance(leaf, (int, float, complex, np.generic)):
        return np.dtype(dtype).type(leaf)
    return leaf  # not a number: the save accepts or refuses it
