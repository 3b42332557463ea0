"""Values of a leaf in pieces → the bytes of a box of it, in C order. Pure, but for the fetching."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import zstandard

from ._boxes import Box, Shape, intersect, shape_of, slices, within
from ._codecs import crc32c
from ._crc import piece, shifted, strided
from ._dtypes import name_of
from ._layout import Leaf, cells, chunk_shape
from ._memory import aligned

_LEAST_BYTES = 4 * 1024 * 1024

_MASKS = {"int4": 15, "uint4": 15, "float4_e2m1fn": 15, "int2": 3, "uint2": 3} | dict.fromkeys(
    ("float6_e2m3fn", "float6_e3m2fn"), 63
)
"""Bits of a byte that count, of elements that have fewer: what is in the others differs."""


class Scratch:
    """Memory of a thread: touched once, used again for each chunk."""

    def __init__(self) -> None:
        self._memory: dict[str, np.ndarray] = {}
        self._compressor: zstandard.ZstdCompressor | None = None
        self.write_s = 0.0

    def bytes(self, what: str, nbytes: int) -> memoryview:
        memory = self._memory.get(what)
        if memory is None or len(memory) < nbytes:
            self._memory.pop(what, None)  # before the larger one is there
            memory = self._memory[what] = aligned(max(nbytes, _LEAST_BYTES))
        return memoryview(memory)[:nbytes]  # pyright: ignore[reportArgumentType]

    def compress(self, data: memoryview, level: int | None) -> bytes:
        if self._compressor is None:
            self._compressor = zstandard.ZstdCompressor(level=level or 1, write_content_size=True)
        return self._compressor.compress(data)


def held(
    pieces: Iterable[tuple[Box, Callable[[], np.ndarray]]],
) -> list[tuple[Box, np.ndarray]]:
    return [(box, fetch()) for box, fetch in pieces]


def values(
    box: Box, leaf: Leaf, pieces: list[tuple[Box, np.ndarray]], scratch: Scratch
) -> memoryview:
    """The bytes of a box in C order: those of the array itself if they lie so, else gathered."""
    mask = _MASKS.get(name_of(leaf.dtype))
    if mask is None:
        for outer, array in pieces:
            if box == outer:
                view = array
            elif intersect(box, outer) == box:
                view = array[slices(within(box, outer))]
            else:
                continue
            if view.flags.c_contiguous and view.dtype == leaf.dtype:
                return memoryview(view.reshape(-1).view(np.uint8))  # pyright: ignore
            break
    shape = shape_of(box)
    out = scratch.bytes("gather", math.prod(shape) * leaf.dtype.itemsize)
    gathered = np.ndarray(shape, leaf.dtype, out)
    for outer, array in pieces:
        overlap = intersect(box, outer)
        if overlap is not None:
            gathered[(*slices(within(overlap, box)), ...)] = array[
                (*slices(within(overlap, outer)), ...)
            ]
    if mask is not None:
        numbers = np.frombuffer(out, np.uint8)
        np.bitwise_and(numbers, mask, out=numbers)
    return out


def padded(data: memoryview, box: Box, chunk: Shape, leaf: Leaf, scratch: Scratch) -> memoryview:
    """A chunk at the edge in its full size. Only the first dimension is ever cut short."""
    full = math.prod(chunk) * leaf.dtype.itemsize
    if len(data) == full:
        return data
    out = scratch.bytes("padded", full)
    out[: len(data)] = data
    out[len(data) :] = bytes(full - len(data))
    return out


def added(data: memoryview, box: Box, leaf: Leaf, crc: int) -> int:
    """What a box adds to the CRC of its leaf.

    Args:
        data: Its elements in C order.
        crc: Of them.
    """
    shape, itemsize = leaf.shape, leaf.dtype.itemsize
    # Bytes of one index of each dimension, and the first dimension of a run of neighbours.
    rows = [math.prod(shape[axis + 1 :]) * itemsize for axis in range(len(shape))]
    axis = len(shape) - 1
    while axis > 0 and box[axis] == (0, shape[axis]):
        axis -= 1
    run = (box[axis][1] - box[axis][0]) * rows[axis]
    if axis == 0 or run == len(data):
        end = sum((stop - 1) * row for (_, stop), row in zip(box, rows, strict=True)) + itemsize
        return piece(crc, len(data), leaf.nbytes - end)
    outer, height = box[: axis - 1], box[axis - 1][1] - box[axis - 1][0]
    total = at = 0
    for index in np.ndindex(*shape_of(outer)):
        crcs: list[int] = []
        for _ in range(height):
            crcs.append(crc32c(data[at : at + run]))
            at += run
        end = sum((start + i) * row for (start, _), i, row in zip(outer, index, rows, strict=False))
        end += (box[axis - 1][1] - 1) * rows[axis - 1] + box[axis][1] * rows[axis]
        total ^= shifted(strided(crcs, run, rows[axis - 1]), leaf.nbytes - end)
    return total


def crc_of(leaves: Iterable[Leaf]) -> Iterator[int]:
    """The crc32c of each leaf's bytes in C order; of leaves that this process has all of."""
    scratch = Scratch()
    for leaf in leaves:
        if leaf.text is not None:
            yield crc32c(leaf.text.encode())
            continue
        pieces, crc = held(leaf.pieces), 0
        for _, box in cells(leaf.shape, chunk_shape(leaf.shape, leaf.dtype.itemsize)):
            crc = crc32c(values(box, leaf, pieces, scratch), crc)
        yield crc
