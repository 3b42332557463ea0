"""What is saved, and how each leaf is cut into chunks. Pure: no I/O, no JAX."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ._boxes import Box, Shape, contiguous, whole
from ._codecs import crc32c
from ._crc import joined, zeros
from ._dtypes import name_of
from ._names import Path

CHUNK_BYTES = 4 * 1024 * 1024
"""Most bytes of a chunk, where a row fits. One is the least that is read, and checked, by who needs
a part; small ones cost keys in the index. Also what the engine reads at once without splitting."""

NONE = 0xFFFFFFFF
"""In a column of numbers into a table: no entry."""

ValueType = Literal["jax.Array", "np.ndarray", "scalar", "string"]


@dataclass(slots=True)
class Leaf:
    """One leaf of a tree that is saved.

    Attributes:
        name, path: As of a `LeafEntry`.
        value_type: As Orbax's metadata names it.
        shape: In elements. Of a typed PRNG key: of its uint32 key data.
        dtype: In native byte order.
        key_impl: Of a key: the PRNG implementation.
        text: Of a string: the string.
        sharding: As Orbax serialises it; None of what is no `jax.Array`.
        pieces: Box → its values in host memory, C-contiguous or not. Together, with those of other
            processes, they are the leaf.
        transient: Calling a piece copies it from a device.
        tile: Of a leaf that is on several processes: the shape of each of their boxes.
        owners: Of such a leaf: each box, and the process that writes it.
    """

    name: str
    path: Path
    value_type: ValueType
    shape: Shape
    dtype: np.dtype
    key_impl: str | None = None
    text: str | None = None
    sharding: str | None = None
    pieces: tuple[tuple[Box, Callable[[], np.ndarray]], ...] = ()
    transient: bool = False
    tile: Shape | None = None
    owners: tuple[tuple[Box, int], ...] = ()

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def dtype_name(self) -> str:
        """As a `LeafEntry` names it."""
        if self.key_impl is not None:
            return f"key<{self.key_impl}>"
        return "str" if self.text is not None else name_of(self.dtype)

    @property
    def user_shape(self) -> Shape:
        return self.shape if self.key_impl is None else self.shape[:-1]


@functools.lru_cache(maxsize=4096)
def chunk_shape(shape: Shape, itemsize: int, *, padded: bool = True) -> Shape:
    """The shape of the chunks of an array: whole trailing dimensions, cut along the first that has
    to be, so that in C order they are one range of bytes.

    The cuts are where most meshes cut, too: equal chunks, whose number has the largest power of two
    that fits; else (along the first dimension only) ones of which the last is padded at its end.

    Args:
        shape: Of the array, or of the part of it that a process has.
        itemsize: Bytes of an element.
        padded: Whether the last chunk may reach past the edge.

    >>> chunk_shape((8192, 4096), 4)
    (256, 4096)
    >>> chunk_shape((50257, 768), 2)
    (1733, 768)
    >>> chunk_shape((3, 4096, 4096), 2)
    (1, 512, 4096)
    >>> chunk_shape((0, 5), 4), chunk_shape((), 4)
    ((1, 5), ())
    """
    if 0 in shape:
        return tuple(max(1, n) for n in shape)
    chunk = list(shape)
    for axis, n in enumerate(shape):
        row = math.prod(shape[axis + 1 :]) * itemsize
        if n * row <= CHUNK_BYTES:
            break
        if row > CHUNK_BYTES:
            chunk[axis] = 1
            continue
        # Behind a dimension that is cut to 1, padding would lie between two chunks.
        chunk[axis] = _step(n, -(-n // (CHUNK_BYTES // row)), padded and axis == 0)
        break
    return tuple(chunk)


def _step(n: int, count: int, padded: bool) -> int:
    """Length of each of `count` parts of `n` or of up to twice as many, equal if possible."""
    equal = [c for c in range(count, 2 * count) if n % c == 0]
    if equal:
        return n // max(equal, key=lambda c: (c & -c, -c))  # a power of two of them, or nearly
    if padded:
        return -(-n // count)
    more = next((c for c in range(2 * count, 16 * count) if n % c == 0), None)
    return n // (more or max(c for c in range(1, count) if n % c == 0))


def cells(shape: Shape, chunk: Shape) -> Iterator[tuple[Shape, Box]]:
    """Each cell of the grid in C order, and its box within the array."""
    for cell in indices(shape, chunk):
        yield cell, box_of(cell, shape, chunk)


def indices(shape: Shape, chunk: Shape) -> Iterator[Shape]:
    """Each cell of the grid in C order."""
    return itertools.product(*map(range, grid(shape, chunk)))


@functools.lru_cache(maxsize=4096)
def sole(shape: Shape, chunk: Shape) -> Shape | None:
    """The only cell of a grid that has no other; as that of most leaves."""
    counts = grid(shape, chunk)
    return (0,) * len(counts) if all(n == 1 for n in counts) else None


@functools.lru_cache(maxsize=4096)
def grid(shape: Shape, chunk: Shape) -> Shape:
    """Number of chunks along each dimension."""
    return tuple(-(-n // c) for n, c in zip(shape, chunk, strict=True))


def box_of(cell: Shape, shape: Shape, chunk: Shape) -> Box:
    """The box of a cell, without what reaches past the edge."""
    return tuple((i * c, min(i * c + c, n)) for i, c, n in zip(cell, chunk, shape, strict=True))


@functools.lru_cache(maxsize=4096)
def in_order(shape: Shape, chunk: Shape) -> bool:
    """Whether chunks, one after the other, are the array in C order."""
    return contiguous(whole(chunk), shape)


class Places:
    """Where each chunk of each leaf lies: columns over all chunks, in C order of each leaf's grid.

    Attributes:
        first: Of each leaf, the number of its first chunk; and of all chunks at the end.
        file, offset, nbytes, crc: Of each chunk, as it is stored. `file` is `NONE` until then.
        plain: Of each chunk, the CRC of its elements; of one whose elements are no single range of
            the leaf, what they add to that of the leaf.
    """

    def __init__(self, leaves: Sequence[Leaf], chunks: Sequence[Shape]):
        counts = [
            0 if leaf.value_type == "string" else math.prod(grid(leaf.shape, chunk))
            for leaf, chunk in zip(leaves, chunks, strict=True)
        ]
        self.first: list[int] = [0, *np.cumsum(counts, dtype=np.int64).tolist()]
        total = self.first[-1]
        self.file = np.full(total, NONE, "<u4")
        self.offset = np.zeros(total, "<u8")
        self.nbytes = np.zeros(total, "<u8")
        self.crc = np.zeros(total, "<u4")
        self.plain = np.zeros(total, "<u4")

    @property
    def columns(self) -> tuple[np.ndarray, ...]:
        return self.file, self.offset, self.nbytes, self.crc, self.plain

    def fingerprints(self, leaves: Sequence[Leaf], chunks: Sequence[Shape]) -> np.ndarray:
        """The crc32c of each leaf's bytes in C order, once all chunks are there."""
        found = np.zeros(len(leaves), "<u4")
        first = np.array(self.first)
        sole = np.flatnonzero(np.diff(first) == 1)
        found[sole] = self.plain[first[sole]]
        for i in np.flatnonzero(np.diff(first) > 1).tolist():
            leaf, chunk = leaves[i], chunks[i]
            plain = self.plain[first[i] : first[i + 1]]
            if in_order(leaf.shape, chunk):
                block = math.prod(chunk) * leaf.dtype.itemsize
                found[i] = joined(plain.tolist(), block, leaf.nbytes)
            else:
                found[i] = int(np.bitwise_xor.reduce(plain)) ^ zeros(leaf.nbytes)
        for i, leaf in enumerate(leaves):
            if leaf.text is not None:
                found[i] = crc32c(leaf.text.encode())
        return found
