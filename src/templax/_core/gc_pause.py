"""Pausing Python's garbage collector while many objects without cycles are created."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def pause_gc() -> Generator[None, None, None]:
    """A context manager, or decorator, that disables garbage collection inside the block.

    Restoring 20,000 leaves creates about 250,000 tuples and arrays that all stay alive. Each
    collection traverses them again, along with everything JAX holds; together this takes a quarter
    of the time of such a restore.

    Only for blocks that call no user code, which could create cycles that need to be collected.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
