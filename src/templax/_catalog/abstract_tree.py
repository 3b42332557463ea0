"""JAX. The abstract tree of a checkpoint's own leaves: what `Catalog.template` returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from .._core.arguments import PyTree
from .._core.dtypes import PYTHON_DTYPES
from .._core.names import Path, join_path
from .._jax.support import abstract_array
from ..errors import Corrupted
from .entry import LeafEntry


def build_abstract_tree(entries: Sequence[LeafEntry], empties: Mapping[Path, str]) -> PyTree:
    """The tree that leaves and empty nodes make up; see `Catalog.template`."""
    try:
        return _nest(entries, empties)
    except Corrupted:
        if len({entry.name for entry in entries}) < len(entries):
            raise
        return {entry.name: abstract_leaf(entry) for entry in entries}


def _nest(entries: Sequence[LeafEntry], empties: Mapping[Path, str]) -> PyTree:
    items: list[tuple[Path, Any]] = [(e.path, abstract_leaf(e)) for e in entries]
    items += [(path, _EMPTY[what]()) for path, what in empties.items() if what in _EMPTY]
    root: dict[Any, Any] = {}
    for path, leaf in items:
        node = root
        for step in ("", *path[:-1]) if path else ():
            node = node.setdefault(step, _Node())
            if not isinstance(node, _Node):
                raise _clash(path)
        last = path[-1] if path else ""
        if last in node:
            raise _clash(path)
        node[last] = leaf
    return _nested(root.get("", {}), 0)


class _Node(dict[Any, Any]):
    """A subtree being built, told from the empty dict of a template."""


_EMPTY: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "Dict": dict,
    "List": list,
    "Tuple": tuple,
    "NamedTuple": tuple,
}

_DEEPEST = 300


def _clash(path: Path) -> Corrupted:
    return Corrupted(f"Expected one leaf or one subtree at `{join_path(path)}`, found several")


def _nested(node: Any, depth: int) -> Any:
    if not isinstance(node, _Node):
        return node
    if depth > _DEEPEST:
        raise Corrupted(f"Expected a tree of at most {_DEEPEST} levels")
    built = {k: _nested(v, depth + 1) for k, v in node.items()}
    if all(isinstance(k, int) for k in built) and set(built) == set(range(len(built))):
        return [built[i] for i in range(len(built))]
    return {str(k): v for k, v in built.items()}


def abstract_leaf(entry: LeafEntry) -> Any:
    """The template leaf that a stored leaf fits exactly."""
    if entry.kind == "string":
        return str
    if entry.kind == "key":
        try:
            dtype = jax.eval_shape(lambda: jax.random.key(0, impl=entry.key_impl)).dtype
        except ValueError as error:
            raise Corrupted(
                f"Expected a PRNG that JAX knows, got `{entry.key_impl}`", leaf=entry.name
            ) from error
        return jax.ShapeDtypeStruct(entry.user_shape, dtype)
    if entry.kind == "scalar":
        for python, dtype in PYTHON_DTYPES.items():
            if entry.dtype == dtype:
                return python
    return abstract_array(entry.shape, entry.dtype)
