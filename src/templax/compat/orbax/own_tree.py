"""JAX. What a checkpoint records of the tree that was saved, as Orbax takes it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..._catalog.catalog import Catalog
from ..._core.arguments import PyTree
from ..._jax.paths import name_leaf
from ..._template.flatten import flatten_tree
from ...formats.orbax.leaf_names import read_numpy_paths
from .leaf_templates import make_numpy_leaf


def find_numpy_leaves(catalog: Catalog) -> set[str]:
    """The names of the leaves that were saved from NumPy arrays."""
    paths = read_numpy_paths(catalog.source)
    return {entry.name for entry in catalog.entries if tuple(map(str, entry.path)) in paths}


def has_unplaced_arrays(template: PyTree) -> bool:
    """Whether a template has abstract arrays that say no sharding."""
    return any(map(_is_unplaced, jax.tree.leaves(template)))


def use_saved_numpy(template: PyTree, catalog: Catalog) -> PyTree:
    """A template in which abstract arrays without a sharding are NumPy's, where those were saved.

    For Orbax, too, such a leaf says the shape and the dtype, and the checkpoint the rest.
    """
    numpy = find_numpy_leaves(catalog)
    flat = flatten_tree(template)
    return flat.treedef.unflatten(
        [make_saved_numpy(leaf) if name_leaf(keys) in numpy else leaf for keys, leaf in flat.keyed]
    )


def make_saved_numpy(leaf: Any) -> Any:
    """The template leaf in place of one that stands for a saved NumPy array; others stay."""
    return make_numpy_leaf(leaf.shape, leaf.dtype) if _is_unplaced(leaf) else leaf


def _is_unplaced(leaf: Any) -> bool:
    if not isinstance(leaf, jax.ShapeDtypeStruct) or leaf.sharding is not None:
        return False
    return not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
