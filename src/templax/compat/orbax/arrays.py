"""JAX. Orbax's `arrays`: abstract arrays, and shardings that spread them over many devices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ..._core.arguments import PyTree
from .tree import to_shape_dtype_struct
from .unmapped import make_getattr

__all__ = ["construct_maximal_shardings", "to_shape_dtype_struct"]


def construct_maximal_shardings(
    abstract_state: PyTree, devices: Sequence[Any] | None = None
) -> PyTree:
    """A sharding for each array that divides it among the devices as far as its shape allows.

    Args:
        abstract_state: A tree of arrays, or of `jax.ShapeDtypeStruct`s.
        devices: The devices; default all.

    Example:
        >>> import jax, numpy as np
        >>> from templax.compat import orbax as ocp
        >>> tree = {"w": jax.ShapeDtypeStruct((8, 3), np.float32)}
        >>> shardings = ocp.arrays.construct_maximal_shardings(tree)
        >>> shardings["w"].num_devices == len(jax.devices())
        True
    """
    chosen = list(devices or jax.devices())
    return jax.tree.map(lambda leaf: _divide(leaf.shape, chosen), abstract_state)


def _divide(shape: tuple[int, ...], devices: list[Any]) -> jax.sharding.NamedSharding:
    remaining = len(devices)
    spec: list[str | None] = [None] * len(shape)
    axes: dict[str, int] = {}
    if max(shape, default=0) >= len(devices):  # smaller ones are copied
        for axis in sorted(range(len(shape)), key=lambda axis: shape[axis], reverse=True):
            parts = math.gcd(shape[axis], remaining)
            if parts > 1:
                spec[axis] = name = chr(ord("a") + len(axes))
                axes[name] = parts
                remaining //= parts
    if remaining > 1 or not axes:
        axes[chr(ord("a") + len(axes))] = remaining
    mesh = jax.sharding.Mesh(np.asarray(devices, object).reshape(tuple(axes.values())), tuple(axes))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))


__getattr__ = make_getattr("arrays.")
