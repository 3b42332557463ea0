"""What is saved, and how each leaf is cut into chunks. Pure: no I/O, no JAX."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .._codecs.crc32c import crc32c
from .._codecs.crc_combine import combine_crcs, crc_of_zeros
from .._core.boxes import Box, Shape
from .._core.chunk_grid import grid_shape, is_row_major
from .._core.dtypes import name_of
from .._core.names import Path

NO_FILE = 0xFFFFFFFF
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


class ChunkTable:
    """Where each chunk of each leaf lies: columns over all chunks, in C order of each leaf's grid.

    Attributes:
        first: Of each leaf, the number of its first chunk; and of all chunks at the end.
        file, offset, nbytes, crc: Of each chunk, as it is stored. `file` is `NONE` until then.
        plain: Of each chunk, the CRC of its elements; of one whose elements are no single range of
            the leaf, what they add to that of the leaf.
    """

    def __init__(self, leaves: Sequence[Leaf], chunks: Sequence[Shape]):
        counts = [
            0 if leaf.value_type == "string" else math.prod(grid_shape(leaf.shape, chunk))
            for leaf, chunk in zip(leaves, chunks, strict=True)
        ]
        self.first: list[int] = [0, *np.cumsum(counts, dtype=np.int64).tolist()]
        total = self.first[-1]
        self.file = np.full(total, NO_FILE, "<u4")
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
            if is_row_major(leaf.shape, chunk):
                block = math.prod(chunk) * leaf.dtype.itemsize
                found[i] = combine_crcs(plain.tolist(), block, leaf.nbytes)
            else:
                found[i] = int(np.bitwise_xor.reduce(plain)) ^ crc_of_zeros(leaf.nbytes)
        for i, leaf in enumerate(leaves):
            if leaf.text is not None:
                found[i] = crc32c(leaf.text.encode())
        return found
