"""JAX. Orbax's v1 `tree`: the kinds of trees and leaves, and how trees are merged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import jax
import numpy as np

from ...unmapped import unmapped_attribute
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
    """Merges nested dicts into a new one.

    Args:
        *trees: Trees of dicts. Others are leaves.
        overwrite: Whether a later leaf replaces an earlier one of the same name.

    Raises:
        ValueError: Two trees have the same leaf, or one has a leaf where another has a dict.

    Example:
        >>> from templax.compat.orbax import v1 as ocp
        >>> ocp.tree.merge({"a": {"b": 1}}, {"a": {"c": 2}})
        {'a': {'b': 1, 'c': 2}}
    """
    merged: dict[Any, Any] = {}
    for tree in trees:
        _merge_into(merged, tree, (), overwrite)
    return merged


def _merge_into(
    merged: dict[Any, Any], tree: Mapping[Any, Any], path: tuple[Any, ...], overwrite: bool
) -> None:
    for key, value in tree.items():
        known = merged.get(key)
        if isinstance(value, Mapping) and (key not in merged or isinstance(known, dict)):
            _merge_into(merged.setdefault(key, {}), value, (*path, key), overwrite)
        elif key in merged and not overwrite:
            raise ValueError(f"Expected each leaf in one tree, got {(*path, key)} in several")
        else:
            merged[key] = value


__getattr__ = unmapped_attribute("experimental.v1.tree.")
