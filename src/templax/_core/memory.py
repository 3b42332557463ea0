"""Aligned memory, and scratch memory that a thread reuses."""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import sys

import numpy as np
import zstandard

ALIGN = 64
"""In bytes. On CPU, `jax.device_put` uses a host buffer with this alignment without a copy."""

HUGE_BYTES = 1024 * 1024
"""Allocations of at least this size are mapped separately, so they start at a page boundary and are
returned to the system when freed. Memory from malloc starts a few bytes after the boundary, and
malloc keeps it: each restore starts new threads, so 10 MiB more stayed resident after each."""

SMALL_BYTES = 64 * 1024
"""Numpy leaves share one allocation only up to this size, since keeping a single one keeps all."""

_MIN_BYTES = 4 * 1024 * 1024

_SCRATCH_STEP = 2 * 1024 * 1024


class Scratch:
    """Buffers that one thread allocates once and reuses for each chunk. Not thread-safe.

    Args:
        minimum: Size of the smallest allocation, in bytes.

    Attributes:
        write_s: Seconds that this thread has spent writing. Updated by the caller.
    """

    def __init__(self, minimum: int = _MIN_BYTES) -> None:
        self._minimum = minimum
        self._memory: dict[str, np.ndarray] = {}
        self._compressor: zstandard.ZstdCompressor | None = None
        self.write_s = 0.0

    def bytes(self, what: str, nbytes: int) -> memoryview:
        """Returns the buffer for the purpose `what`, valid until the next call for it."""
        memory = self._memory.get(what)
        if memory is None or len(memory) < nbytes:
            self._memory.pop(what, None)  # free the old buffer before allocating a larger one
            # Whole huge pages. Also, compressed chunks differ by a few bytes in size: each one that
            # is the longest so far would need new memory.
            most = -(-nbytes // _SCRATCH_STEP) * _SCRATCH_STEP
            memory = self._memory[what] = allocate_aligned(
                max(most if nbytes > _SCRATCH_STEP else nbytes, self._minimum)
            )
        return memoryview(memory)[:nbytes]  # pyright: ignore[reportArgumentType]

    def drop(self, what: str) -> None:
        """Forgets the buffer for a purpose: somebody may still write to it."""
        self._memory.pop(what, None)

    def compress(self, data: memoryview, level: int | None) -> bytes:
        """Compresses to one zstd frame. The first call sets the level; None means 1."""
        if self._compressor is None:
            self._compressor = zstandard.ZstdCompressor(level=level or 1, write_content_size=True)
        return self._compressor.compress(data)


@functools.cache
def count_memory() -> int:
    """The physical memory of this machine, in bytes; `sys.maxsize` if it is unknown."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows and some other systems can't tell
        return sys.maxsize


def allocate_aligned(nbytes: int) -> np.ndarray:
    """Allocates uninitialised bytes at a 64-byte boundary.

    Large ones go back to the system when they are freed; see `HUGE_BYTES`.
    """
    if nbytes >= HUGE_BYTES:
        try:
            if hasattr(mmap, "MAP_ANONYMOUS"):
                pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            else:  # on Windows, where nothing else is possible
                pages = mmap.mmap(-1, nbytes)
        except OSError as error:
            raise MemoryError(f"no memory for {nbytes:,} bytes") from error
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # the kernel has no huge pages
                pages.madvise(mmap.MADV_HUGEPAGE)
        return np.frombuffer(pages, np.uint8)
    memory = np.empty(nbytes + ALIGN, np.uint8)
    start = -memory.ctypes.data % ALIGN
    return memory[start : start + nbytes]
