"""Pickling what refers to devices: JAX does not pickle a `jax.Device`."""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from .._core.optional import require_jax
from ..errors import UsageError


def dump_with_devices(value: Any, what: str) -> bytes:
    """Pickles a value that may refer to devices, each by its platform and id.

    Args:
        value: Anything; `pickle.loads` loads it, in a process that has these devices.
        what: What the value is part of, for the message: "plan" or "recipe".

    Raises:
        UsageError: It contains something that can't be pickled, such as a lambda.
    """
    file = io.BytesIO()
    try:
        _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(value)
    except (pickle.PicklingError, AttributeError, TypeError, ValueError) as error:
        raise UsageError(
            f"This {what} can't be pickled: {error}; hint: pickle the catalog of a path instead,"
            " and restore from that in each process with a template made there"
        ) from error
    return file.getvalue()


@contextmanager
def name_missing_jax(what: str) -> Generator[None]:
    """A context in which a pickle that was made with JAX is loaded.

    Raises:
        MissingPackage: It holds something of JAX, which is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("jax", "jaxlib"):
            require_jax(f"This {what}, which was made with JAX,", "make it in this process")
        raise


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, protocol: int):
        super().__init__(file, protocol)
        self._jax = sys.modules.get("jax")  # None if JAX is not loaded: then there are no devices

    def reducer_override(self, obj: Any) -> Any:
        if self._jax is not None and isinstance(obj, self._jax.Device):
            return _find_device, (obj.platform, obj.id)
        return NotImplemented


def _find_device(platform: str, number: int) -> Any:
    import jax

    try:
        return next(device for device in jax.devices(platform) if device.id == number)
    except (RuntimeError, StopIteration):
        raise UsageError(
            f"Expected device {number} of platform `{platform}`, for which the plan was made; this"
            " process does not have it"
        ) from None
