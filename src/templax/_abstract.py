"""JAX. Templates that people start from, and the calls that they are traced from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.tree_util as jtu
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ._boxes import Shape
from ._catalog import Catalog, LeafEntry
from ._errors import Damaged, UsageError
from ._names import Path, join
from ._pytree import PyTree, element, jax_holds, spread
from ._template import PYTHON_DTYPES


def template_of(
    init: Callable[..., PyTree] | PyTree,
    *args: Any,
    mesh: Mesh | None = None,
    specs: PyTree | Callable[[str, Any], PartitionSpec | None] = None,
    **kwargs: Any,
) -> PyTree:
    """The abstract tree that a function would return, or that a tree of arrays has.

    No array is made: the function is traced as by `jax.eval_shape`, but Python numbers among its
    arguments stay Python numbers, and what it returns beside arrays (functions, numbers, strings)
    comes back as it is, so initialisers of Flax, NNX and Equinox all work as they stand.

    Args:
        init: A function, or a pytree of arrays. An object that is both is a pytree.
        *args, **kwargs: For the function.
        mesh: With `specs`: every array leaf gets `NamedSharding(mesh, spec)`. Without `specs`:
            replicated over the mesh. Default: the mesh set by `jax.set_mesh`.
        specs: A `PartitionSpec`, a prefix of the tree with such (None leaves a leaf without
            sharding), or a function of an array leaf's name and its `ShapeDtypeStruct`.

    Returns:
        The tree with `jax.ShapeDtypeStruct` leaves. Arrays of a given tree keep a sharding that
        they are committed to.

    Raises:
        UsageError: `specs` is no prefix of the tree, or there is no mesh for it.

    Example:
        >>> import jax, jax.numpy as jnp, templax as tx
        >>> tx.template_of(lambda key: {"w": jax.random.normal(key, (2, 3))}, jax.random.key(0))
        {'w': ShapeDtypeStruct(shape=(2, 3), dtype=float32)}
    """
    if callable(init) and jtu.all_leaves([init]):
        tree = Traced(init, args, kwargs).abstract()
    elif args or kwargs:
        raise UsageError(f"Expected a function to call with arguments, got {type(init).__name__}")
    else:
        tree = jtu.tree_map(_abstract, init)
    if specs is None and mesh is None:
        return tree
    mesh = mesh if mesh is not None else jax.sharding.get_mesh()
    if mesh.empty:
        raise UsageError("`specs` need a mesh; hint: pass mesh=, or call inside jax.set_mesh(mesh)")
    keyed, treedef = jtu.tree_flatten_with_path(tree)
    if callable(specs):
        leaf_specs: list[Any] = [
            specs(join(tuple(map(element, keys))), leaf)
            if isinstance(leaf, jax.ShapeDtypeStruct)
            else None
            for keys, leaf in keyed
        ]
    else:
        leaf_specs = spread(PartitionSpec() if specs is None else specs, tree, "specs")
    leaves = []
    for (_, leaf), spec in zip(keyed, leaf_specs, strict=True):
        if isinstance(leaf, jax.ShapeDtypeStruct) and spec is not None:
            try:
                sharding = NamedSharding(mesh, spec)
                leaf = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
            except (AttributeError, TypeError, ValueError) as error:
                what = f"Expected a PartitionSpec for shape {leaf.shape} on mesh {dict(mesh.shape)}"
                raise UsageError(f"{what}, got {spec!r}: {error}") from error
        leaves.append(leaf)
    return jtu.tree_unflatten(treedef, leaves)


def _abstract(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        sharding = leaf.sharding if leaf.committed else None
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return abstract_array(leaf.shape, leaf.dtype) if isinstance(leaf, np.ndarray) else leaf


def abstract_array(shape: Shape, dtype: np.dtype) -> jax.ShapeDtypeStruct | np.ndarray:
    """A template leaf for an array; numpy (of no memory) if no `jax.Array` holds the dtype."""
    if jax_holds(dtype):
        return jax.ShapeDtypeStruct(shape, dtype)
    return np.broadcast_to(np.zeros((), dtype), shape)


class Traced:
    """A call that can be looked at without being made.

    Only abstract arguments (`jax.ShapeDtypeStruct`) are traced; all others are passed as they are.
    Leaves of the result that JAX did not make are remembered at tracing and put back: JAX would cut
    numpy's 64-bit numbers.
    """

    def __init__(self, fn: Callable[..., PyTree], args: tuple[Any, ...], kwargs: dict[str, Any]):
        self._fn = fn
        self._leaves, self._treedef = jtu.tree_flatten((args, kwargs))
        self._inputs = [
            i for i, x in enumerate(self._leaves) if isinstance(x, jax.ShapeDtypeStruct)
        ]
        self.statics: dict[int, Any] = {}
        self._result: Any = None

    @property
    def inputs(self) -> list[Any]:
        """The abstract arguments."""
        return [self._leaves[i] for i in self._inputs]

    def __call__(self, *inputs: Any) -> list[Any]:
        """The leaves of the result that are JAX's, in order."""
        leaves = list(self._leaves)
        for i, x in zip(self._inputs, inputs, strict=True):
            leaves[i] = x
        args, kwargs = jtu.tree_unflatten(self._treedef, leaves)
        out, self._result = jtu.tree_flatten(self._fn(*args, **kwargs))
        self.statics = {i: x for i, x in enumerate(out) if not isinstance(x, jax.Array)}
        return [x for x in out if isinstance(x, jax.Array)]

    def assemble(self, arrays: Sequence[Any]) -> PyTree:
        """The tree of the result from its JAX leaves. Only after a call."""
        rest = iter(arrays)
        n = len(arrays) + len(self.statics)
        return jtu.tree_unflatten(
            self._result, [self.statics[i] if i in self.statics else next(rest) for i in range(n)]
        )

    def abstract(self) -> PyTree:
        """The result with `jax.ShapeDtypeStruct` for each array."""
        tree = self.assemble(jax.eval_shape(self, *self.inputs))
        return jtu.tree_map(_abstract, tree)


def catalog_template(catalog: Catalog) -> PyTree:
    """See `Catalog.template`."""
    try:
        return _tree_of(catalog)
    except Damaged:
        if len(catalog.leaves) < len(catalog.entries):
            raise
        return {entry.name: abstract_leaf(entry) for entry in catalog.entries}


def _tree_of(catalog: Catalog) -> PyTree:
    items: list[tuple[Path, Any]] = [(e.path, abstract_leaf(e)) for e in catalog.entries]
    items += [(path, _EMPTY[what]()) for path, what in catalog.empties.items() if what in _EMPTY]
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


def _clash(path: Path) -> Damaged:
    return Damaged(f"Expected one leaf or one subtree at `{join(path)}`, found several")


def _nested(node: Any, depth: int) -> Any:
    if not isinstance(node, _Node):
        return node
    if depth > _DEEPEST:
        raise Damaged(f"Expected a tree of at most {_DEEPEST} levels")
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
            raise Damaged(
                f"Expected a PRNG that JAX knows, got `{entry.key_impl}`", leaf=entry.name
            ) from error
        return jax.ShapeDtypeStruct(entry.user_shape, dtype)
    if entry.kind == "scalar":
        for python, dtype in PYTHON_DTYPES.items():
            if entry.dtype == dtype:
                return python
    return abstract_array(entry.shape, entry.dtype)
