"""The leaves of a save in progress, and the table of their chunks. No I/O, no JAX."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec
import numpy as np

from .._codecs.crc32c import crc32c
from .._codecs.crc_combine import combine_crcs, crc_of_zeros
from .._core.boxes import Box, Shape, full_box
from .._core.chunk_grid import grid_shape, is_row_major
from .._core.dtypes import name_of
from .._core.names import Path
from ..errors import SaveError

NO_FILE = 0xFFFFFFFF
"""In a column of indices into a table: no entry."""

ValueType = Literal["jax.Array", "np.ndarray", "scalar", "string"]


class Leaf(msgspec.Struct, gc=False):
    """One leaf of a tree that is being saved.

    Attributes:
        name, path: As in `LeafEntry`.
        value_type: As Orbax's metadata names it.
        shape: In elements. For a typed PRNG key, the shape of its uint32 key data.
        dtype: In native byte order.
        key_impl: PRNG implementation of a key; None for other leaves.
        text: The string, if the leaf is one.
        sharding: As Orbax serialises it; None if the leaf is not a `jax.Array`.
        pieces: Pairs of a box and a function that returns its values in host memory, C-contiguous
            or not. The pieces of all processes together tile the leaf.
        transient: Whether calling a piece copies it from a device.
        is_python: Whether the leaf is a number of Python, rather than one of NumPy.
        tile: If several processes hold the leaf, the shape of each of their boxes.
        owners: If several processes hold the leaf, each box and the process that writes it.
        nbytes: The size of its values; what is passed for it is replaced.
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
    is_python: bool = False
    tile: Shape | None = None
    owners: tuple[tuple[Box, int], ...] = ()
    nbytes: int = 0

    def __post_init__(self) -> None:
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize  # once, as it is read often

    @property
    def dtype_name(self) -> str:
        """As `LeafEntry.dtype_name` spells it."""
        if self.key_impl is not None:
            return f"key<{self.key_impl}>"
        return "str" if self.text is not None else name_of(self.dtype)

    @property
    def user_shape(self) -> Shape:
        return self.shape if self.key_impl is None else self.shape[:-1]


def hold_array(array: np.ndarray) -> tuple[tuple[Box, Callable[[], np.ndarray]], ...]:
    """The pieces of a leaf that is one array in host memory."""
    # A method of the array, rather than a function that refers to it, is one object instead of
    # three, which the garbage collector visits for each leaf.
    return ((full_box(array.shape), array.__array__),)


class ChunkTable:
    """Where each chunk of each leaf is stored.

    Columns have one row per chunk, leaf after leaf, and within a leaf in C order of its grid.

    Attributes:
        first_chunk: The row of each leaf's first chunk, followed by the total number of chunks.
        file, offset, nbytes, crc: Number of the data file, first byte, length and crc32c of each
            chunk as stored. `file` is `NO_FILE` until the chunk has been written.
        element_crc: The crc32c of each chunk's elements before compression. If they are not one
            contiguous range of the leaf, this is their contribution to the crc32c of the leaf
            (see `_codecs.crc_combine`).
    """

    def __init__(self, leaves: Sequence[Leaf], chunks: Sequence[Shape]):
        counts = [
            0 if leaf.value_type == "string" else math.prod(grid_shape(leaf.shape, chunk))
            for leaf, chunk in zip(leaves, chunks, strict=True)
        ]
        self.first_chunk: list[int] = [0, *np.cumsum(counts, dtype=np.int64).tolist()]
        total = self.first_chunk[-1]
        self.file = np.full(total, NO_FILE, "<u4")
        self.offset = np.zeros(total, "<u8")
        self.nbytes = np.zeros(total, "<u8")
        self.crc = np.zeros(total, "<u4")
        self.element_crc = np.zeros(total, "<u4")

    @property
    def columns(self) -> tuple[np.ndarray, ...]:
        return self.file, self.offset, self.nbytes, self.crc, self.element_crc

    def fingerprints(self, leaves: Sequence[Leaf], chunks: Sequence[Shape]) -> np.ndarray:
        """The crc32c of each leaf's bytes in C order, once every chunk has been written."""
        found = np.zeros(len(leaves), "<u4")
        first = np.array(self.first_chunk)
        sole = np.flatnonzero(np.diff(first) == 1)
        found[sole] = self.element_crc[first[sole]]
        for i in np.flatnonzero(np.diff(first) > 1).tolist():
            leaf, chunk = leaves[i], chunks[i]
            crcs = self.element_crc[first[i] : first[i + 1]]
            if is_row_major(leaf.shape, chunk):
                block = math.prod(chunk) * leaf.dtype.itemsize
                found[i] = combine_crcs(crcs.tolist(), block, leaf.nbytes)
            else:
                found[i] = int(np.bitwise_xor.reduce(crcs)) ^ crc_of_zeros(leaf.nbytes)
        for i, leaf in enumerate(leaves):
            if leaf.text is not None:
                found[i] = crc32c(leaf.text.encode())
        return found


def refuse_leaves(wrong: Sequence[str], hint: str | None = None) -> None:
    """Raises SaveError if there is anything that keeps a tree from being saved.

    Args:
        wrong: What is wrong, as sentences that each begin with the name of a leaf.
        hint: What to do about it.
    """
    if wrong:
        rest = f"; and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        named = [f"it{text[2:]}" if text.startswith("`` ") else text for text in wrong[:20]]
        text = f"This tree can't be saved: {'; '.join(named)}{rest}"
        raise SaveError(text.encode(errors="backslashreplace").decode(), hint=hint)
