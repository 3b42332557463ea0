"""JAX. The fast way from host memory to a `jax.Array`, through a private function of JAX.

`jax.device_put` of a list takes 26 µs per leaf and `jax.make_array_from_callback` 12; the function
that both end in takes 3 (20,000 leaves on one CPU device, jax 0.10.2). It is used if this version
of JAX has it and a trial call gives the right result. Otherwise `_restore/place.py` uses the public
functions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.core
import numpy as np
from jax.sharding import SingleDeviceSharding

from ..errors import UsageError

Put = Callable[[Any, jax.sharding.Sharding, Sequence[np.ndarray], Sequence[Any], bool], jax.Array]
"""Takes the abstract value, the sharding, one host array per device, the devices, and whether the
result is committed to its devices."""


def batched_put() -> Put | None:
    """JAX's private function that makes an array from host arrays, or None if it must not be used.

    That is so if this version of JAX lacks it, or if a transfer guard is set that logs or disallows
    explicit transfers: JAX would take a call of it for an implicit one.
    """
    guard = _guard()
    if guard in ("log_explicit", "disallow_explicit"):
        return None
    put = _find_working_put()
    if put is None or guard in (None, "allow"):
        return put

    def put_allowed(*args: Any) -> jax.Array:
        # The caller asked for the transfer, so it is allowed, as one by `jax.device_put` would be.
        with jax.transfer_guard_host_to_device("allow"):
            return put(*args)

    return put_allowed


@functools.cache
def _find_working_put() -> Put | None:
    """The private function, if a trial call makes the array that a public one would make."""
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
    """The abstract value of an array, made once for all leaves with this shape and dtype."""
    return jax.core.ShapedArray(shape, dtype)


def make_weak(array: jax.Array) -> jax.Array:
    """The same array with a weak type, which no public call gives to an array that exists.

    Returned unchanged if this JAX builds arrays differently: a jitted function that was called with
    the weak type then compiles once more.
    """
    whole: Any = array
    try:
        aval, pieces = whole.aval.update(weak_type=True), [s.data for s in array.addressable_shards]
        return type(whole)(aval, array.sharding, pieces, committed=array.committed)
    except (AttributeError, TypeError):
        return array


def check_transfers_allowed() -> None:
    """Refuses a restore to devices under a guard that forbids even explicit transfers.

    Raises:
        UsageError: `jax_transfer_guard` or `jax_transfer_guard_host_to_device` is
            `"disallow_explicit"`.
    """
    if _guard() == "disallow_explicit":
        raise UsageError(
            "Expected a transfer guard that allows explicit transfers to devices, such as a"
            ' restore, got "disallow_explicit"; hint: restore inside `with'
            ' jax.transfer_guard_host_to_device("allow"):`, or with a template of numpy arrays'
        )


def _guard() -> str | None:
    """The transfer guard that counts for transfers from the host to devices."""
    config: Any = jax.config
    return config.jax_transfer_guard_host_to_device or config.jax_transfer_guard


def default_device() -> Any:
    """The device for arrays that have no sharding; None if only `jax.device_put` can tell."""
    device: Any = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    if device is None:
        return jax.local_devices()[0]
    return device if isinstance(device, jax.Device) else None
