"""What is there: leaves, and where their bytes are. Every layout on disk is reduced to this."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import msgspec
import numpy as np

from ._boxes import Box, Shape
from ._dtypes import name_of
from ._errors import CheckpointError, Damaged
from ._names import Path
from .sources import Source

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
            (see `_codecs`). Empty: the bytes are the elements.
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


class Locator(Protocol):
    """See `Catalog.locate`."""

    def __call__(
        self, entries: Iterable[LeafEntry], damages: list[Damaged] | None = None, /
    ) -> dict[str, tuple[Chunk, ...]]: ...


def note(
    error: CheckpointError, damages: list[Damaged] | None, cause: BaseException | None = None
) -> None:
    """Raises an error that a locator found, unless it is a damage that shall be listed."""
    if damages is None or not isinstance(error, Damaged):
        raise error from cause
    damages.append(error)


@dataclass(frozen=True, repr=False)
class Catalog:
    """A checkpoint opened: its leaves and metadata, no array byte read.

    Attributes:
        url: Where it is.
        format: Name of the layout, such as "orbax".
        evidence: Why the layout was recognised.
        entries: Every leaf, in the order of the file. Two may share a name (see `leaves`).
        source: Where extents are read from.
        locator: Entry → its chunks; reads indexes, never array bytes.
        metadata: What the checkpoint says of itself: step, item, custom metadata, ...
        empties: Name → what is recorded there instead of a leaf (`None`, `Dict`, `List`, ...).
        uncommitted: Why this is not a finished save, or None.
        audit: What `verify` finds damaged beside the chunks of leaves, such as small files that
            have a checksum; None if there is nothing that was not checked when it was opened.
        fingerprints: Name → crc32c of the leaf's bytes in C order, if the checkpoint records them.
    """

    url: str
    format: str
    evidence: str
    entries: tuple[LeafEntry, ...]
    source: Source
    locator: Locator
    metadata: Mapping[str, Any] = field(default_factory=dict)
    empties: Mapping[Path, str] = field(default_factory=dict)
    uncommitted: str | None = None
    audit: Callable[[], Iterable[Damaged]] | None = None
    fingerprints: Callable[[], Mapping[str, int]] | None = None

    def __repr__(self) -> str:
        return f"Catalog({self.url!r}, {self.format}, {len(self.entries):,} leaves)"

    @functools.cached_property
    def leaves(self) -> Mapping[str, LeafEntry]:
        """Name → leaf. Of leaves that share a name the first; `match` reports them."""
        result: dict[str, LeafEntry] = {}
        for entry in self.entries:
            result.setdefault(entry.name, entry)
        return result

    @property
    def nbytes(self) -> int:
        """Bytes of all decoded leaves."""
        return sum(entry.nbytes for entry in self.entries)

    def locate(
        self, entries: Iterable[LeafEntry], damages: list[Damaged] | None = None
    ) -> dict[str, tuple[Chunk, ...]]:
        """Where the bytes of some leaves are.

        Args:
            entries: Leaves of this catalog, no two of one name.
            damages: Gets what is damaged, in place of an error: then the chunks are those that are
                known, and their files may be missing or cut, which nobody has looked for.

        Returns:
            Name → chunks that tile the leaf.

        Raises:
            Damaged: An index is unreadable, or lacks a chunk that it must have.
            Unsupported: A codec that templax does not read.
        """
        return self.locator(entries) if damages is None else self.locator(entries, damages)

    def template(self) -> Any:
        """The checkpoint's own tree, abstract: what `restore` needs to load all of it.

        Returns:
            Nested dicts and lists of `jax.ShapeDtypeStruct` without sharding; one dict of all names
            where a name is of a leaf and of a subtree (safetensors allows it). Python numbers and
            strings are their types; 64-bit arrays are abstract numpy arrays (no memory) unless JAX
            has 64-bit types enabled, since a `jax.Array` could not hold them.

        Example:
            >>> import templax as tx
            >>> catalog = tx.open("tests/corpus/orbax-0.12.8-default/ckpt")
            >>> tree = tx.restore(catalog, catalog.template())
            >>> tree["state"]["params"]["layers"][0]["w"].shape
            (8, 6)
        """
        from ._abstract import catalog_template

        return catalog_template(self)
