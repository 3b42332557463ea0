"""The bytes of a box of a leaf, in C order, and their checksums. Pure, except for the fetching."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from .._catalog.written import Leaf
from .._codecs.crc32c import crc32c
from .._codecs.crc_combine import piece_contribution, shift_contribution, strided_contribution
from .._core.boxes import Box, Shape, box_slices, intersect, relative_box, shape_of
from .._core.chunk_grid import chunk_shape, iter_cells
from .._core.dtypes import name_of
from .._core.memory import Scratch

_MASKS = {"int4": 15, "uint4": 15, "float4_e2m1fn": 15, "int2": 3, "uint2": 3} | dict.fromkeys(
    ("float6_e2m3fn", "float6_e3m2fn"), 63
)
"""The significant bits of dtypes with fewer than eight.

The other bits of a byte are undefined in memory: they are cleared, so that equal values have equal
checksums.
"""


def fetch_pieces(
    pieces: Iterable[tuple[Box, Callable[[], np.ndarray]]],
) -> list[tuple[Box, np.ndarray]]:
    """The pieces of a leaf with their values, fetched from devices if need be."""
    return [(box, fetch()) for box, fetch in pieces]


def view_piece(
    box: Box, leaf: Leaf, pieces: Sequence[tuple[Box, Callable[[], np.ndarray]]]
) -> np.ndarray | None:
    """The values of a box, if the only piece has just these, in C order and without bits to
    clear; else None.
    """
    if len(pieces) > 1 or pieces[0][0] != box or name_of(leaf.dtype) in _MASKS:
        return None
    array = pieces[0][1]()
    return array if array.flags.c_contiguous and array.dtype == leaf.dtype else None


def gather_box(
    box: Box, leaf: Leaf, pieces: list[tuple[Box, np.ndarray]], scratch: Scratch
) -> memoryview:
    """The bytes of a box in C order.

    Returns:
        A view of the piece itself if its memory has the bytes in that order; otherwise a copy in
        `scratch`, valid until the next call.
    """
    mask = _MASKS.get(name_of(leaf.dtype))
    if mask is None:
        for outer, array in pieces:
            if box == outer:
                view = array
            elif intersect(box, outer) == box:
                view = array[box_slices(relative_box(box, outer))]
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
            gathered[(*box_slices(relative_box(overlap, box)), ...)] = array[
                (*box_slices(relative_box(overlap, outer)), ...)
            ]
    if mask is not None:
        numbers = np.frombuffer(out, np.uint8)
        np.bitwise_and(numbers, mask, out=numbers)
    return out


def pad_chunk(data: memoryview, box: Box, chunk: Shape, leaf: Leaf, scratch: Scratch) -> memoryview:
    """A chunk padded with zeros to its full size.

    Only the first dimension of a chunk can reach beyond the leaf, so the padding comes last.
    """
    full = math.prod(chunk) * leaf.dtype.itemsize
    if len(data) == full:
        return data
    out = scratch.bytes("padded", full)
    out[: len(data)] = data
    out[len(data) :] = bytes(full - len(data))
    return out


def crc_contribution(data: memoryview, box: Box, leaf: Leaf, crc: int) -> int:
    """The contribution of a box to the CRC of its leaf's bytes in C order.

    The CRC is linear: the XOR of the contributions of boxes that tile a leaf is the leaf's CRC.

    Args:
        data: The elements of the box in C order.
        crc: The CRC of `data`.
    """
    shape, itemsize = leaf.shape, leaf.dtype.itemsize
    # Bytes per index of each dimension; and the first dimension of those that the box covers in
    # contiguous runs.
    rows = [math.prod(shape[axis + 1 :]) * itemsize for axis in range(len(shape))]
    axis = len(shape) - 1
    while axis > 0 and box[axis] == (0, shape[axis]):
        axis -= 1
    run = (box[axis][1] - box[axis][0]) * rows[axis]
    if axis == 0 or run == len(data):
        end = sum((stop - 1) * row for (_, stop), row in zip(box, rows, strict=True)) + itemsize
        return piece_contribution(crc, len(data), leaf.nbytes - end)
    outer, height = box[: axis - 1], box[axis - 1][1] - box[axis - 1][0]
    total = at = 0
    for index in np.ndindex(*shape_of(outer)):
        crcs: list[int] = []
        for _ in range(height):
            crcs.append(crc32c(data[at : at + run]))
            at += run
        end = sum((start + i) * row for (start, _), i, row in zip(outer, index, rows, strict=False))
        end += (box[axis - 1][1] - 1) * rows[axis - 1] + box[axis][1] * rows[axis]
        total ^= shift_contribution(
            strided_contribution(crcs, run, rows[axis - 1]), leaf.nbytes - end
        )
    return total


def pieces_contribution(leaf: Leaf) -> int:
    """The contribution of the pieces that this process has to the CRC of a leaf."""
    scratch, pieces, total = Scratch(), fetch_pieces(leaf.pieces), 0
    for outer, _ in pieces:
        shape = shape_of(outer)
        for _, cell in iter_cells(shape, chunk_shape(shape, leaf.dtype.itemsize)):
            box = tuple(
                (first + start, first + stop)
                for (first, _), (start, stop) in zip(outer, cell, strict=True)
            )
            data = gather_box(box, leaf, pieces, scratch)
            if data:
                total ^= crc_contribution(data, box, leaf, crc32c(data))
    return total


def leaf_crcs(leaves: Iterable[Leaf]) -> Iterator[int]:
    """The crc32c of each leaf's bytes in C order. This process must hold all of each leaf."""
    scratch = Scratch()
    for leaf in leaves:
        if leaf.text is not None:
            yield crc32c(leaf.text.encode())
            continue
        pieces, crc = fetch_pieces(leaf.pieces), 0
        for _, box in iter_cells(leaf.shape, chunk_shape(leaf.shape, leaf.dtype.itemsize)):
            crc = crc32c(gather_box(box, leaf, pieces, scratch), crc)
        yield crc
