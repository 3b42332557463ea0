"""JAX. Templates that people start from, and the calls that they are traced from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.tree_util as jtu
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .._core.arguments import PyTree
from .._core.names import join_path
from .._jax.paths import broadcast_prefix, path_element
from .._jax.support import abstract_array
from ..errors import UsageError


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
        UsageError: `specs` is not a prefix of the tree, or no mesh was given for it.

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
            specs(join_path(tuple(map(path_element, keys))), leaf)
            if isinstance(leaf, jax.ShapeDtypeStruct)
            else None
            for keys, leaf in keyed
        ]
    else:
        leaf_specs = broadcast_prefix(PartitionSpec() if specs is None else specs, tree, "specs")
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
