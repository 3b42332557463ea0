"""Leaves, chunks and byte ranges: the data that every format is reduced to."""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec
import numpy as np

from .._core.boxes import Box, Shape
from .._core.dtypes import class_of, name_of
from .._core.index_map import IndexMap
from .._core.names import Path

Kind = Literal["array", "scalar", "string", "key"]


# A checkpoint may have a million of each class below. Constructing a msgspec Struct takes a tenth
# of the time of a frozen dataclass, and with `gc=False` the garbage collector never visits it.


class Extent(msgspec.Struct, frozen=True, gc=False):
    """A byte range of an object in a source.

    Attributes:
        key: Object (file) in the source. When `inline` is set, the file of the index.
        start, stop: Bytes, half open.
        inline: The bytes themselves, if the index stores them.
    """

    key: str
    start: int
    stop: int
    inline: bytes | memoryview | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        inline = None if self.inline is None else bytes(self.inline)  # views can't be pickled
        return Extent, (self.key, self.start, self.stop, inline)

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


class Origin(msgspec.Struct, frozen=True, gc=False):
    """What a chunk holds, if that is not simply its box of the leaf.

    A mapping makes leaves of parts of others, and elements may be stored in any order, or apart.

    Attributes:
        box: Range of the stored leaf, in elements. For a strided chunk, which has no stored leaf,
            the whole chunk.
        dtype: As stored.
        map: Which elements of what is stored are which of this leaf.
        scale, add: If not None, the values are computed: `x.astype(float32) * scale + add`, or in
            float64 if `dtype` is that.
    """

    box: Box
    dtype: np.dtype
    map: IndexMap
    scale: float | None = None
    add: float | None = None

    @property
    def is_computed(self) -> bool:
        return self.scale is not None or self.add is not None


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """An extent that decodes to a box of a leaf.

    Attributes:
        extent: The encoded bytes.
        box: Range of the leaf, in elements. May reach past the leaf's edge: the excess is padding.
        codecs: Names of the decoders, in the order in which they are applied to the stored bytes
            (see `_codecs.decode`). If empty, the stored bytes are the elements.
        order: "C" (last dimension fastest) or "F".
        checked: Whether a checksum covers the bytes. It is verified when they are decoded, or was
            verified when the index that stores them was read.
        sums: The crc32c of each `block` stored bytes, in order; the last block may be shorter.
            Empty if no checksum is known.
        block: Number of bytes that each of `sums` covers.
        origin: Set if a mapping makes the leaf of parts of other leaves, or if the elements do not
            lie in the order of `order` (see `strided`). The chunk decodes to `origin.box`, and
            `box` is the smallest around what that is in this leaf.
        stored_as: In a view, the name of the stored leaf, for errors.
    """

    extent: Extent
    box: Box
    codecs: tuple[str, ...] = ()
    order: Literal["C", "F"] = "C"
    checked: bool = False
    sums: tuple[int, ...] = ()
    block: int = 0
    origin: Origin | None = None
    stored_as: str | None = None

    @property
    def stored_box(self) -> Box:
        """The box of the stored leaf that the extent decodes to."""
        return self.box if self.origin is None else self.origin.box


class LeafSpec(msgspec.Struct, frozen=True, gc=False):
    """What identifies a leaf and its values; shared by `LeafEntry` and by a template's `Target`.

    Attributes:
        name: Key path joined by `.`.
        path: Elements of the key path; ints are indices of a list or tuple.
        shape: In elements. For a typed PRNG key, the shape of its uint32 key data.
        dtype: For a string, `np.dtype(str)`.
        kind: What a leaf holds. Subclasses narrow this to the kinds that they allow.
        key_impl: PRNG implementation of a key, such as "threefry2x32"; None for other leaves.
    """

    name: str
    path: Path
    shape: Shape
    dtype: np.dtype
    kind: str = "array"
    key_impl: str | None = None

    @property
    def dtype_name(self) -> str:
        """The dtype as errors and listings spell it: `bfloat16`, `key<threefry2x32>`, `str`."""
        if self.kind == "key":
            return f"key<{self.key_impl}>"
        return "str" if self.kind == "string" else name_of(self.dtype)

    @property
    def user_shape(self) -> Shape:
        """The shape that a user sees: for keys, without the dimension of the key data."""
        return self.shape[:-1] if self.kind == "key" else self.shape


class LeafEntry(LeafSpec, frozen=True, gc=False):
    """One leaf of a checkpoint, as its metadata describes it.

    Attributes:
        name: Key path joined by `.`.
        path: Elements of the key path; ints are indices of a list or tuple.
        shape: In elements. For a typed PRNG key, the shape of its uint32 key data.
        dtype: As stored. For a string, `np.dtype(str)`.
        kind: "scalar" is a Python or numpy number, "key" a typed PRNG key.
        key_impl: PRNG implementation of a key, such as "threefry2x32"; None for other leaves.
        value: The string, if the leaf is one.
        saved_sharding: Sharding that the leaf was saved with. Informational; never used for
            placement.
        handle: Private to the format that made the entry.
        quantisation: How the values are stored, such as "Q4_K", if they must be computed from
            fewer bits. `dtype` is then that of the result.
        made_from: In a view, the stored leaves that it is made of, in words.
        undecodable: Why templax can't decode the values, such as a codec that it does not know;
            None if nothing in the metadata says so.

    Example:
        >>> import numpy as np
        >>> entry = LeafEntry("params.w", ("params", "w"), (8, 6), np.dtype("float32"))
        >>> entry
        LeafEntry('params.w', float32(8, 6), array)
        >>> entry.nbytes
        192
    """

    kind: Kind = "array"
    value: str | None = None
    saved_sharding: str | None = None
    handle: Any = None
    quantisation: str | None = None
    made_from: str | None = None
    undecodable: str | None = None

    def __repr__(self) -> str:
        return f"LeafEntry({self.name!r}, {self.dtype_name}{self.user_shape}, {self.kind})"

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded values."""
        if self.value is not None:
            return len(self.value.encode())
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def parameter_count(self) -> int:
        """Number of elements if they are floating-point or complex numbers, else 0.

        What a leaf is for is not stored: the statistics of an optimizer count like the weights.
        """
        return math.prod(self.shape) if class_of(self.dtype) in ("float", "complex") else 0
