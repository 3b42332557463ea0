"""The contents of a checkpoint: its leaves and the byte ranges that store them.

Every format is reduced to a `Catalog`; the stages after it never see the layout on disk.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from .._core.boxes import Shape
from .._core.names import Path, check_depths, check_names
from .._core.text import list_names
from .._escape import join_lines
from ..errors import CheckpointError, Corrupted, Unsupported
from ..storage.source import Source
from .entry import Chunk, LeafEntry
from .regions import Region
from .tree_rows import format_total, format_tree, measure_leaves

MAX_EMPTIES, LEAF_EMPTIES = 1 << 16, 16
"""Maximum number of empty nodes in a tree: a fixed allowance, and this many more per leaf."""

MAX_ROWS = 40
"""Rows of the tree that `print(catalog)` shows."""


class Locator(Protocol):
    """A function that finds the chunks of leaves; see `Catalog.locate`."""

    def __call__(
        self, entries: Iterable[LeafEntry], damages: list[Corrupted] | None = None, /
    ) -> dict[str, tuple[Chunk, ...]]: ...


def record_damage(
    error: CheckpointError, damages: list[Corrupted] | None, cause: BaseException | None = None
) -> None:
    """Adds an error to `damages`, or raises it if there is no list or it isn't `Corrupted`."""
    if damages is None or not isinstance(error, Corrupted):
        raise error from cause
    damages.append(error)


def explain_refusal(error: Unsupported) -> str:
    """Why a leaf is listed in `Catalog.unread`, and what would help."""
    return error.what if error.hint is None else f"{error.what}; {error.hint}"


