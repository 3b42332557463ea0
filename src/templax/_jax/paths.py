"""JAX. Key paths and prefix pytrees."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax.tree_util as jtu
from jax.sharding import PartitionSpec

from .._core.arguments import PyTree
from .._core.names import Path, join_path
from ..errors import UsageError
from .versions import broadcast


def path_element(key: Any) -> str | int:
    """One step of a JAX key path: an index of a sequence as int, all else by its spelling."""
    if isinstance(key, (jtu.DictKey, jtu.FlattenedIndexKey)):
        return str(key.key)
    if isinstance(key, jtu.SequenceKey):
        return key.idx
    return key.name if isinstance(key, jtu.GetAttrKey) else str(key)


def list_paths(keyed: Iterable[tuple[Sequence[Any], Any]]) -> list[Path]:
    """The paths of leaves that come with their JAX key paths: `path_element` of each key."""
    return [
        tuple(
            [
                key.key if type(key) is jtu.DictKey and type(key.key) is str else path_element(key)
                for key in keys
            ]
        )
        for keys, _ in keyed
    ]


def name_leaf(keypath: Iterable[Any]) -> str:
    """The name of the leaf at a key path: its keys, joined by dots."""
    return join_path(tuple(map(path_element, keypath)))


class _Boxed:
    """Hides a value of a prefix, which may be a pytree or None, from JAX."""

    def __init__(self, value: Any):
        self.value = value


def broadcast_prefix(prefix: PyTree, tree: PyTree, what: str) -> list[Any]:
    """The value of a prefix pytree for each leaf of `tree`. None is a value.

    Raises:
        UsageError: `prefix` is not a prefix of `tree`; the message calls it `what`.
    """
    try:
        boxed = jtu.tree_map(
            _Boxed, prefix, is_leaf=lambda x: x is None or isinstance(x, PartitionSpec)
        )
        return [box.value for box in jtu.tree_leaves(broadcast(boxed, tree))]
    except ValueError as error:
        raise UsageError(f"`{what}` is not a prefix of the template: {error}") from error
