"""JAX. How a tree is loaded: by an abstract tree, or as it was saved."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import jax
import numpy as np

import templax as tx

from ....._core.arguments import PyTree
from ....._jax.paths import name_leaf
from ....._template.flatten import map_tree
from ...leaf_templates import make_numpy_leaf
from ...metadata.sharding import ShardingMetadata, read_shardings, resolve_sharding
from ...own_tree import find_numpy_leaves, make_own_template
from ...tree_restore import restore_tree
from .tree import PLACEHOLDER


def load_tree(path: str, abstract: PyTree, *, partial: bool) -> PyTree:
    """Restores a tree.

    Args:
        path: The directory of the item.
        abstract: The abstract tree; None for the checkpoint's own: with numpy arrays where they
            were saved, and the shardings of the save if its devices are there.
        partial: Whether leaves that `abstract` lacks are left unread.
    """
    if abstract is None:
        catalog = tx.open(path)
        return tx.restore(catalog, _make_saved_template(catalog, read_shardings(catalog.source)))
    return restore_tree(path, map_tree(make_template_leaf, abstract), partial=partial)


def load_tree_on_host(path: str) -> PyTree:
    """Restores a checkpoint's own tree, without copying its bytes. No other process takes part."""
    catalog = tx.open(path, uncommitted="allow")
    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])

    def place(leaf: Any) -> Any:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=host)

    template = jax.tree.map(place, _make_saved_template(catalog, {}))
    return tx.restore(catalog, template, mapped=True, alone=True)


def make_template_leaf(leaf: Any) -> Any:
    """The leaf of a template that stands for an abstract leaf of Orbax."""
    if isinstance(leaf, (jax.ShapeDtypeStruct, jax.Array, np.ndarray, np.generic, type)):
        return leaf
    if leaf is PLACEHOLDER or not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
        return leaf
    if hasattr(leaf, "sharding"):
        sharding = resolve_sharding(leaf.sharding)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return make_numpy_leaf(leaf.shape, leaf.dtype)


def _make_saved_template(catalog: tx.Catalog, shardings: dict[str, ShardingMetadata]) -> PyTree:
    """The abstract tree of a checkpoint, with numpy arrays where they were saved.

    Args:
        catalog: The checkpoint.
        shardings: Name → the sharding that an array is placed with, if its devices are there.
    """
    numpy = find_numpy_leaves(catalog)

    def restore_kind(keys: Any, leaf: Any) -> Any:
        name = name_leaf(keys)
        if isinstance(leaf, type):
            return leaf
        if name in numpy:
            return make_numpy_leaf(leaf.shape, leaf.dtype)
        if name in shardings and isinstance(leaf, jax.ShapeDtypeStruct):
            with suppress(tx.UsageError):  # the devices are others
                sharding = shardings[name].to_jax_sharding()
                return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        return leaf

    return jax.tree.map_with_path(restore_kind, make_own_template(catalog))
