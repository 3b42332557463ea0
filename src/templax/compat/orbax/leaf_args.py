"""JAX. How one leaf is saved or restored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..._core.arguments import PyTree
from .metadata import unwrap_tree

PLACEHOLDER = ...
"""A template leaf or subtree that is not restored."""


@dataclass(frozen=True)
class SaveArgs:
    """How one leaf is saved.

    Attributes:
        dtype: The leaf is cast to it first, by JAX or NumPy.
        aggregate, chunk_byte_size, shard_axes: No effect: they describe files.

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


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class ArrayRestoreArgs(RestoreArgs):
    """How one `jax.Array` is restored.

    Attributes:
        mesh, mesh_axes: The two parts of a `NamedSharding`, used if `sharding` is None.
        sharding: The sharding of the array.
        global_shape, shape: The shape that the array must have, under two names.
        strict: No effect: an array is never padded or truncated to fit.

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


def construct_restore_args(
    target: PyTree,
    sharding_tree: PyTree | None = None,
    set_global_shape: bool = True,
    support_layout: bool = False,
    strict: bool = True,
) -> PyTree:
    """Restore args that describe the leaves of `target`.

    Args:
        target: A tree of arrays, `ShapeDtypeStruct`s, NumPy arrays and Python values.
        sharding_tree: The same tree with a sharding or None per leaf, which replace the shardings
            of `target`.
        set_global_shape: Require arrays to have their shape in `target`.
        support_layout, strict: No effect.

    Example:
        >>> import numpy as np
        >>> from templax.compat import orbax as ocp
        >>> ocp.checkpoint_utils.construct_restore_args({"w": np.zeros(3, np.int8)})
        {'w': RestoreArgs(restore_type=<class 'numpy.ndarray'>, dtype=dtype('int8'))}
    """

    def describe(leaf: Any, sharding: Any) -> RestoreArgs:
        if isinstance(leaf, (jax.ShapeDtypeStruct, jax.Array)):
            if isinstance(leaf, jax.ShapeDtypeStruct) and sharding is None:
                return RestoreArgs(np.ndarray, leaf.dtype)
            shape = leaf.shape if set_global_shape else None
            return ArrayRestoreArgs(dtype=leaf.dtype, sharding=sharding, global_shape=shape)
        if isinstance(leaf, np.ndarray):
            return RestoreArgs(np.ndarray, leaf.dtype)
        return RestoreArgs(leaf if isinstance(leaf, type) else type(leaf))

    tree = unwrap_tree(target)
    shardings = unwrap_tree(sharding_tree)
    if shardings is None:
        shardings = jax.tree.map(lambda leaf: getattr(leaf, "sharding", None), tree)
    return jax.tree.map(describe, tree, shardings)


def cast_leaf(leaf: Any, asked: SaveArgs | None) -> Any:
    """A leaf in the dtype that its save args ask for."""
    dtype = None if asked is None else asked.dtype
    if dtype is None or leaf is None or isinstance(leaf, str):
        return leaf
    if isinstance(leaf, jax.Array):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return leaf if is_key else leaf.astype(dtype)
    if isinstance(leaf, np.ndarray):
        return leaf.astype(dtype)
    if isinstance(leaf, (int, float, complex, np.generic)):
        return np.dtype(dtype).type(leaf)
    return leaf  # not a number: the save accepts or refuses it


def apply_restore_args(leaf: Any, asked: RestoreArgs) -> Any:
    """The template leaf that a leaf of `item` and its restore args describe together."""
    kind, dtype = asked.restore_type, asked.dtype
    if leaf is PLACEHOLDER or leaf is str or isinstance(leaf, str):
        return leaf
    if kind in (int, float, bool, str):
        return kind
    if isinstance(leaf, (type, int, float)):
        if kind is None:
            return leaf if dtype is None else type(np.zeros((), dtype).item())
        leaf = np.zeros((), leaf if isinstance(leaf, type) else type(leaf))
    shape, sharding = leaf.shape, getattr(leaf, "sharding", None)
    if isinstance(asked, ArrayRestoreArgs):
        shape = next((s for s in (asked.global_shape, asked.shape) if s is not None), shape)
        if asked.sharding is not None:
            sharding = asked.sharding
        elif asked.mesh is not None and asked.mesh_axes is not None:
            sharding = jax.sharding.NamedSharding(asked.mesh, asked.mesh_axes)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    dtype = leaf.dtype if dtype is None else dtype
    if kind is np.ndarray or (kind is None and isinstance(leaf, np.ndarray)):
        # Abstract: a broadcast scalar takes no memory.
        return np.broadcast_to(np.empty((), dtype), shape)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
