"""The byte ranges of tensors, which may view a storage with any strides."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Literal

from ..._catalog.entry import Chunk, Extent
from ..._catalog.strided import make_strided_chunk
from ..._core.boxes import Shape, full_box
from ...errors import Unsupported
from .objects import Tensor

_MAX_APART = 1 << 10
"""Most pieces of a tensor that is not contiguous. One of more is read as a single range, with what
lies between its elements, unless elements overlap."""

_MAX_PIECES = 1 << 14
"""Most pieces of a tensor whose elements overlap."""

_MAX_ALL_PIECES = 1 << 17
"""Most pieces of all such tensors, of a call."""


class Pieces:
    """Splits tensors into chunks, and counts them."""

    def __init__(self) -> None:
        self._left = _MAX_ALL_PIECES

    def locate(self, tensor: Tensor, key: str, start: int) -> tuple[Chunk, ...]:
        """The chunks of a tensor.

        Args:
            tensor: Any tensor whose elements lie within its storage.
            key: The object that has the storage.
            start: Where the storage begins in it.

        Raises:
            Unsupported: The tensor has too many pieces.
        """
        shape, itemsize = tensor.shape, tensor.dtype.itemsize
        if 0 in shape:
            return ()
        inner, order = _find_run(shape, tensor.strides)
        outer = [i for i in range(len(shape)) if i not in inner and shape[i] > 1]
        count = math.prod(shape[i] for i in outer)
        if outer and count > min(_MAX_APART, self._left):  # read as one range, gaps included
            extent = cover_tensor(tensor, key, start).extent
            whole = make_strided_chunk(extent, shape, tensor.strides, tensor.dtype)
            if whole is not None:
                return (whole,)
            if count > min(_MAX_PIECES, self._left):
                raise Unsupported(
                    f"templax reads tensors whose elements overlap in at most {_MAX_PIECES}"
                    f" pieces, and {_MAX_ALL_PIECES} of all, got one of {count}",
                    hint="save `tensor.contiguous()`",
                )
        self._left -= count if outer else 0
        nbytes = math.prod(shape[i] for i in inner) * itemsize
        chunks: list[Chunk] = []
        for index in itertools.product(*(range(shape[i]) for i in outer)):
            box = list(full_box(shape))
            at = tensor.offset
            for i, n in zip(outer, index, strict=True):
                box[i] = (n, n + 1)
                at += n * tensor.strides[i]
            first = start + at * itemsize
            chunks.append(Chunk(Extent(key, first, first + nbytes), tuple(box), (), order))
        return tuple(chunks)


def cover_tensor(tensor: Tensor, key: str, start: int) -> Chunk:
    """The range from a tensor's first element to its last, as a chunk that nothing decodes.

    Args:
        tensor: A tensor that has elements.
        key, start: See `Pieces.locate`.
    """
    steps = zip(tensor.shape, tensor.strides, strict=True)
    reach = 1 + sum((n - 1) * step for n, step in steps)
    first = start + tensor.offset * tensor.dtype.itemsize
    stop = first + reach * tensor.dtype.itemsize
    return Chunk(Extent(key, first, stop), full_box(tensor.shape), ("strided",))


def _find_run(shape: Shape, strides: Shape) -> tuple[list[int], Literal["C", "F"]]:
    """The most dimensions that lie in the storage without gaps, in C or F order."""
    run: list[int] = []
    size = 1
    for i in sorted(_iter_long(shape), key=lambda i: strides[i]):
        if strides[i] == size:
            run.append(i)
            size *= shape[i]
    if len(run) > 1 and run[0] < run[1]:
        return _take_monotonic(run, 1), "F"
    return _take_monotonic(run, -1), "C"


def _take_monotonic(run: list[int], step: int) -> list[int]:
    n = next((k for k in range(1, len(run)) if (run[k] - run[k - 1]) * step < 0), len(run))
    return run[:n]


def _iter_long(shape: Shape) -> Iterator[int]:
    return (i for i, n in enumerate(shape) if n > 1)
