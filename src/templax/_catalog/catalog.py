"""What is there: leaves, and where their bytes are. Every layout on disk is reduced to this."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from .._core.names import Path
from ..errors import CheckpointError, Corrupted
from ..storage.source import Source
from .entry import Chunk, LeafEntry


class Locator(Protocol):
    """See `Catalog.locate`."""

    def __call__(
        self, entries: Iterable[LeafEntry], damages: list[Corrupted] | None = None, /
    ) -> dict[str, tuple[Chunk, ...]]: ...


def record_damage(
    error: CheckpointError, damages: list[Corrupted] | None, cause: BaseException | None = None
) -> None:
    """Raises an error that a locator found, unless it is a damage that shall be listed."""
    if damages is None or not isinstance(error, Corrupted):
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
    audit: Callable[[], Iterable[Corrupted]] | None = None
    fingerprints: Callable[[], Mapping[str, int]] | None = None

    def __repr__(self) -> str:
        return f"Catalog({self.url!r}, {self.format}, {len(self.entries):,} leaves)"

    @functools.cached_property
    def leaves(self) -> Mapping[str, LeafEntry]:
        """Name → leaf. Of leaves that share a name the first; `match_leaves` reports them."""
        result: dict[str, LeafEntry] = {}
        for entry in self.entries:
            result.setdefault(entry.name, entry)
        return result

    @property
    def nbytes(self) -> int:
        """Bytes of all decoded leaves."""
        return sum(entry.nbytes for entry in self.entries)

    def locate(
        self, entries: Iterable[LeafEntry], damages: list[Corrupted] | None = None
    ) -> dict[str, tuple[Chunk, ...]]:
        """Where the bytes of some leaves are.

        Args:
            entries: Leaves of this catalog, no two of one name.
            damages: Gets what is damaged, in place of an error: then the chunks are those that are
                known, and their files may be missing or cut, which nobody has looked for.

        Returns:
            Name → chunks that tile the leaf.

        Raises:
            Corrupted: An index is unreadable, or lacks a chunk that it must have.
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
        from .abstract_tree import build_abstract_tree  # imports JAX

        return build_abstract_tree(self.entries, self.empties)
