"""Python's garbage collector, out of the way while much is made that is not cyclic."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def pause_gc() -> Generator[None, None, None]:
    """No collections inside; also a decorator. For steps without code of others.

    20,000 leaves make some 250,000 tuples and arrays that all live on, and each collection looks at
    them again, and at all that JAX holds: a quarter of such a restore.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
