"""One leaf whose chunks have an `origin`: its boxes × these chunks → parts. Pure.

A mapping makes it of other leaves, or its elements are stored in another order or with gaps. A box
of the leaf is pulled back through the index map to boxes of what is stored. What they have in
common with a chunk are strided copies from its bytes to the buffers: no array is made in between.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from .._catalog.entry import Chunk, LeafEntry
from .._core.boxes import Box, intersect, shape_of, split_range
from .._core.index_map import StridedCopy, span_copies, strides_of
from .buffers import Buffer
from .parts import (
    GAP_BYTES,
    SCATTER_BYTES,
    SPLIT_BYTES,
    Part,
    complete_blocks,
    is_raw,
    widen_to_blocks,
)

_SHORT_GAPS = 8
"""Of a block, gaps of up to so many times `GAP_BYTES` between short runs are read and dropped. The
other blocks need the same bytes, so they are in the page cache, and reading a run by itself takes
longer."""


def make_mapped_parts(
    entry: LeafEntry,
    buffers: Sequence[Buffer],
    first: int,
    chunk: Chunk,
    whole_blocks: bool,
    blocks: bool = False,
) -> Iterator[Part]:
    """Makes the parts to read of a chunk with an `origin`; see `make_parts` and `build_plan`.

    A raw chunk is cut into pieces, so that threads share it and what is scattered is still in
    cache. Pieces begin and end where blocks with a checksum do. Long ranges that no buffer wants
    are not read.
    """
    wanted = [
        (i, buffer)
        for i, buffer in enumerate(buffers, first)
        if intersect(chunk.box, buffer.box) is not None
    ]
    if not wanted:
        return
    pulled = _PulledChunk(entry.name, chunk, wanted, _SHORT_GAPS if blocks else 1)
    copies = pulled.list_copies(0, pulled.size)
    if not copies:
        return
    if not is_raw(chunk):
        extent, nbytes = chunk.extent, pulled.size * pulled.itemsize
        direct = pulled.find_direct(copies, pulled.size)
        yield Part(
            entry.name, chunk, pulled.dtype, extent.start, extent.stop, direct, nbytes, (), copies
        )
        return
    low, high = span_copies(copies)
    most = SCATTER_BYTES if pulled.find_direct(copies, high - low) is None else SPLIT_BYTES
    step = pulled.choose_step(most)
    if pulled.size <= step:
        step = pulled.size
    for start in range(low // step * step, high, step):
        stop = min(start + step, pulled.size)
        whole = copies if step == pulled.size else pulled.list_copies(start, stop)
        for part in pulled.cut(start, stop, whole):
            yield (widen_to_blocks(part) if whole_blocks and chunk.sums else complete_blocks(part))


class _PulledChunk:
    """A chunk, and the buffers that want some of its elements. Elements are counted in C order.

    Args:
        name: Name of the leaf.
        chunk: A chunk with an `origin`.
        wanted: The buffers and their indices in the batch.
        short_gaps: Between short runs, gaps of up to so many times `GAP_BYTES` are read, too.
    """

    def __init__(
        self, name: str, chunk: Chunk, wanted: Sequence[tuple[int, Buffer]], short_gaps: int
    ):
        assert chunk.origin is not None
        self._short_gaps = short_gaps
        self._name, self._chunk, self._origin = name, chunk, chunk.origin
        self._shape = shape_of(self._origin.box)
        self._strides = strides_of(self._shape, chunk.order)
        self._wanted = [
            (i, buffer, strides_of(buffer.shape), self._origin.map.split_target(buffer.box))
            for i, buffer in wanted
        ]
        self.size, self.dtype = math.prod(self._shape), self._origin.dtype
        self.itemsize = self.dtype.itemsize

    def list_copies(self, start: int, stop: int) -> tuple[StridedCopy, ...]:
        """The copies from the elements `start` to `stop` of the chunk."""
        origin, copies = self._origin, list[StridedCopy]()
        boxes: Sequence[Box] = (origin.box,)
        if (start, stop) != (0, self.size):
            corner = [low for low, _ in origin.box]
            boxes = [
                tuple((a + at, b + at) for (a, b), at in zip(box, corner, strict=True))
                for box in split_range(start, stop, self._shape)
            ]
        for box in boxes:
            for here in origin.map.split_source(box):
                for i, buffer, strides, there in self._wanted:
                    for mine in there:
                        both = intersect(here, mine)
                        if both is not None:
                            copy = origin.map.make_copy(
                                both, origin.box, self._strides, buffer.box, strides, i
                            )
                            copies.append(copy)
        return tuple(copies)

    def find_direct(self, copies: Sequence[StridedCopy], size: int) -> int | None:
        """The byte of the buffer where all `size` elements are read or decoded in place, or None.

        See `Part.direct`.
        """
        (copy, *others) = copies
        if others or not copy.is_contiguous or math.prod(copy.shape) != size:
            return None
        buffer = next(buffer for i, buffer, _, _ in self._wanted if i == copy.buffer)
        if self._origin.is_computed or buffer.dtype != self.dtype:
            return None
        return copy.dst * self.itemsize

    def choose_step(self, most: int) -> int:
        """The number of elements of a piece: at most about `most` bytes, whole blocks and rows."""
        step, row, unit = max(1, most // self.itemsize), 1, 1
        if self._chunk.sums:
            unit = self._chunk.block // math.gcd(self._chunk.block, self.itemsize)
        for n in reversed(self._shape):
            if math.lcm(row * n, unit) > step:
                break
            row *= n
        unit = math.lcm(row, unit)
        return max(unit, step // unit * unit)

    def cut(self, start: int, stop: int, copies: tuple[StridedCopy, ...]) -> Iterator[Part]:
        """The part for some elements of the chunk, or two if there is a wide gap in between."""
        if not copies:
            return
        low, high = span_copies(copies)
        most = GAP_BYTES // self.itemsize
        if high - low > most and _has_gap(copies, most, self._short_gaps):
            middle = self._find_middle(start, stop)
            if start < middle < stop:
                yield from self.cut(start, middle, self.list_copies(start, middle))
                yield from self.cut(middle, stop, self.list_copies(middle, stop))
                return
        origin, itemsize = self._chunk.extent.start, self.itemsize
        yield Part(
            self._name,
            self._chunk,
            self.dtype,
            origin + low * itemsize,
            origin + high * itemsize,
            self.find_direct(copies, high - low),
            (high - low) * itemsize,
            (),
            copies,
        )

    def _find_middle(self, start: int, stop: int) -> int:
        middle = (start + stop) // 2
        if self._chunk.sums:
            unit = self._chunk.block // math.gcd(self._chunk.block, self.itemsize)
            middle = middle // unit * unit
        return middle


def _has_gap(copies: Sequence[StridedCopy], most: int, short_gaps: int) -> bool:
    """Whether more than `most` neighbouring elements between those that are copied are not.

    Between runs of at most `most` elements, these are `short_gaps` times as many.
    """
    reached: int | None = None
    for start, stop in sorted(copy.src_span for copy in copies):
        if reached is not None and start - reached > most:
            return True
        reached = max(stop, reached or 0)
    for copy in copies:
        run = 1
        steps = zip(map(abs, copy.src_strides), copy.shape, strict=True)
        for stride, n in sorted(step for step in steps if step[0]):
            wide = most if run > most else short_gaps * most
            if stride - run > wide and len(copies) == 1:
                return True
            run += (n - 1) * stride
    return False
