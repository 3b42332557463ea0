"""JAX. Orbax's `tree`: trees as flat dicts, as plain dicts and lists, and as abstract arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.tree_util as jtu
import numpy as np

import templax as tx

from ..._core.arguments import PyTree
from ..._jax.paths import name_leaf, path_element
from .metadata.sharding import resolve_sharding
from .unmapped import make_getattr

__all__ = [
    "PyTree",
    "deserialize_tree",
    "from_flat_dict",
    "get_param_names",
    "is_empty_node",
    "is_empty_or_leaf",
    "is_flat_dict",
    "merge_trees",
    "serialize_tree",
    "str_keypath",
    "to_flat_dict",
    "to_shape_dtype_struct",
]

IsLeaf = Callable[[Any], bool]


def is_empty_or_leaf(x: Any) -> bool:
    """Whether a value is a leaf of JAX, or a node without children, such as `{}` and None."""
    children, treedef = jtu.tree_flatten(x, is_leaf=lambda y: y is not x)
    return not children or jtu.treedef_is_leaf(treedef)


def is_empty_node(x: Any) -> bool:
    """Whether a value is a node without children, such as `{}` and None."""
    return not jtu.tree_leaves(x, is_leaf=lambda y: y is not x)


def str_keypath(keypath: tuple[Any, ...]) -> tuple[str, ...]:
    """The keys of a key path of JAX, as text.

    Example:
        >>> import jax
        >>> from templax.compat import orbax as ocp
        >>> [(keypath, _)], _ = jax.tree_util.tree_flatten_with_path({"a": [0]})
        >>> ocp.tree.str_keypath(keypath)
        ('a', '0')
    """
    return tuple([str(path_element(key)) for key in keypath])


def get_param_names(item: PyTree, *, include_empty_nodes: bool = True) -> PyTree:
    """The tree with the name of each leaf, its keys joined by dots, in its place.

    Args:
        item: The tree.
        include_empty_nodes: Whether nodes without children get one as well.
    """
    is_leaf = is_empty_or_leaf if include_empty_nodes else None
    return jtu.tree_map_with_path(lambda keys, _: name_leaf(keys), item, is_leaf=is_leaf)


def to_flat_dict(
    tree: PyTree,
    sep: str | None = None,
    keep_empty_nodes: bool = False,
    is_leaf: IsLeaf | None = None,
) -> dict[Any, Any]:
    """Path → leaf. A path is a tuple of texts or, with `sep`, one text.

    Args:
        tree: The tree.
        sep: Joins the keys of a path.
        keep_empty_nodes: Whether nodes without children count as leaves.
        is_leaf: What counts as a leaf instead.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> ocp.tree.to_flat_dict({"a": {"b": 1, "c": [2]}}, sep="/")
        {'a/b': 1, 'a/c/0': 2}
    """
    is_leaf = is_leaf or (is_empty_or_leaf if keep_empty_nodes else None)
    keyed, _ = jtu.tree_flatten_with_path(tree, is_leaf=is_leaf)
    named = [(str_keypath(keys), leaf) for keys, leaf in keyed]
    return {keys if sep is None else sep.join(keys): leaf for keys, leaf in named}


def from_flat_dict(
    flat_dict: Any, target: PyTree = None, sep: str | None = None, *, inplace: bool = False
) -> PyTree:
    """The inverse of `to_flat_dict`.

    Args:
        flat_dict: Path → leaf.
        target: A tree of the wanted structure. None makes nested dicts.
        sep: Joins the keys of a path; None if the paths are tuples.
        inplace: Whether to remove the leaves from `flat_dict`.

    Raises:
        KeyError: A leaf of `target` is missing.
        UsageError: A path is that of a leaf as well as of a node.
    """
    take = flat_dict.pop if inplace else flat_dict.__getitem__
    if target is not None:
        names = list(to_flat_dict(target, sep))
        return jtu.tree_unflatten(jtu.tree_structure(target), [take(name) for name in names])
    tree: dict[str, Any] = {}
    for path in list(flat_dict):
        keys = path if sep is None else tuple(path.split(sep))
        if not keys:
            return _take_only(take, path, flat_dict)
        node = tree
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        if not isinstance(node, dict) or keys[-1] in node:
            raise tx.UsageError(f"Expected one leaf or one node at {path!r}, got both")
        node[keys[-1]] = take(path)
    return tree


def _take_only(take: Any, path: Any, flat_dict: Any) -> Any:
    if len(flat_dict) != 1:
        raise tx.UsageError(f"Expected `()` to be the only path, got {list(flat_dict)}")
    return take(path)


def is_flat_dict(tree: PyTree) -> bool:
    """Whether a tree is a dict of leaves."""
    return isinstance(tree, dict) and jtu.all_leaves(tree.values())  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]


def serialize_tree(tree: PyTree, keep_empty_nodes: bool = False) -> PyTree:
    """The tree as nested dicts and lists: tuples become lists, all else with keys becomes dicts.

    Args:
        tree: The tree.
        keep_empty_nodes: Whether nodes without children stay. They are left out otherwise.

    Raises:
        UsageError: Nothing is left.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> ocp.tree.serialize_tree({"a": (1, 2)})
        {'a': [1, 2]}
    """
    is_leaf = is_empty_or_leaf if keep_empty_nodes else None
    keyed, _ = jtu.tree_flatten_with_path(tree, is_leaf=is_leaf)
    if not keyed:
        raise tx.UsageError("Expected a tree with leaves, got an empty one")
    if not keyed[0][0]:
        return keyed[0][1]
    root: dict[Any, Any] = {}
    for keys, leaf in keyed:
        node = root
        for key in keys[:-1]:
            node = node.setdefault(_serialized_key(key), {})
        node[_serialized_key(keys[-1])] = leaf
    return _finish_lists(root, {tuple(map(_serialized_key, keys)) for keys, _ in keyed}, ())


def _serialized_key(key: Any) -> str | int:
    index = isinstance(key, (jtu.SequenceKey, jtu.FlattenedIndexKey))
    return int(str(path_element(key))) if index else str(path_element(key))


def _finish_lists(node: Any, leaves: set[tuple[Any, ...]], path: tuple[Any, ...]) -> Any:
    """Turns nodes whose keys are indices into lists; leaves, which may be dicts, stay."""
    if path in leaves:
        return node
    built = {key: _finish_lists(child, leaves, (*path, key)) for key, child in node.items()}
    return list(built.values()) if all(isinstance(key, int) for key in built) else built


def deserialize_tree(serialized: PyTree, target: PyTree, keep_empty_nodes: bool = False) -> PyTree:
    """The inverse of `serialize_tree`.

    Args:
        serialized: A tree whose keys are those of `target`.
        target: A tree of the wanted structure.
        keep_empty_nodes: Whether nodes of `target` without children are looked up as well.

    Raises:
        KeyError: A leaf of `target` is missing.
    """
    is_leaf = is_empty_or_leaf if keep_empty_nodes else None
    known = to_flat_dict(serialized, is_leaf=is_leaf)

    def look_up(keys: Any, _: Any) -> Any:
        path = str_keypath(keys)
        if path in known:
            return known[path]
        node = serialized  # a leaf of the target may be a node here
        for key in path:
            node = node[int(key) if isinstance(node, (list, tuple)) else key]
        return node

    return jtu.tree_map_with_path(look_up, target, is_leaf=is_leaf)


def merge_trees(*trees: PyTree, target: PyTree = None) -> PyTree:
    """One tree of the leaves of all; where several have one, the last counts.

    Args:
        *trees: The trees.
        target: A tree of the wanted structure. None makes nested dicts.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> ocp.transform_utils.merge_trees({"a": 1, "b": {"c": 2}}, {"b": {"d": 3}})
        {'a': 1, 'b': {'c': 2, 'd': 3}}
    """
    merged: dict[Any, Any] = {}
    for tree in trees:
        merged |= to_flat_dict(tree)
    return from_flat_dict(merged, target)


def to_shape_dtype_struct(
    x: Any, dtype: Any = None, scalar_dtype: Any = None, support_format: bool = False
) -> Any:
    """The `jax.ShapeDtypeStruct` of an array, of its metadata or of its restore args.

    Args:
        x: What has a shape and a dtype; or a Python number, which comes back.
        dtype: The dtype of the result instead.
        scalar_dtype: A type such as `int` that a number is converted to.
        support_format: Whether the layout of a `jax.Array` is kept.

    Raises:
        UsageError: `x` is neither.

    Example:
        >>> import numpy as np
        >>> from templax.compat import orbax as ocp
        >>> ocp.tree.to_shape_dtype_struct(np.zeros((2, 3), np.int8))
        ShapeDtypeStruct(shape=(2, 3), dtype=int8)
    """
    if isinstance(x, (int, float, np.number)):
        return x if scalar_dtype is None else scalar_dtype(x)
    shapes: Any = getattr(x, "shape", None), getattr(x, "global_shape", None)
    shape = next((shape for shape in shapes if shape is not None), None)
    if shape is None:
        kind = type(x).__name__
        raise tx.UsageError(f"Expected an array, an abstract array or a number, got {kind}")
    sharding = resolve_sharding(getattr(x, "sharding", None))
    found = getattr(x, "format", None) if support_format else None
    sharding = sharding if found is None else found
    return jax.ShapeDtypeStruct(shape, x.dtype if dtype is None else dtype, sharding=sharding)


__getattr__ = make_getattr("tree.")
