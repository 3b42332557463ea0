"""How much a plan reads and places at a time, by the memory that it may use. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from .parts import AHEAD_BYTES, BLOCK_BYTES, GAP_BYTES, REQUEST_BYTES, STORE_BYTES
from .plan import IN_FLIGHT

BATCH_BYTES = 128 * 1024 * 1024
"""A batch closes once its buffers have this many bytes: it is placed while the next are read."""

BATCH_LEAVES = 4096
"""A batch closes once it has this many boxes."""


class Limits(msgspec.Struct, frozen=True):
    """What follows from the options of a plan; see `build_plan`.

    Attributes:
        threads, memory: As asked.
        remote: Whether anything is read from an object store.
        share: Most transient bytes of a batch.
        ahead: Stored bytes that a worker holds of what is decoded as it is read.
        whole: A zstd chunk that decodes to at most this many bytes is read, then decoded in one
            call, which is faster than piece by piece.
        request: Small parts are joined to requests of at most this many bytes.
        held: The most memory that object stores hold themselves.
    """

    threads: int
    memory: int
    remote: bool
    share: int
    ahead: int
    whole: int
    request: int
    held: int

    def fit_threads(self, scratch: int, transient: int) -> int:
        """The number of workers: as asked, or as many as have room for their scratch memory.

        Args:
            scratch: The most memory that one worker needs besides the buffers.
            transient: The most bytes of transient buffers at a time.
        """
        room = self.memory - self.held - transient if self.remote else self.memory // 2
        return max(1, min(self.threads, room // scratch if scratch else self.threads))


def find_limits(threads: int, memory: int, gaps: Sequence[int]) -> Limits:
    """The limits of a plan with these options; see `build_plan`."""
    remote = any(gaps)
    ahead = AHEAD_BYTES if remote else REQUEST_BYTES
    return Limits(
        threads,
        memory,
        remote,
        max(1, memory // (2 * (IN_FLIGHT + 1))),
        ahead,
        BLOCK_BYTES if remote else max(BLOCK_BYTES, memory // (8 * threads)),
        max(GAP_BYTES, min(ahead, memory // (4 * threads))),
        min(STORE_BYTES, memory // 2) if remote else 0,
    )


class BatchSize:
    """The size of the batch that is being made.

    Args:
        share: See `Limits`.

    Attributes:
        boxes, nbytes, transient: Its boxes, their bytes, and how many of these are transient.
    """

    def __init__(self, share: int):
        self._share = share
        self.boxes = self.nbytes = self.transient = 0

    def add(self, boxes: int, nbytes: int, transient: int) -> bool:
        """Adds boxes to the batch. Returns whether it was full, so that they begin another one."""
        full = self.boxes > 0 and (
            self.nbytes >= BATCH_BYTES
            or self.boxes >= BATCH_LEAVES
            or self.transient + transient > self._share
        )
        if full:
            self.boxes = self.nbytes = self.transient = 0
        self.boxes += boxes
        self.nbytes += nbytes
        self.transient += transient
        return full
