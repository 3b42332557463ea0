"""The abstract tree of a checkpoint: what `Catalog.template` returns.

Its arrays are those of JAX where JAX is installed, and numpy's elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._core.arguments import PyTree
from .._core.boxes import Shape
from .._core.dtypes import PYTHON_DTYPES, UNNAMED_BYTE
from .._core.names import MAX_DEPTH, Path, join_path, split_name
from .._core.optional import can_import_jax
from ..errors import Corrupted
from .entry import LeafEntry


def build_abstract_tree(
    entries: Sequence[LeafEntry],
    empties: Mapping[Path, str],
    unread: Iterable[str] = (),
    skipped: Container[str] = (),
) -> PyTree:
    """The tree that the leaves, empty nodes and unread leaves form; see `Catalog.template`.

    Args:
        entries, empties, unread: See `Catalog`.
        skipped: Names of leaves in whose place is `...`.

    Raises:
        Corrupted: Two leaves share a name, the tree is too deep, or a key's PRNG is unknown.
    """
    with_jax = can_import_jax()
    leaves = [(e.path, ... if e.name in skipped else _make_leaf(e, with_jax)) for e in entries]
    leaves += [(path, ...) for path in find_unread_paths(unread, [entry.path for entry in entries])]
    try:
        return _build_tree(leaves, empties)
    except Corrupted:
        named = {join_path(path): leaf for path, leaf in leaves}
        if len(named) < len(leaves):
            raise
        # A name is of a leaf and of a subtree, as safetensors allows: return a flat dict instead.
        return named


def _build_tree(leaves: Sequence[tuple[Path, Any]], empties: Mapping[Path, str]) -> PyTree:
    items = [*leaves, *((path, _EMPTY[what]()) for path, what in empties.items() if what in _EMPTY)]
    root: dict[Any, Any] = {}
    for path, leaf in items:
        node = root
        for step in ("", *path[:-1]) if path else ():
            node = node.setdefault(step, _Node())
            if not isinstance(node, _Node):
                raise _conflict_error(path)
        last = path[-1] if path else ""
        if last in node:
            raise _conflict_error(path)
        node[last] = leaf
    return _finish_node(root.get("", {}), 0)


def find_unread_paths(names: Iterable[str], paths: Sequence[Path]) -> Iterator[Path]:
    """The key paths of leaves that are only known by name, beside those with `paths`.

    They are split at dots, and have indices in the lists that hold one of the others. A name that
    one of the others has, too, is left out.
    """
    names = list(names)
    if not names:
        return
    lists = {
        join_path(path[:n]) for path in paths for n, key in enumerate(path) if isinstance(key, int)
    }
    taken = {join_path(path) for path in paths}
    for name in names:
        if name not in taken:
            keys = split_name(name)
            yield tuple(
                int(key) if str(key).isdecimal() and join_path(keys[:n]) in lists else key
                for n, key in enumerate(keys)
            )


class _Node(dict[Any, Any]):
    """A subtree being built, as opposed to a dict that is an empty node of the checkpoint."""


_EMPTY: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "Dict": dict,
    "List": list,
    "Tuple": tuple,
    "NamedTuple": dict,  # as those with leaves become dicts
}


def _conflict_error(path: Path) -> Corrupted:
    return Corrupted(f"Expected one leaf or one subtree at `{join_path(path)}`, found several")


def _finish_node(node: Any, depth: int) -> Any:
    """Turns nodes into dicts, and those whose keys are 0, 1, ... into lists."""
    if not isinstance(node, _Node):
        return node
    if depth > MAX_DEPTH:
        raise Corrupted(f"Expected a tree of at most {MAX_DEPTH} levels")
    built = {k: _finish_node(v, depth + 1) for k, v in node.items()}
    if all(isinstance(k, int) for k in built) and set(built) == set(range(len(built))):
        return [built[i] for i in range(len(built))]
    return {str(k): v for k, v in built.items()}


@dataclass(frozen=True, slots=True)
class KeysWithoutJax:
    """The template leaf of typed PRNG keys where JAX is not installed. No restore accepts it."""

    shape: Shape
    impl: str | None


def _make_leaf(entry: LeafEntry, with_jax: bool) -> Any:
    """The template leaf that matches a stored leaf exactly."""
    if entry.kind == "string":
        return str
    if entry.kind == "key":
        return _make_keys(entry) if with_jax else KeysWithoutJax(entry.user_shape, entry.key_impl)
    if entry.kind == "scalar":
        for python, dtype in PYTHON_DTYPES.items():
            if entry.dtype == dtype:
                return python
    dtype = np.dtype(np.uint8) if entry.dtype == UNNAMED_BYTE else entry.dtype
    if with_jax:
        from .._jax.support import abstract_array

        return abstract_array(entry.shape, dtype)
    return np.broadcast_to(np.zeros((), dtype), entry.shape)


def _make_keys(entry: LeafEntry) -> Any:
    import jax

    from .._jax.support import find_key_dtype

    try:
        dtype = find_key_dtype(entry.key_impl)
    except ValueError as error:
        raise Corrupted(
            f"Expected a PRNG that JAX knows, got `{entry.key_impl}`", leaf=entry.name
        ) from error
    return jax.ShapeDtypeStruct(entry.user_shape, dtype)
