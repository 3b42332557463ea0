"""JAX. The one place where templax calls what JAX does not promise.

`jax.device_put` of a list takes 26 µs a leaf and `jax.make_array_from_callback` 12; the call they
both end in takes 3 (20,000 leaves on one CPU device, jax 0.10.2). It is used where this JAX has it
and it passes a trial; else `_place` uses the public calls.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.core
import numpy as np
from jax.sharding import SingleDeviceSharding

Put = Callable[[Any, jax.sharding.Sharding, Sequence[np.ndarray], Sequence[Any], bool], jax.Array]
"""aval, sharding, one host array per device, devices, whether the array is committed."""


def batched_put() -> Put | None:
    """JAX's own way from host arrays to an array; None if this JAX has not quite that, or if a
    transfer guard is set that looks at explicit transfers, of which this would not be one.
    """
    config: Any = jax.config
    guard = config.jax_transfer_guard_host_to_device or config.jax_transfer_guard
    if guard in ("log_explicit", "disallow_explicit"):
        return None
    put = _tried()
    if put is None or guard in (None, "allow"):
        return put

    def allowed(*args: Any) -> jax.Array:  # as `jax.device_put` is: the caller asked for it
        with jax.transfer_guard_host_to_device("allow"):
            return put(*args)

    return allowed


@functools.cache
def _tried() -> Put | None:
    """The private call, if a trial of it gives what the public one does."""
    try:
        from jax._src.lib import xla_client  # pyright: ignore

        put: Put = xla_client.batched_device_put
        device = jax.local_devices()[0]
        sharding = SingleDeviceSharding(device)
        values = np.arange(6, dtype=np.float32).reshape(2, 3)
        aval = aval_of(values.shape, values.dtype)
        with jax.transfer_guard("allow"):
            for committed in (False, True):
                made: Any = put(aval, sharding, [values], [device], committed)
                if not isinstance(made, jax.Array) or isinstance(made, jax.core.Tracer):
                    return None
                same = made.shape == values.shape and made.dtype == values.dtype
                if not same or made.committed != committed or made.sharding != sharding:
                    return None
                if made.weak_type or not np.array_equal(np.asarray(made), values):
                    return None
    except (ImportError, AttributeError, TypeError, ValueError, RuntimeError):
        return None
    return put


@functools.lru_cache(maxsize=4096)
def aval_of(shape: tuple[int, ...], dtype: np.dtype) -> Any:
    """The abstract value of an array; made once for all leaves that look alike."""
    return jax.core.ShapedArray(shape, dtype)


def default_device() -> Any:
    """Where `jax.device_put` puts what has no sharding; None if only JAX can tell."""
    device: Any = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    if device is None:
        return jax.local_devices()[0]
    return device if isinstance(device, jax.Device) else None
