"""JAX. How one leaf is saved or restored.

The classes are mutable and may be subclassed, as Orbax's. Code that reads such args does
so by attribute, because Flax, Grain and others make objects of Orbax's own classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..._core.arguments import PyTree
from .metadata.tree import TreeMetadata
from .metadata.value import leaf_kind

PLACEHOLDER = ...
"""A template leaf or subtree that is not restored."""

MOST_NAMED = 8
"""The most leaves that a message names."""


@dataclass
class SaveArgs:
    """How one leaf is saved.

    Attributes:
        dtype: The leaf is cast to it first, by JAX or NumPy.
        aggregate, chunk_byte_size, shard_axes: No effect.

    Example:
        >>> import numpy as np
        >>> from templax.compat import orbax as ocp
        >>> ocp.SaveArgs(dtype=np.float16).aggregate
        False
    """

    aggregate: bool = False
    dtype: Any = None
    chunk_byte_size: int | None = None
    shard_axes: tuple[int, ...] = ()


@dataclass
class RestoreArgs:
    """How one leaf is restored. It overrides the template's leaf.

    Attributes:
        restore_type: `jax.Array`, `np.ndarray`, `int`, `float`, `bool` or `str`. None takes the
            type of the template's leaf.
        dtype: Replaces the template's, within what `templax.restore(cast="float")` allows.

    Example:
        >>> import numpy as np
        >>> from templax.compat import orbax as ocp
        >>> ocp.RestoreArgs(restore_type=np.ndarray).dtype is None
        True
    """

    restore_type: Any = None
    dtype: Any = None


@dataclass
class ArrayRestoreArgs(RestoreArgs):
    """How one `jax.Array` is restored.

    Attributes:
        mesh, mesh_axes: The two parts of a `NamedSharding`, used if `sharding` is None.
        sharding: The sharding of the array, or the `ShardingMetadata` of one.
        global_shape, shape: The shape that the array must have, under two names.
        strict: No effect: an array is never padded or truncated to fit.

    Raises:
        UsageError: `global_shape` and `shape` differ.

    Example:
        >>> import jax
        >>> from templax.compat import orbax as ocp
        >>> ocp.ArrayRestoreArgs(global_shape=(8, 4)).restore_type is jax.Array
        True
    """

    restore_type: Any = jax.Array
    mesh: jax.sharding.Mesh | None = None
    mesh_axes: jax.sharding.PartitionSpec | None = None
    sharding: Any = None
    global_shape: tuple[int, ...] | None = None
    shape: tuple[int, ...] | None = None
    strict: bool = True

    def __post_init__(self) -> None:
        import templax as tx

        if self.shape is None:
            self.shape = self.global_shape
        elif self.global_shape is None:
            self.global_shape = self.shape
        elif tuple(self.shape) != tuple(self.global_shape):
            raise tx.UsageError(
                f"Expected one shape, got shape={self.shape} and global_shape={self.global_shape}"
            )


@dataclass
class SingleReplicaArrayRestoreArgs(ArrayRestoreArgs):
    """`ArrayRestoreArgs` of an array of which one replica reads and the others receive.

    Attributes:
        single_replica_sharding: No effect. Every process reads what its devices hold.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> ocp.type_handlers.SingleReplicaArrayRestoreArgs(shape=(8,)).global_shape
        (8,)
    """

    single_replica_sharding: jax.sharding.NamedSharding | None = None


def construct_restore_args(
    target: PyTree,
    sharding_tree: PyTree | None = None,
    set_global_shape: bool = True,
    support_layout: bool = False,
    strict: bool = True,
) -> PyTree:
    """Restore args that describe the leaves of `target`.

    Args:
        target: A tree of arrays, `ShapeDtypeStruct`s, NumPy arrays, Python values, placeholders and
            metadata of leaves.
        sharding_tree: The same tree with a sharding or None per leaf, which replace the shardings
            of `target`.
        set_global_shape: Require arrays to have their shape in `target`.
        support_layout: Ask for the layouts of `target` as well.
        strict: Passed on to the args.

    Raises:
        UsageError: A leaf is none of these.

    Example:
        >>> import numpy as np
        >>> from templax.compat import orbax as ocp
        >>> ocp.checkpoint_utils.construct_restore_args({"w": np.zeros(3, np.int8)})
        {'w': RestoreArgs(restore_type=<class 'numpy.ndarray'>, dtype=dtype('int8'))}
    """

    def find_sharding(leaf: Any) -> Any:
        found = getattr(leaf, "format", None) if support_layout else None
        return getattr(leaf, "sharding", None) if found is None else found

    def describe(leaf: Any, sharding: Any) -> RestoreArgs:
        return _describe_leaf(leaf, sharding, set_global_shape, strict)

    if isinstance(target, TreeMetadata):
        shardings = getattr(sharding_tree, "tree", sharding_tree)
        args = (set_global_shape, support_layout, strict)
        described = construct_restore_args(target.tree, shardings, *args)
        return TreeMetadata(described, target.custom_metadata)
    if sharding_tree is None:
        sharding_tree = jax.tree.map(find_sharding, target)
    return jax.tree.map(describe, target, getattr(sharding_tree, "tree", sharding_tree))


def _describe_leaf(leaf: Any, sharding: Any, set_global_shape: bool, strict: bool) -> RestoreArgs:
    import templax as tx

    kind = leaf_kind(leaf)
    if leaf is PLACEHOLDER:
        return RestoreArgs(type(PLACEHOLDER))
    if kind == "string" or isinstance(leaf, str):
        return RestoreArgs(str)
    if kind == "scalar":
        return RestoreArgs(type(np.zeros((), leaf.dtype).item()), leaf.dtype)
    if isinstance(leaf, (jax.ShapeDtypeStruct, jax.Array)) or kind == "array":
        if sharding is None and not isinstance(leaf, jax.Array):
            return RestoreArgs(np.ndarray, leaf.dtype)
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return ArrayRestoreArgs(
            dtype=leaf.dtype,
            sharding=sharding,
            global_shape=leaf.shape if set_global_shape and not is_key else None,
            strict=strict,
        )
    if isinstance(leaf, np.ndarray):
        return RestoreArgs(np.ndarray, leaf.dtype)
    if isinstance(leaf, type):  # in abstract trees of templax, Python's types stand for values
        return RestoreArgs(leaf)
    if isinstance(leaf, (int, float, complex, np.number)):
        return RestoreArgs(type(leaf))
    raise tx.UsageError(f"Expected an array, a number, a string or `...`, got {leaf!r}")
