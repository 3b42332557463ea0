"""JAX. The dtypes that JAX supports as it is configured, abstract arrays, and PRNG key data."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from .._core.boxes import Shape


def abstract_array(shape: Shape, dtype: np.dtype) -> jax.ShapeDtypeStruct | np.ndarray:
    """A template leaf for an array.

    A `jax.ShapeDtypeStruct` or, for a dtype that JAX does not support, a NumPy array that takes no
    memory.
    """
    if jax_supports(dtype):
        return jax.ShapeDtypeStruct(shape, dtype)
    return np.broadcast_to(np.zeros((), dtype), shape)


def jax_supports(dtype: np.dtype) -> bool:
    """Whether a `jax.Array` can have `dtype`, as JAX is configured in this process."""
    x64: Any = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    return _jax_supports(dtype, x64)


@functools.cache
def _jax_supports(dtype: np.dtype, x64: bool) -> bool:
    if dtype.name in ("int1", "uint1"):  # an array can have them, but XLA can't cast them
        return False
    try:
        with jax.ensure_compile_time_eval(), jax.transfer_guard("allow"):
            return jax.device_put(np.zeros((), dtype), host_device()).dtype == dtype
    except (TypeError, ValueError):
        return False  # a dtype of NumPy that JAX lacks
    except RuntimeError as error:
        if "INVALID_ARGUMENT" in str(error) or "PrimitiveType" in str(error):
            return False  # a dtype of JAX that XLA lacks
        raise  # an error of the device says nothing about the dtype; it is not cached


def host_device() -> Any:
    """A device of the CPU backend, or None (JAX's default device) without that backend."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS names accelerators only
        return None


def key_data_spec(shape: Shape, dtype: Any) -> tuple[Shape, np.dtype, str]:
    """The shape and dtype of the data of typed PRNG keys, and the name of their implementation.

    Args:
        shape, dtype: Those of the array of keys.
    """
    impls: list[str] = []

    def get_data(keys: jax.Array) -> jax.Array:
        impls.append(str(jax.random.key_impl(keys)))
        return jax.random.key_data(keys)

    data = jax.eval_shape(get_data, jax.ShapeDtypeStruct(shape, dtype))
    return data.shape, np.dtype(data.dtype), impls[0]


def find_key_dtype(impl: str | None) -> Any:
    """The dtype of typed PRNG keys of an implementation, such as "rbg"; None is JAX's default."""
    return jax.eval_shape(lambda: jax.random.key(0, impl=impl)).dtype
