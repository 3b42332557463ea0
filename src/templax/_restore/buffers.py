"""Host memory for the buffers of a batch, each at a 64-byte boundary."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from .._core.memory import ALIGN, HUGE_BYTES, SMALL_BYTES, allocate_aligned, count_memory
from .._core.names import Path
from .._core.text import format_size
from .._plan.buffers import Buffer
from .._plan.parts import Part
from .._plan.plan import Batch, ReadOp
from ..errors import Unsupported

ARENA_BYTES = 8 * 1024 * 1024
"""Size of an arena."""

SHARED_BYTES = 1024 * 1024
"""Buffers of up to this size share arenas: one allocation for many leaves, on huge pages (first
touched at 0.09 s/GiB instead of 0.48). The price: an arena is freed with its last leaf."""

GROUP_BYTES = 2 * HUGE_BYTES
"""A subtree with at least this many bytes of small buffers has arenas of its own. So it holds no
others when it alone is kept, as parameters are when the state of their optimizer is dropped."""


class HostMemory:
    """Uninitialised memory for the buffers of a batch.

    Small buffers are laid out in the order in which the plan reads them, so that leaves that are
    neighbours in the file are neighbours in memory too, and one request can fill them in place.
    """

    def __init__(self, batch: Batch):
        n = len(batch.buffers)
        self._batch = batch
        self._owner: list[np.ndarray | None] = [None] * n
        self._start = [0] * n
        self._views: dict[int, memoryview] = {}
        small: list[int] = []
        parts = [part for op in batch.reads for part in op.parts]
        filled = [copy.buffer for part in parts for copy in part.strided or part.copies]
        for i in dict.fromkeys(filled):
            buffer = batch.buffers[i]
            if buffer.nbytes <= (SMALL_BYTES if buffer.pair.target.host else SHARED_BYTES):
                small.append(i)
            else:
                self._owner[i] = _allocate(buffer)
        self._place_small(small)

    def _place_small(self, small: Sequence[int]) -> None:
        """Places small buffers in the arenas of their groups, in this order."""
        buffers = self._batch.buffers
        sizes = [0] * len(buffers)
        for i in small:
            sizes[i] = -(-buffers[i].nbytes // ALIGN) * ALIGN
        groups = find_groups([buffer.pair.target.path for buffer in buffers], sizes)
        members: defaultdict[int, list[int]] = defaultdict(list)
        for i in small:
            members[groups[i]].append(i)
        for group in members.values():
            self._place_group(group, sizes)

    def _place_group(self, group: Sequence[int], sizes: Sequence[int]) -> None:
        """Places the small buffers of a group in its arenas, in this order."""
        owner, start = self._owner, self._start
        rest = sum([sizes[i] for i in group])
        arena, used, free = allocate_aligned(0), 0, 0
        for i in group:
            size = sizes[i]
            if size > free:
                used, free = 0, max(size, min(rest, ARENA_BYTES))
                arena = allocate_aligned(free)
            owner[i], start[i] = arena, used
            used += size
            free -= size
            rest -= size

    def array(self, i: int) -> np.ndarray:
        """A buffer as an array."""
        buffer, owner = self._batch.buffers[i], self._owner[i]
        if owner is None:  # it has no elements, so that nothing is read
            return np.empty(buffer.shape, buffer.dtype)
        return np.ndarray(buffer.shape, buffer.dtype, owner, self._start[i])

    def bytes(self, i: int, start: int, nbytes: int) -> memoryview:
        """`nbytes` bytes of a buffer from its byte `start`."""
        owner = self._owner[i]
        assert owner is not None
        view = self._views.get(id(owner))
        if view is None:
            view = self._views[id(owner)] = memoryview(owner)
        start += self._start[i]
        return view[start : start + nbytes]

    def fill(self, parts: Sequence[Part], values: Sequence[Any]) -> None:
        """Copies decoded bytes to the buffers of their parts, each of which is direct."""
        view, last = memoryview(b""), None
        for part, value in zip(parts, values, strict=True):
            i, start = part.buffer, part.direct
            assert start is not None
            start += self._start[i]
            owner = self._owner[i]
            if owner is not last:
                view, last = memoryview(owner), owner  # pyright: ignore[reportArgumentType]
            view[start : start + part.nbytes] = value

    def find_in_order(self, op: ReadOp) -> memoryview | None:
        """The memory that a whole request fills in place; None if its parts do not lie so.

        They do if all are raw and direct, in one arena, at the same distances as in the file.
        """
        first = op.parts[0]
        i = first.buffer
        owner = self._owner[i]
        if owner is None or first.direct is None:
            return None
        shift = self._start[i] + first.direct - first.start
        for part in op.parts:
            if part.direct is None or part.chunk.codecs:
                return None
            j = part.buffer
            if self._owner[j] is not owner or self._start[j] + part.direct - part.start != shift:
                return None
        # What the file has between two parts must not be written over other buffers.
        gaps = op.stop - op.start - sum([part.stop - part.start for part in op.parts])
        if gaps and not self._gaps_are_padding(op.parts):
            return None
        return self.bytes(i, op.start + shift - self._start[i], op.stop - op.start)

    def _gaps_are_padding(self, parts: Sequence[Part]) -> bool:
        """Whether the gaps between parts in order fall on padding, not on another buffer.

        A gap from the end of one buffer to the start of the next is padding if it is shorter than
        `ALIGN`: a buffer in between would begin at a multiple of `ALIGN` and take that many bytes
        itself. (Parts in order do not overlap, since their places in memory do not.)
        """
        buffers = self._batch.buffers
        for part, following in itertools.pairwise(parts):
            gap = following.start - part.stop
            if gap and (
                gap >= ALIGN
                or following.direct
                or part.direct != buffers[part.buffer].nbytes - part.nbytes
            ):
                return False
        return True


def _allocate(buffer: Buffer) -> np.ndarray:
    """Allocates memory for a large buffer.

    Raises:
        Unsupported: The machine does not have that much memory. A few bytes of a file may declare
            any number of elements with the fill value, and some systems overcommit memory.
    """
    if buffer.nbytes <= count_memory():
        try:
            return allocate_aligned(buffer.nbytes)
        except MemoryError:
            pass
    raise Unsupported(
        f"Expected a leaf that fits into memory, got {format_size(buffer.nbytes)}",
        leaf=buffer.pair.target.name,
    )


def find_groups(paths: Sequence[Path], sizes: Sequence[int]) -> list[int]:
    """The group of each leaf: the smallest subtree around it that has `GROUP_BYTES`, as a number.

    Args:
        paths: Key paths, in the order of the tree, so that a subtree is a run of them.
        sizes: Bytes of each that count.

    >>> MiB = 1 << 20
    >>> find_groups([("opt", "mu"), ("params", "a"), ("params", "b"), ("step",)], [MiB] * 4)
    [0, 1, 1, 0]
    """
    groups, number = [0] * len(paths), 0
    if sum(sizes) < GROUP_BYTES:
        return groups
    ends = list(itertools.accumulate(sizes, initial=0))
    pending = [(0, len(paths), 0)]
    while pending:
        start, last, depth = pending.pop()
        while start < last:
            stop = start + 1
            if len(paths[start]) > depth + 1:
                key = paths[start][depth]
                while stop < last and paths[stop][depth] == key:
                    stop += 1
                if ends[stop] - ends[start] >= GROUP_BYTES:
                    number += 1
                    groups[start:stop] = [number] * (stop - start)
                    pending.append((start, stop, depth + 1))
            start = stop
    return groups
