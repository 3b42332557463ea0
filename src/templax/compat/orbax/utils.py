"""JAX. Orbax's `utils`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ...storage.leftovers import TEMPORARY
from .unmapped import make_getattr

if TYPE_CHECKING:
    from .tree import (
        deserialize_tree,
        from_flat_dict,
        is_empty_node,
        is_empty_or_leaf,
        serialize_tree,
        to_flat_dict,
        to_shape_dtype_struct,
    )

__all__ = [
    "TMP_DIR_SUFFIX",
    "deserialize_tree",
    "empty_array",
    "from_flat_dict",
    "fully_replicated_host_local_array_to_global_array",
    "is_empty_node",
    "is_empty_or_leaf",
    "is_scalar",
    "leaf_is_placeholder",
    "leaf_placeholder",
    "name_from_leaf_placeholder",
    "record_saved_duration",
    "serialize_tree",
    "to_flat_dict",
    "to_shape_dtype_struct",
]

TMP_DIR_SUFFIX = TEMPORARY
"""What the names of directories contain in which a save is in progress, or was never finished."""

_last_save = time.time()
"""The start of the last save, in Unix seconds; that of the program before the first one."""

_PREFIXES = ("PLACEHOLDER://", "AGGREGATED://")


def empty_array(shape: tuple[int, ...], dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
    """An abstract leaf of a template; it takes no memory.

    Example:
        >>> import numpy as np
        >>> from templax.compat import orbax as ocp
        >>> ocp.utils.empty_array((2, 3), np.float32)
        ShapeDtypeStruct(shape=(2, 3), dtype=float32)
    """
    return jax.ShapeDtypeStruct(shape, dtype)


def record_saved_duration(checkpoint_start_time: float) -> None:
    """Tells `jax.monitoring` the time from the last save, or the import of this module, to one.

    Args:
        checkpoint_start_time: When the save began, in Unix seconds.
    """
    global _last_save
    event = "/jax/checkpoint/write/duration_since_last_checkpoint_secs"
    jax.monitoring.record_event_duration_secs(event, checkpoint_start_time - _last_save)
    _last_save = checkpoint_start_time


def is_scalar(x: Any) -> bool:
    """Whether a value is a real number of Python or NumPy."""
    return isinstance(x, (int, float, np.number))


def leaf_is_placeholder(leaf: Any) -> bool:
    """Whether a leaf of the msgpack file of an old checkpoint only says where the value is."""
    return isinstance(leaf, str) and leaf.startswith(_PREFIXES)


def leaf_placeholder(name: str) -> str:
    """The leaf that says that the value is in the directory `name`."""
    return _PREFIXES[0] + name


def name_from_leaf_placeholder(placeholder: str) -> str:
    """The directory that such a leaf names.

    Raises:
        ValueError: `placeholder` is not one.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> ocp.utils.name_from_leaf_placeholder(ocp.utils.leaf_placeholder("params.w"))
        'params.w'
    """
    if not leaf_is_placeholder(placeholder):
        raise ValueError(f"Expected a text that begins with {_PREFIXES[0]}, got {placeholder!r}")
    return placeholder.partition("://")[2]


def fully_replicated_host_local_array_to_global_array(arr: jax.Array) -> jax.Array:
    """An array of `pmap`, of which every device has the same copy, as one array on all devices.

    Args:
        arr: The array; its leading dimension may be that of the devices.
    """
    shards = sorted(arr.addressable_shards, key=lambda shard: shard.device.id)
    copies = [shard.data for shard in shards]
    shape = copies[0].shape
    if shape != arr.shape:
        copies, shape = [copy[0] for copy in copies], shape[1:]
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.make_array_from_single_device_arrays(shape, sharding, copies)


_TREE = (
    "deserialize_tree",
    "from_flat_dict",
    "is_empty_node",
    "is_empty_or_leaf",
    "serialize_tree",
    "to_flat_dict",
    "to_shape_dtype_struct",
)

__getattr__ = make_getattr("utils.", dict.fromkeys(_TREE, "tree"))