@dataclass(frozen=True, repr=False)
class Catalog:
    """An open checkpoint: its leaves and metadata. No array bytes have been read.

    `templax.open` returns one. The other functions accept it in place of a path, which saves
    opening the checkpoint again.

    Attributes:
        url: Path or URL of the checkpoint.
        format: Name of the format, such as "orbax".
        evidence: Why the format was recognised, in words.
        entries: Every leaf, in the order of the file. Two may share a name (see `leaves`).
        source: The source that extents are read from.
        locator: Finds the chunks of entries; reads indexes, never array bytes. Use `locate`.
        metadata: What the checkpoint records about itself: step, item, custom metadata, ...
        empties: Key path → what is recorded there instead of a leaf (`None`, `Dict`, `List`, ...).
        unread: Leaves that the checkpoint has and templax can't read, so that they are not in
            `entries`: name → why.
        uncommitted: Why this is not a finished save; None if it is one.
        audit: Yields the damage that `verify` looks for outside the chunks of leaves, such as in
            small files with a checksum. None if opening the checkpoint has checked everything.
        audits_values: Whether `audit` compares a checksum of all stored bytes of the leaves.
        fingerprints: Returns name → crc32c of the leaf's bytes in C order. None if the checkpoint
            does not record them.
        positional: Whether the leaves have no names but `0`, `1`, ...: their order is that of the
            leaves of the tree that was saved, and of the template that they are restored with.
        regions: Yields what the bytes are that hold no values of leaves, for `account_bytes`: the
            headers, indexes and metadata of the files. None if there are none.
        chunk_shapes: Returns name → shape of the chunks in which each array is stored. None if the
            format does not divide arrays.
        base: For a view, the checkpoint that it shows.
        fit: For a view whose sizes may depend on what it is restored into: opens it again, with
            the shapes and dtypes that a template expects, by the names of the leaves.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> import templax as tx
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     path = pathlib.Path(directory, "ckpt")
        ...     _ = tx.save(path, {"params": {"w": np.zeros((8, 6), np.float32)}, "step": 3})
        ...     catalog = tx.open(path)
        >>> catalog.format, catalog.nbytes
        ('orbax', 200)
        >>> catalog.leaves["params.w"]
        LeafEntry('params.w', float32(8, 6), array)
        >>> print(catalog)
        /.../ckpt (orbax): 2 leaves, 200 B, 48 parameters
        params           1 leaf  192 B  48 parameters
          w     float32  (8, 6)  192 B
        step    int64    ()        8 B
    """

    url: str
    format: str
    evidence: str
    entries: tuple[LeafEntry, ...]
    source: Source
    locator: Locator
    metadata: Mapping[str, Any] = field(default_factory=dict)
    empties: Mapping[Path, str] = field(default_factory=dict)
    unread: Mapping[str, str] = field(default_factory=dict)
    uncommitted: str | None = None
    audit: Callable[[], Iterable[Corrupted]] | None = None
    audits_values: bool = False
    fingerprints: Callable[[], Mapping[str, int]] | None = None
    positional: bool = False
    regions: Callable[[], Iterable[Region]] | None = None
    chunk_shapes: Callable[[], Mapping[str, Shape]] | None = None
    base: Catalog | None = None
    fit: Callable[[Callable[[str], tuple[Shape, np.dtype] | None]], Catalog] | None = None

    def __post_init__(self) -> None:
        check_depths([entry.path for entry in self.entries])
        check_depths(self.empties.keys())
        maximum = MAX_EMPTIES + LEAF_EMPTIES * len(self.entries)
        if len(self.empties) > maximum:
            raise Unsupported(
                f"templax reads {maximum} empty nodes in trees of {len(self.entries)} leaves, got"
                f" {len(self.empties)}"
            )
        check_names([entry.name for entry in self.entries])

    def __repr__(self) -> str:
        return f"Catalog({self.url!r}, {self.format}, {len(self.entries):,} leaves)"

    def __str__(self) -> str:
        """The tree, as `templax ls` shows it, in at most `MAX_ROWS` rows."""
        lines = [f"{self.url} ({self.format}): {format_total(measure_leaves(self.entries))}"]
        if self.uncommitted is not None:
            lines.append(f"UNCOMMITTED: {self.uncommitted}")
        if self.unread:
            lines.append(f"not read: {list_names([*self.unread])}")
        return join_lines([*lines, *format_tree(self.entries, self.empties, MAX_ROWS)])

    @functools.cached_property
    def leaves(self) -> Mapping[str, LeafEntry]:
        """Name → leaf. If several leaves share a name, the first; matching reports the conflict."""
        result: dict[str, LeafEntry] = {}
        for entry in self.entries:
            result.setdefault(entry.name, entry)
        return result

    @property
    def nbytes(self) -> int:
        """Bytes of all leaves, decoded."""
        return sum(entry.nbytes for entry in self.entries)

    @property
    def parameter_count(self) -> int:
        """Number of elements of all leaves with a floating-point or complex dtype."""
        return sum(entry.parameter_count for entry in self.entries)

    def locate(
        self, entries: Iterable[LeafEntry], damages: list[Corrupted] | None = None
    ) -> dict[str, tuple[Chunk, ...]]:
        """The byte ranges of some leaves.

        Args:
            entries: Leaves of this catalog, with distinct names.
            damages: If given, damage is appended to this list instead of raised. The chunks
                returned are then those that are known, and it has not been checked whether their
                files exist and are complete.

        Returns:
            Name → chunks that tile the leaf.

        Raises:
            Corrupted: An index is unreadable, or lacks a chunk that it must have.
            Unsupported: A codec that templax does not read.
        """
        return self.locator(entries) if damages is None else self.locator(entries, damages)

    def template(self, *, decodable_only: bool = False) -> Any:
        """An abstract tree of the whole checkpoint: the template with which `restore` loads it all.

        Args:
            decodable_only: Whether `...` takes the place of leaves that templax can't decode (see
                `LeafEntry.undecodable`), too. Otherwise a restore of them is an error.

        Returns:
            Nested dicts and lists of `jax.ShapeDtypeStruct` without sharding. Python numbers and
            strings are represented by their types. 64-bit arrays are abstract numpy arrays, which
            take no memory, unless JAX has 64-bit types enabled, because a `jax.Array` could not
            hold them. Where JAX is not installed, all arrays are, and only typed PRNG keys can't
            be restored. If a name is both a leaf and a subtree, which safetensors allows, the
            result is one flat dict of all names. `...` takes the place of what is in `unread`, and
            is returned there.

        Example:
            >>> import pathlib, tempfile
            >>> import numpy as np
            >>> import templax as tx
            >>> with tempfile.TemporaryDirectory() as directory:
            ...     path = pathlib.Path(directory, "ckpt")
            ...     _ = tx.save(path, {"layers": [{"w": np.zeros((8, 6), np.float32)}]})
            ...     catalog = tx.open(path)
            ...     tree = tx.restore(catalog, catalog.template())
            >>> tree["layers"][0]["w"].shape
            (8, 6)
        """
        from .abstract_tree import build_abstract_tree  # imports JAX, if it is installed

        skipped = {e.name for e in self.entries if decodable_only and e.undecodable is not None}
        return build_abstract_tree(self.entries, self.empties, self.unread, skipped)
