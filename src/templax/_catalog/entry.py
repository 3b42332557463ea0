"""Leaves, chunks and byte ranges: what every layout on disk is reduced to."""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec
import numpy as np

from .._core.boxes import Box, Shape
from .._core.dtypes import name_of
from .._core.names import Path

Kind = Literal["array", "scalar", "string", "key"]


# A checkpoint may have a million of the three below: a Struct is made in a tenth of the time of a
# frozen dataclass, and the garbage collector has nothing to visit in it.


class Extent(msgspec.Struct, frozen=True, gc=False):
    """A byte range of an object in a source.

    Attributes:
        key: Object (file) in the source; of the index when `inline` is set.
        start, stop: Bytes, half open.
        inline: The bytes themselves, when the index held them.
    """

    key: str
    start: int
    stop: int
    inline: bytes | memoryview | None = None

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """An extent that decodes to a box of a leaf.

    Attributes:
        extent: Where the encoded bytes are.
        box: Range of the leaf, in elements. May reach past the leaf's edge: the excess is padding.
        codecs: Names of the decoders, in the order in which they are applied to the stored bytes
            (see `_codecs.decode`). Empty: the bytes are the elements.
        order: "C" (last dimension fastest) or "F".
        checked: Whether a checksum covers the bytes, which is checked when they are decoded, or was
            when the index that holds them was read.
        sums: The crc32c of each `block` stored bytes, in order; the last block may be shorter.
            Empty: none is known.
        block: Bytes that one of `sums` covers.
    """

    extent: Extent
    box: Box
    codecs: tuple[str, ...] = ()
    order: Literal["C", "F"] = "C"
    checked: bool = False
    sums: tuple[int, ...] = ()
    block: int = 0


class LeafEntry(msgspec.Struct, frozen=True, gc=False):
    """One leaf of a checkpoint, as its metadata describes it.

    Attributes:
        name: Key path joined by `.`.
        path: Elements of the key path; ints are indices of a list or tuple.
        shape: In elements. Of a typed PRNG key: of its uint32 key data.
        dtype: As stored. Of a string: `np.dtype(str)`.
        kind: "scalar" is a Python or numpy number, "key" a typed PRNG key.
        key_impl: Of a key: the PRNG implementation, such as "threefry2x32".
        value: Of a string: the string.
        saved_sharding: How it was laid out when it was saved. Shown, never obeyed.
        handle: Private to the format.
    """

    name: str
    path: Path
    shape: Shape
    dtype: np.dtype
    kind: Kind = "array"
    key_impl: str | None = None
    value: str | None = None
    saved_sharding: str | None = None
    handle: Any = None

    def __repr__(self) -> str:
        return f"LeafEntry({self.name!r}, {self.dtype_name}{self.user_shape}, {self.kind})"

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded values."""
        if self.value is not None:
            return len(self.value.encode())
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def dtype_name(self) -> str:
        """As errors and listings spell it: `bfloat16`, `key<threefry2x32>`, `str`."""
        if self.kind == "key":
            return f"key<{self.key_impl}>"
        return "str" if self.kind == "string" else name_of(self.dtype)

    @property
    def user_shape(self) -> Shape:
        """As a user sees it: of a key array without the dimension of its key data."""
        return self.shape[:-1] if self.kind == "key" else self.shape
