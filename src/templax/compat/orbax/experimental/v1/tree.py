"""JAX. Orbax's v1 `tree`: the kinds of trees and leaves, and how trees are merged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import jax
import numpy as np

from ...unmapped import make_getattr
from .arrays import AbstractArray, AbstractScalar, AbstractShardedArray

__all__ = [
    "AbstractLeaf",
    "JsonType",
    "Leaf",
    "PyTree",
    "PyTreeKey",
    "PyTreeKeyPath",
    "PyTreeOf",
    "merge",
]

_T = TypeVar("_T")

PLACEHOLDER = ...
"""Stands for a leaf that is not loaded."""

Leaf = jax.Array | np.ndarray | int | float | np.number | bytes | bool | str
"""The leaves that are saved."""

AbstractLeaf = AbstractArray | AbstractShardedArray | AbstractScalar | str
"""What tells how a leaf is loaded."""

JsonType = Any

PyTreeKey = (
    jax.tree_util.SequenceKey
    | jax.tree_util.DictKey
    | jax.tree_util.GetAttrKey
    | jax.tree_util.FlattenedIndexKey
)

PyTreeKeyPath = tuple[PyTreeKey, ...]


class PyTreeOf(Generic[_T]):
    """For annotations: a pytree whose leaves are of one type."""


class PyTree:
    """For annotations: a pytree."""


def merge(*trees: Any, overwrite: bool = False) -> Any:
    """Merges trees into a new one: dicts by key, lists and tuples of one length by position.

    Args:
        *trees: The trees.
        overwrite: Whether a later leaf replaces an earlier one of the same name.

    Raises:
        ValueError: Two trees have the same leaf, or one has a leaf where another has a subtree.

    Example:
        >>> from templax.compat.orbax import v1 as ocp
        >>> ocp.tree.merge({"a": {"b": 1}}, {"a": {"c": 2}})
        {'a': {'b': 1, 'c': 2}}
    """
    merged: Any = trees[0] if trees else {}
    for tree in trees[1:]:
        merged = _merge(merged, tree, (), overwrite)
    return merged


def _merge(old: Any, new: Any, path: tuple[Any, ...], overwrite: bool) -> Any:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        first: Mapping[Any, Any] = old
        merged = dict(first)
        for key, value in new.items():
            known = key in first
            merged[key] = _merge(first[key], value, (*path, key), overwrite) if known else value
        return merged
    if isinstance(old, (list, tuple)) and type(old) is type(new) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        values = [_merge(one, two, (*path, i), overwrite) for i, (one, two) in pairs]
        return type(old)(*values) if hasattr(old, "_fields") else type(old)(values)
    if not overwrite:
        raise ValueError(f"Expected each leaf in one tree only, got that of {path} in several")
    return new


__getattr__ = make_getattr("experimental.v1.tree.")
