"""JAX. What has another name, or is missing, in one of the versions of JAX from 0.5.3 on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.experimental.layout as jax_layout
import jax.tree_util as jtu
import numpy as np

_renamed = hasattr(jax_layout, "Format")  # in JAX 0.7

Format: Any = jax_layout.Format if _renamed else jax_layout.Layout
"""A memory layout and a sharding."""

Layout: Any = jax_layout.Layout if _renamed else getattr(jax_layout, "DeviceLocalLayout")  # noqa: B009
"""A memory layout."""

SET_MESH = "jax.set_mesh" if hasattr(jax, "set_mesh") else "jax.sharding.use_mesh"
"""The context manager that sets a mesh, as messages name it."""


def layout_of(format: Any) -> Any:
    """The memory layout of a `Format`."""
    return format.layout if hasattr(format, "layout") else format.device_local_layout


def format_of(leaf: Any) -> Any:
    """The `Format` of a `jax.ShapeDtypeStruct`, or None: other leaves have no such attribute."""
    found = (getattr(leaf, name, None) for name in ("format", "layout"))
    return next((format for format in found if isinstance(format, Format)), None)


def current_mesh() -> Any:
    """The mesh that the program has set, or None."""
    if hasattr(jax.sharding, "get_mesh"):
        mesh: Any = jax.sharding.get_mesh()
    else:
        from jax._src.mesh import get_concrete_mesh  # pyright: ignore

        mesh = get_concrete_mesh()
    return None if mesh is None or mesh.empty else mesh


def allow_remote_arrays() -> AbstractContextManager[Any]:
    """A context in which arrays may be made that lie only on devices of other processes.

    Older versions of JAX allow that only where an option is set.
    """
    from jax._src import config  # pyright: ignore

    option: Any = getattr(config, "enable_empty_arrays", None)
    return nullcontext() if option is None else option(True)


def record_scalar(event: str, value: float) -> None:
    """Tells the listeners of `jax.monitoring`, which JAX 0.5 has for events and durations only."""
    if hasattr(jax.monitoring, "record_scalar"):
        jax.monitoring.record_scalar(event, value)


def ensure_on_device(array: Any) -> Any:
    """The same array, with all that a `jax.Array` has; what is none is returned unchanged.

    In JAX 0.5, PRNG keys that `jax.random.wrap_key_data` makes of a numpy array keep that as their
    data, so that they have no sharding. They are put where newer versions put them at once: on the
    default device.
    """
    if not isinstance(getattr(array, "_base_array", None), np.ndarray):
        return array
    with jax.transfer_guard("allow"):
        return jax.device_put(array)


def symbolic_dimension_error() -> type[Exception]:
    """The exception that a symbolic dimension raises when it is used as a number.

    Imported only when a shape is invalid: the import takes 20 ms, longer than a small restore.
    """
    try:
        from jax.extend.core import InconclusiveDimensionOperation
    except ImportError:
        from jax.core import InconclusiveDimensionOperation  # pyright: ignore

    return InconclusiveDimensionOperation


def broadcast(prefix: Any, tree: Any) -> Any:
    """`tree` with the value of a prefix pytree in place of each leaf.

    Raises:
        ValueError: `prefix` is not a prefix of `tree`.
    """
    if hasattr(jax.tree, "broadcast"):
        return jax.tree.broadcast(prefix, tree)
    return jtu.tree_map(lambda value, part: jtu.tree_map(lambda _: value, part), prefix, tree)


def without_names(info: Any) -> Any:
    """The debugging information of a function, for one that returns other outputs."""
    return info.with_unknown_names() if hasattr(info, "with_unknown_names") else info


def shard_map(function: Any, mesh: Any, in_specs: Any, out_specs: Any) -> Any:
    """`jax.shard_map`, without its check of which axes the values are equal along."""
    if hasattr(jax, "shard_map"):  # since JAX 0.6
        specs = {"in_specs": in_specs, "out_specs": out_specs}
        return jax.shard_map(function, mesh=mesh, **specs, check_vma=False)
    from jax.experimental.shard_map import shard_map as earlier

    return earlier(function, mesh, in_specs, out_specs, check_rep=False)


def enter_mesh(mesh: Any) -> AbstractContextManager[Any]:
    """A context in which `shard_map` over a mesh is allowed, whichever mesh the program has set."""
    older: Any = getattr(jax.sharding, "use_mesh", nullcontext)
    return jax.set_mesh(mesh) if hasattr(jax, "set_mesh") else older(mesh)
