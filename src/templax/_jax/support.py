"""JAX. What this JAX, as it is configured, can hold; abstract arrays and keys."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from .._core.boxes import Shape


def abstract_array(shape: Shape, dtype: np.dtype) -> jax.ShapeDtypeStruct | np.ndarray:
    """A template leaf for an array; numpy (of no memory) if no `jax.Array` holds the dtype."""
    if jax_supports(dtype):
        return jax.ShapeDtypeStruct(shape, dtype)
    return np.broadcast_to(np.zeros((), dtype), shape)


def jax_supports(dtype: np.dtype) -> bool:
    """Whether a `jax.Array` holds `dtype` as it is, in this process as it is configured."""
    x64: Any = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    return _jax_supports(dtype, x64)


@functools.cache
def _jax_supports(dtype: np.dtype, x64: bool) -> bool:
    if dtype.name in ("int1", "uint1"):  # held, but XLA casts them to nothing
        return False
    try:
        with jax.ensure_compile_time_eval(), jax.transfer_guard("allow"):
            return jax.device_put(np.zeros((), dtype), host_device()).dtype == dtype
    except (TypeError, ValueError):
        return False  # numpy has dtypes that JAX has not
    except RuntimeError as error:
        if "INVALID_ARGUMENT" in str(error) or "PrimitiveType" in str(error):
            return False  # JAX has dtypes that XLA has not
        raise  # of the device, not of the dtype; and not remembered


def host_device() -> Any:
    """A device of the CPU backend, or None (JAX's default device) without that backend."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS names accelerators only
        return None


def key_data_spec(shape: Shape, dtype: Any) -> tuple[Shape, np.dtype, str]:
    """Of an array of typed PRNG keys: shape and dtype of its key data, and its implementation."""
    impls: list[str] = []

    def look(keys: jax.Array) -> jax.Array:
        impls.append(str(jax.random.key_impl(keys)))
        return jax.random.key_data(keys)

    data = jax.eval_shape(look, jax.ShapeDtypeStruct(shape, dtype))
    return data.shape, np.dtype(data.dtype), impls[0]
