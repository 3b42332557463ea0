"""Finds those chunks of a leaf that overlap some boxes, without looking at all of them. Pure."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from .._catalog.entry import Chunk
from .._core.boxes import Box, intersect


class ChunkLookup:
    """The chunks of a leaf, found by where they are.

    Args:
        chunks: They cover the leaf. If they form a grid, as nearly always, the chunks of a box are
            found from its corners; otherwise, as where a mapping interleaves leaves so that the
            boxes around them overlap, all are compared.
    """

    def __init__(self, chunks: Sequence[Chunk]):
        self._chunks = chunks
        self._edges = [sorted({pair[0] for pair in axis}) for axis in _transpose(chunks)]
        self._grid: dict[tuple[int, ...], int] = {}
        if len(chunks) > 1 and math.prod(map(len, self._edges)) == len(chunks):
            nexts = [dict(itertools.pairwise(edges)) for edges in self._edges]
            found = {
                tuple([a for a, _ in chunk.box]): i
                for i, chunk in enumerate(chunks)
                if all(b <= after.get(a, b) for after, (a, b) in zip(nexts, chunk.box, strict=True))
            }
            if len(found) == len(chunks):
                self._grid = found

    def find(self, boxes: Sequence[Box]) -> Sequence[int]:
        """The indices of the chunks that overlap any of these boxes, in order; or of the only one.

        Args:
            boxes: Of the leaf.
        """
        if len(self._chunks) == 1:
            return [0]
        if not self._grid:
            each = enumerate(self._chunks)
            return [i for i, c in each if any(_overlap(c.box, box) for box in boxes)]
        found = set[int]()
        for box in boxes:
            if any(start == stop for start, stop in box):
                continue
            touched = [
                edges[max(0, bisect_right(edges, start) - 1) : bisect_left(edges, stop)]
                for edges, (start, stop) in zip(self._edges, box, strict=True)
            ]
            found.update(map(self._grid.__getitem__, itertools.product(*touched)))
        return sorted(found)


def _transpose(chunks: Sequence[Chunk]) -> list[list[tuple[int, int]]]:
    return [list(axis) for axis in zip(*(chunk.box for chunk in chunks), strict=True)]


def _overlap(a: Box, b: Box) -> bool:
    return intersect(a, b) is not None
