"""Trees of dicts, lists, tuples and None: flattened as JAX flattens them, without JAX.

In a program that has not loaded JAX, no other type is a pytree: there was nothing to register one
with. `flatten` has the counterpart where JAX is loaded.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .._core.arguments import PyTree
from .._core.names import Path, join_path

IsLeaf = Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class _Node:
    """A container, or None.

    Attributes:
        kind: Its type.
        keys: The keys of a dict, in the order of `children`.
        children: What it holds, with None for each leaf.
        factory: The default factory of a defaultdict.
    """

    kind: type
    keys: tuple[Any, ...]
    children: tuple[_Node | None, ...]
    factory: Callable[[], Any] | None = None

    def rebuild(self, leaves: Iterator[Any]) -> Any:
        values = [next(leaves) if c is None else c.rebuild(leaves) for c in self.children]
        if self.kind is type(None):
            return None
        if self.kind in (dict, OrderedDict):
            return self.kind(zip(self.keys, values, strict=True))
        if self.kind is defaultdict:
            return defaultdict(self.factory, zip(self.keys, values, strict=True))
        return self.kind(values) if self.kind in (list, tuple) else self.kind(*values)


@dataclass(frozen=True, slots=True)
class PlainTree:
    """The structure of a tree, in place of a treedef of JAX."""

    root: _Node | None

    def unflatten(self, leaves: Sequence[Any]) -> PyTree:
        """Rebuilds the tree."""
        remaining = iter(leaves)
        return next(remaining) if self.root is None else self.root.rebuild(remaining)


def flatten_plain(
    tree: PyTree, is_leaf: IsLeaf | None = None
) -> tuple[list[tuple[Path, Any]], PlainTree]:
    """Flattens a tree of dicts, lists, tuples, named tuples and None; all else is a leaf.

    The order is that of `jax.tree.flatten`: dicts by sorted keys, except for an OrderedDict.

    Args:
        tree: The tree.
        is_leaf: What else counts as a leaf.

    Returns:
        Each leaf with its key path, and the structure.

    Raises:
        ValueError: The keys of a dict can't be sorted, or the tree is too deep.
    """
    leaves: list[tuple[Path, Any]] = []

    def visit(path: Path, x: Any) -> _Node | None:
        if is_leaf is not None and is_leaf(x):
            leaves.append((path, x))
            return None
        kind, factory = type(x), None
        keys: tuple[Any, ...] = ()
        if kind in (dict, OrderedDict, defaultdict):
            keys = tuple(x) if kind is OrderedDict else _sort_keys(x, path)
            steps, values = map(str, keys), [x[key] for key in keys]
            factory = x.default_factory if kind is defaultdict else None
        elif kind in (list, tuple):
            steps, values = range(len(x)), x
        elif isinstance(x, tuple) and hasattr(x, "_fields"):
            steps, values = getattr(x, "_fields"), x  # noqa: B009
        elif x is None:
            steps, values = (), ()
        else:
            leaves.append((path, x))
            return None
        children = [visit((*path, step), v) for step, v in zip(steps, values, strict=True)]
        return _Node(kind, keys, tuple(children), factory)

    try:
        root = visit((), tree)
    except RecursionError as error:
        raise ValueError("it is too deep, or contains itself") from error
    return leaves, PlainTree(root)


def _sort_keys(x: dict[Any, Any], path: Path) -> tuple[Any, ...]:
    try:
        return tuple(sorted(x))
    except TypeError as error:
        where = f" at `{join_path(path)}`" if path else ""
        raise ValueError(f"the keys of a dict can't be sorted{where}: {error}") from error
