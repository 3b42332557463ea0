"""JAX. Orbax's v1 `arrays`: what describes an array."""

from __future__ import annotations

from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np

from ... import tree
from ...unmapped import make_getattr

__all__ = [
    "AbstractArray",
    "AbstractScalar",
    "AbstractShardedArray",
    "ArrayLike",
    "DType",
    "Scalar",
    "Shape",
    "to_shape_dtype_struct",
]

Shape = tuple[int, ...]

DType = jnp.dtype | np.dtype

Scalar = int | float | np.number | bytes | bool

AbstractScalar = Scalar


class AbstractArray(Protocol):
    """What has a shape and a dtype: it is loaded as an `np.ndarray`."""

    shape: Shape | None
    dtype: Any


class AbstractShardedArray(Protocol):
    """What has a shape, a dtype and a sharding: it is loaded as a `jax.Array`."""

    shape: Shape | None
    dtype: Any
    sharding: Any


ArrayLike = AbstractArray | AbstractShardedArray


def to_shape_dtype_struct(
    arr: Any, dtype: Any = None, scalar_dtype: Any = None, support_format: bool = False
) -> Any:
    """An abstract array or scalar in place of a value.

    Args:
        arr: An array, something that describes one, or a Python number.
        dtype: Another dtype for an array.
        scalar_dtype: The type of a Python number, such as `int`.
        support_format: Whether to keep the layout on the device as well.

    Example:
        >>> import numpy as np
        >>> from templax.compat.orbax import v1 as ocp
        >>> ocp.arrays.to_shape_dtype_struct(np.zeros((2, 3)), dtype=np.int8)
        ShapeDtypeStruct(shape=(2, 3), dtype=int8)
    """
    return tree.to_shape_dtype_struct(arr, dtype, scalar_dtype, support_format)


__getattr__ = make_getattr("experimental.v1.arrays.")
