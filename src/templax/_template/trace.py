"""JAX. Traces functions for the shapes and dtypes of their results, without making arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.tree_util as jtu
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from .._core.arguments import PyTree
from .._core.text import format_value
from .._jax.paths import name_leaf
from .._jax.support import abstract_array
from .._jax.versions import SET_MESH, current_mesh, ensure_on_device
from ..errors import UsageError
from .flatten import flatten_tree, map_tree
from .specs import Rules, choose_specs, shards


def template_of(
    init: Callable[..., PyTree] | PyTree,
    *args: Any,
    mesh: Mesh | None = None,
    specs: PyTree | Rules | Callable[[str, Any], PartitionSpec | None] = None,
    **kwargs: Any,
) -> PyTree:
    """Makes a template: the tree that a function would return, with shapes instead of arrays.

    No array is made. The function is traced as by `jax.eval_shape`, except that Python numbers
    among its arguments stay Python numbers, and that whatever it returns besides arrays (functions,
    numbers, strings) is returned unchanged. Initializers of Flax, NNX and Equinox therefore work
    without changes.

    Args:
        init: A function, or a pytree of arrays. An object that is both counts as a pytree.
        *args: Arguments of the function.
        mesh: The mesh of the shardings that `specs` asks for; by default the mesh set by
            `jax.set_mesh`. With `mesh` but no `specs`, every array is replicated over the mesh.
        specs: Which `PartitionSpec` each array gets:

            - one for all;
            - a prefix of the tree that holds specs, such as `flax.linen.get_partition_spec` and
              `flax.nnx.get_partition_spec` return; None leaves the arrays below it without a
              sharding;
            - rules, `[("*.kernel", P(None, "model")), ("*", P())]`: the first whose pattern the
              name of an array matches, as in `fnmatch`. Every array of one dimension or more must
              match a rule, and every rule must give some array its spec;
            - a function of the name and the `ShapeDtypeStruct` of an array.

            The names are those of the template's leaves: `dense.kernel`, and `dense.kernel.value`
            for a variable of NNX, whose `value` a rule may leave out.
        **kwargs: Keyword arguments of the function.

    Returns:
        The tree with `jax.ShapeDtypeStruct` leaves. Committed arrays of a given tree keep their
        sharding.

    Raises:
        UsageError: `specs` is not a prefix of the tree; a rule matches no array, or an array no
            rule; no mesh is given or set; a spec does not fit its array or the mesh; or the
            function `specs` shards a variable of NNX only if its name lacks the last `value`.

    Example:
        >>> import jax, jax.numpy as jnp, templax as tx
        >>> tx.template_of(lambda key: {"w": jax.random.normal(key, (2, 3))}, jax.random.key(0))
        {'w': ShapeDtypeStruct(shape=(2, 3), dtype=float32)}
        >>> from jax.sharding import PartitionSpec as P
        >>> mesh = jax.make_mesh((1,), ("model",))
        >>> tree = {"dense": {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}}
        >>> rules = [("*.kernel", P(None, "model")), ("*", P())]
        >>> tuple(tx.template_of(tree, mesh=mesh, specs=rules)["dense"]["kernel"].sharding.spec)
        (None, 'model')
    """
    if callable(init) and jtu.all_leaves([init]):
        tree = Traced(init, args, kwargs).abstract()
    elif args or kwargs:
        raise UsageError(f"Expected a function to call with arguments, got {type(init).__name__}")
    else:
        try:
            tree = map_tree(_abstract_leaf, init)
        except ValueError as error:
            raise UsageError(f"Expected a function or a pytree: {error}") from error
    if specs is None and mesh is None:
        return tree
    mesh = mesh if mesh is not None else current_mesh()
    if mesh is not None and not isinstance(mesh, (Mesh, AbstractMesh)):
        raise UsageError(f"Expected a jax.sharding.Mesh, got {format_value(mesh)}")
    if mesh is None or mesh.empty:
        raise UsageError(f"`specs` need a mesh; hint: pass mesh=, or call inside {SET_MESH}(mesh)")
    flat = flatten_tree(tree)
    leaves, problems = [], []
    for (keys, leaf), spec in zip(flat.keyed, choose_specs(specs, tree, flat), strict=True):
        if isinstance(leaf, jax.ShapeDtypeStruct) and spec is not None:
            try:
                leaf = _replace_sharding(leaf, NamedSharding(mesh, spec))
            except (AttributeError, TypeError, ValueError) as error:
                what = f"Expected a PartitionSpec for shape {leaf.shape} on mesh {dict(mesh.shape)}"
                name = name_leaf(keys)
                problems.append(f"{what}, got {spec!r}: {error} - at `{name}`")
        elif isinstance(leaf, np.ndarray) and spec is not None and shards(spec):
            what = f"Expected an array that JAX can shard, got {leaf.dtype}"
            problems.append(f"{what} while jax_enable_x64 is off - at `{name_leaf(keys)}`")
        leaves.append(leaf)
    if problems:
        raise UsageError("; ".join(problems))
    return flat.treedef.unflatten(leaves)


def _abstract_leaf(leaf: Any) -> Any:
    """The shape and dtype of an array, and its sharding if committed; other leaves unchanged."""
    if isinstance(leaf, jax.Array):
        leaf = ensure_on_device(leaf)
        sharding = leaf.sharding if leaf.committed else None
        return _replace_sharding(leaf, sharding)
    return abstract_array(leaf.shape, leaf.dtype) if isinstance(leaf, np.ndarray) else leaf


def _replace_sharding(leaf: Any, sharding: jax.sharding.Sharding | None) -> jax.ShapeDtypeStruct:
    """A leaf like `leaf`, weak type included, with this sharding."""
    weak = getattr(leaf, "weak_type", False)  # typed keys have none
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding, weak_type=weak)


class Traced:
    """A call that JAX can trace, whatever its arguments and its result hold.

    Only abstract arguments (`jax.ShapeDtypeStruct`) are traced; the others are passed unchanged.
    Leaves of the result that are not `jax.Array`s are set aside while tracing and put back by
    `assemble`, because JAX would truncate the 64-bit numbers of numpy.

    Attributes:
        statics: The leaves that were set aside, by position among all leaves of the result.
    """

    def __init__(self, fn: Callable[..., PyTree], args: tuple[Any, ...], kwargs: dict[str, Any]):
        self._fn = fn
        flat = flatten_tree((args, kwargs))
        self._leaves, self._treedef = flat.leaves, flat.treedef
        self._inputs = [
            i for i, x in enumerate(self._leaves) if isinstance(x, jax.ShapeDtypeStruct)
        ]
        self.statics: dict[int, Any] = {}
        self._result: Any = None

    @property
    def inputs(self) -> list[Any]:
        """The abstract arguments."""
        return [self._leaves[i] for i in self._inputs]

    @property
    def parts(self) -> tuple[Callable[..., PyTree], tuple[Any, ...], dict[str, Any]]:
        """The function and its arguments."""
        return self._fn, *self._treedef.unflatten(self._leaves)

    def __call__(self, *inputs: Any) -> list[Any]:
        """Calls the function with `inputs` as its abstract arguments; returns its JAX leaves."""
        leaves = list(self._leaves)
        for i, x in zip(self._inputs, inputs, strict=True):
            leaves[i] = x
        args, kwargs = self._treedef.unflatten(leaves)
        result = self._fn(*args, **kwargs)
        try:
            flat = flatten_tree(result)
        except ValueError as error:
            raise UsageError(f"Expected a function that returns a pytree: {error}") from error
        out, self._result = flat.leaves, flat.treedef
        self.statics = {i: x for i, x in enumerate(out) if not isinstance(x, jax.Array)}
        return [x for x in out if isinstance(x, jax.Array)]

    def assemble(self, arrays: Sequence[Any]) -> PyTree:
        """Rebuilds the tree of the result from its JAX leaves. Requires a previous call."""
        remaining = iter(arrays)
        total = len(arrays) + len(self.statics)
        leaves = [self.statics[i] if i in self.statics else next(remaining) for i in range(total)]
        return self._result.unflatten(leaves)

    def abstract(self) -> PyTree:
        """Traces the call; returns its result with a `jax.ShapeDtypeStruct` for each array."""
        tree = self.assemble(jax.eval_shape(self, *self.inputs))
        return map_tree(_abstract_leaf, tree)
