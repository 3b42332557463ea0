"""JAX. Flattens pytrees so that objects which occur more than once in a module stay shared.

Modules of Flax NNX are graphs: a variable or a submodule may have several names, as the weights of
a tied embedding do. JAX's own flattening treats each name as an object of its own.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.tree_util as jtu

from .._core.arguments import PyTree
from .._jax.paths import name_leaf
from ..errors import UsageError

KeyPath = tuple[Any, ...]


@dataclass(slots=True)
class FlatTree:
    """The leaves of a pytree and its structure. A leaf with several names occurs once.

    Attributes:
        keyed: Each leaf with its key path, the first one in JAX's order if it has several.
        treedef: A treedef of JAX, or a `SharedTree`: `unflatten` rebuilds the tree of such leaves.
        positions: For each leaf that JAX's flattening gives, its index in `keyed`. None if no leaf
            has several names: then they are the same.
        repeats: The other key paths of leaves with several, each with its index in `keyed`.
    """

    keyed: list[tuple[KeyPath, Any]]
    treedef: Any
    positions: list[int] | None = None
    repeats: list[tuple[KeyPath, int]] = field(default_factory=list)

    @property
    def leaves(self) -> list[Any]:
        return [leaf for _, leaf in self.keyed]

    def select(self, spread: Sequence[Any], what: str) -> Sequence[Any]:
        """One value for each leaf, from those at all of its places. None stands for none.

        Args:
            spread: A value for each leaf that JAX's flattening gives.
            what: What a value is, for messages.

        Raises:
            UsageError: Two places of one leaf have different values.
        """
        if self.positions is None:
            return spread
        selected: list[Any] = [None] * len(self.keyed)
        for i, value in zip(self.positions, spread, strict=True):
            if selected[i] is None:
                selected[i] = value
            elif value is not None and value != selected[i]:
                name = name_leaf(self.keyed[i][0])
                raise UsageError(
                    f"Expected one {what} for `{name}`, which has several names in the template,"
                    f" got {selected[i]!r} and {value!r}"
                )
        return selected


IsLeaf = Callable[[Any], bool]


def flatten_tree(tree: PyTree, is_leaf: IsLeaf | None = None) -> FlatTree:
    """Flattens a pytree; an object that occurs more than once in its NNX modules does so once.

    Only what is in modules is shared: one module, or one `ShapeDtypeStruct`, in two places of a
    dict stands for two of its kind.

    Args:
        tree: The pytree.
        is_leaf: What else counts as a leaf.

    Raises:
        ValueError: JAX can't flatten it, for example a dict with keys 0 and "0".
    """
    try:
        return _flatten_tree(tree, is_leaf)
    except (RecursionError, SystemError) as error:
        # JAX raises SystemError because of a RecursionError.
        if not any(isinstance(each, RecursionError) for each in (error, error.__cause__)):
            raise
        raise ValueError("it has too many levels for JAX") from error


def _flatten_tree(tree: PyTree, is_leaf: IsLeaf | None) -> FlatTree:
    is_module, is_object = _find_module_types()
    modules = (
        [] if is_module is None else [x for x in jtu.tree_leaves(tree, is_module) if is_module(x)]
    )
    counts: Counter[int] = Counter()
    kept: list[Any] = []  # keeps the objects alive, so that no other one gets their id

    def count(x: Any) -> bool:
        if is_object(x):
            counts[id(x)] += 1
            kept.append(x)
        return False

    for module in {id(module): module for module in modules}.values():
        jtu.tree_leaves(module, count)
    shared = {number for number, n in counts.items() if n > 1}
    if not shared:
        keyed, treedef = jtu.tree_flatten_with_path(tree, is_leaf)
        return FlatTree(keyed, treedef)
    assert is_module is not None
    return _SharedFlattening(is_module, shared, is_leaf or (lambda _: False)).flatten(tree)


def map_tree(
    change: Callable[..., Any], tree: PyTree, *others: PyTree, is_leaf: IsLeaf | None = None
) -> PyTree:
    """`jax.tree.map`, except that objects which the modules of `tree` share stay shared.

    Args:
        change: Called with a leaf of `tree` and with what `others` hold in its first place.
        tree: The pytree.
        *others: Trees of which `tree` is a prefix.
        is_leaf: What else counts as a leaf of `tree`.
    """
    flat = flatten_tree(tree, is_leaf)
    columns: list[list[Any]] = [flat.leaves]
    for other in others:
        column = jtu.tree_structure(tree, is_leaf).flatten_up_to(other)
        positions = range(len(column)) if flat.positions is None else flat.positions
        first: dict[int, Any] = {}
        for i, value in zip(positions, column, strict=True):
            first.setdefault(i, value)
        columns.append(list(first.values()))
    return flat.treedef.unflatten([change(*values) for values in zip(*columns, strict=True)])


def is_nnx_module(leaf: Any) -> bool:
    """Whether a leaf is an object of NNX. In Flax 0.10 all of these are leaves for JAX; since they
    are pytrees, only those whose class is declared with `pytree=False`.
    """
    is_module, _ = _find_module_types()
    return is_module is not None and is_module(leaf)


def _find_module_types() -> tuple[IsLeaf | None, IsLeaf]:
    """Tests for a module of NNX, and for a module or a variable. Without NNX, there are none."""
    nnx = sys.modules.get("flax.nnx")
    names = ("Pytree", "Object")  # `Object` was the base class of modules before `Pytree`
    bases = tuple(getattr(nnx, name) for name in names if hasattr(nnx, name))
    if not bases:
        return None, lambda _: False
    variables = (nnx.Variable,)  # pyright: ignore[reportOptionalMemberAccess]
    return _make_test(bases), _make_test(bases + variables)


def _make_test(bases: tuple[type, ...]) -> IsLeaf:
    """A test for instances of some classes that looks at each type once."""
    known: dict[type, bool] = {}

    def test(x: Any) -> bool:
        kind = type(x)
        found = known.get(kind)
        if found is None:
            found = known[kind] = issubclass(kind, bases)
        return found

    return test


@dataclass(frozen=True, slots=True)
class _Object:
    """An object at its first place: its treedef, whose leaves are the `parts`."""

    number: int
    treedef: Any
    parts: tuple[_Part, ...]


_Part = _Object | int | None
"""An object, the number of one that occurred before, or None for a leaf."""


@dataclass(frozen=True, slots=True)
class SharedTree:
    """The structure of a tree with objects that occur more than once, in place of a treedef."""

    treedef: Any
    parts: tuple[_Part, ...]

    def unflatten(self, leaves: Sequence[Any]) -> PyTree:
        """Rebuilds the tree. Each object is made once, and is then in all its places."""
        remaining, made = iter(leaves), dict[int, Any]()
        return self.treedef.unflatten([_rebuild(part, remaining, made) for part in self.parts])


def _rebuild(part: _Part, leaves: Iterator[Any], made: dict[int, Any]) -> Any:
    if part is None:
        return next(leaves)
    if isinstance(part, int):
        return made[part]
    inner = [_rebuild(inner, leaves, made) for inner in part.parts]
    made[part.number] = part.treedef.unflatten(inner)
    return made[part.number]


class _SharedFlattening:
    """A flattening in progress.

    Args:
        is_module: Whether an object is a module.
        shared: The ids of the objects that occur more than once in modules.
        is_leaf: What else counts as a leaf.
    """

    def __init__(self, is_module: IsLeaf, shared: set[int], is_leaf: IsLeaf):
        self._is_module, self._shared, self._is_leaf = is_module, shared, is_leaf
        self._first: dict[tuple[int, int], tuple[int, KeyPath]] = {}
        self._index: dict[KeyPath, int] = {}
        self._flat = FlatTree([], None, [])

    def flatten(self, tree: PyTree) -> FlatTree:

        def is_outermost(x: Any) -> bool:
            return self._is_module(x) or self._is_leaf(x)

        keyed, treedef = jtu.tree_flatten_with_path(tree, is_outermost)
        copies: Counter[int] = Counter()
        parts: list[_Part] = []
        for keys, x in keyed:
            if self._is_module(x):
                # The same module again, outside of modules, is a copy that shares nothing with it.
                parts.append(self._add_object(keys, x, copies[id(x)]))
                copies[id(x)] += 1
            else:
                parts.append(self._add_leaf(keys, x))
        self._flat.treedef = SharedTree(treedef, tuple(parts))
        return self._flat

    def _add_leaf(self, keys: KeyPath, leaf: Any) -> None:
        assert self._flat.positions is not None
        self._index[keys] = len(self._flat.keyed)
        self._flat.positions.append(len(self._flat.keyed))
        self._flat.keyed.append((keys, leaf))

    def _add_object(self, keys: KeyPath, x: Any, copy: int) -> _Part:
        if (id(x), copy) in self._first:
            return self._add_repeat(keys, x, copy)
        number = len(self._first)
        self._first[id(x), copy] = number, keys

        def is_cut(y: Any) -> bool:
            return y is not x and id(y) in self._shared

        keyed, treedef = jtu.tree_flatten_with_path(x, lambda y: is_cut(y) or self._is_leaf(y))
        parts: list[_Part] = []
        for rest, y in keyed:
            if is_cut(y):
                parts.append(self._add_object(keys + rest, y, copy))
            else:
                parts.append(self._add_leaf(keys + rest, y))
        return _Object(number, treedef, tuple(parts))

    def _add_repeat(self, keys: KeyPath, x: Any, copy: int) -> int:
        assert self._flat.positions is not None
        number, first_keys = self._first[id(x), copy]
        keyed, _ = jtu.tree_flatten_with_path(x, self._is_leaf)
        for rest, _ in keyed:
            index = self._index[first_keys + rest]
            self._index[keys + rest] = index
            self._flat.positions.append(index)
            self._flat.repeats.append((keys + rest, index))
        return number
