"""Aligned memory, and scratch that a thread uses again."""

from __future__ import annotations

import contextlib
import mmap

import numpy as np
import zstandard

_MIN_BYTES = 4 * 1024 * 1024


class Scratch:
    """Memory of a thread: touched once, used again for each chunk.

    Args:
        minimum: Bytes of the smallest allocation.
    """

    def __init__(self, minimum: int = _MIN_BYTES) -> None:
        self._minimum = minimum
        self._memory: dict[str, np.ndarray] = {}
        self._compressor: zstandard.ZstdCompressor | None = None
        self.write_s = 0.0

    def bytes(self, what: str, nbytes: int) -> memoryview:
        memory = self._memory.get(what)
        if memory is None or len(memory) < nbytes:
            self._memory.pop(what, None)  # before the larger one is there
            memory = self._memory[what] = allocate_aligned(max(nbytes, self._minimum))
        return memoryview(memory)[:nbytes]  # pyright: ignore[reportArgumentType]

    def compress(self, data: memoryview, level: int | None) -> bytes:
        if self._compressor is None:
            self._compressor = zstandard.ZstdCompressor(level=level or 1, write_content_size=True)
        return self._compressor.compress(data)


HUGE_BYTES = 1024 * 1024
"""Memory of this size or more is mapped on its own, at a page's start: what malloc gives begins a
few bytes later, and stays with malloc when it is freed (10 MiB more resident with each restore,
since each has threads of its own)."""

SMALL_BYTES = 64 * 1024
"""Numpy leaves share arenas only up to this size, since a caller may keep one of them alone."""


def allocate_aligned(nbytes: int) -> np.ndarray:
    """Uninitialised bytes at a 64-byte boundary, given back to the system when they are freed."""
    if nbytes >= HUGE_BYTES:
        try:
            pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(f"no memory for {nbytes:,} bytes") from error
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without them
                pages.madvise(mmap.MADV_HUGEPAGE)
        return np.frombuffer(pages, np.uint8)
    memory = np.empty(nbytes + ALIGN, np.uint8)
    start = -memory.ctypes.data % ALIGN
    return memory[start : start + nbytes]


ALIGN = 64
"""Bytes. On CPU, `jax.device_put` takes over a host buffer at this boundary without a copy."""
