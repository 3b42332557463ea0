"""Reads back what was written, before it is committed, and compares it with what was read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._catalog.catalog import Catalog
from .._catalog.entry import LeafEntry
from .._catalog.written import ChunkTable, Leaf
from .._core.names import Path, join_path
from .._core.progress import Progress
from .._save.item import choose_chunk
from .._save.jobs import WriteOptions
from .._save.writer import Writer
from ..errors import CheckpointError, SaveError
from ..formats.registry import open_catalog
from ..storage.open import open_source
from ..storage.source import Source
from .read import LeafReader


class _Nowhere:
    """The data file of a `Writer` that only computes checksums."""

    def write(self, data: Any, offset: int) -> None:
        """Drops the bytes."""

    def sync(self) -> None:
        """Does nothing."""


def compute_crcs(
    catalog: Catalog,
    leaves: Sequence[Leaf],
    entries: Sequence[LeafEntry],
    threads: int,
    memory: int,
    progress: Progress | None = None,
) -> list[int]:
    """Reads leaves; the crc32c of each one's bytes in C order.

    Args:
        catalog: The checkpoint.
        leaves, entries: The leaves.
        threads, memory: See `convert`.
        progress: Called with the bytes read so far and in all.

    Raises:
        Corrupted, Unsupported: Bytes are missing or altered.
        SourceError: The storage failed.
    """
    named = {leaf.name: entry for leaf, entry in zip(leaves, entries, strict=True)}
    chunks = [choose_chunk(leaf) for leaf in leaves]
    table = ChunkTable(leaves, chunks)
    reader = LeafReader(catalog, named)
    options = WriteOptions(0, None, threads, memory, forget=False, reader=reader)
    writer = Writer(leaves, chunks, table, _Nowhere(), options)
    writer.start()
    writer.wait(progress)
    return table.fingerprints(leaves, chunks).tolist()


def compare_with_written(
    written: str | Source,
    leaves: Sequence[Leaf],
    empties: Sequence[tuple[Path, str]],
    crcs: Sequence[int],
    threads: int,
    memory: int,
    progress: Progress | None,
) -> None:
    """Opens what was written as any reader does, and compares its leaves and their values.

    Args:
        written: The path of the checkpoint before the commit, or a source of it.
        leaves: As they were to be written.
        empties: Nodes without a leaf, as they were to be written.
        crcs: The crc32c of each leaf, as read from the source and cast.
        threads, memory: See `convert`.
        progress: Called with the bytes read so far and in all.

    Raises:
        SaveError: It differs.
    """
    source = open_source(written)
    location = source.url
    try:
        catalog = open_catalog(source, uncommitted="allow")
        entries = [catalog.leaves.get(leaf.name) for leaf in leaves]
        if len(catalog.entries) != len(leaves):
            what = f"Expected to read back {len(leaves):,} leaves, got {len(catalog.entries):,}"
            raise SaveError(what, file=location)
        for leaf, entry in zip(leaves, entries, strict=True):
            wanted = (leaf.dtype_name, leaf.user_shape, leaf.text)
            got = None if entry is None else (entry.dtype_name, entry.user_shape, entry.value)
            if wanted != got:
                what = f"Expected to read back {wanted}, got {got}"
                raise SaveError(what, leaf=leaf.name, file=location)
        there = {join_path(path) for path in catalog.empties}
        for path, _ in empties:
            if join_path(path) not in there:
                what = "Expected to read back a node without leaves, found none"
                raise SaveError(what, leaf=join_path(path), file=location)
        known = [entry for entry in entries if entry is not None]
        read = compute_crcs(catalog, leaves, known, threads, memory, progress)
    except CheckpointError as error:
        raise SaveError(
            f"What was written can't be read back: {error.what}", leaf=error.leaf, file=error.file
        ) from error
    for leaf, crc, found in zip(leaves, crcs, read, strict=True):
        if crc != found:
            raise SaveError(
                f"Expected to read back values of crc32c {crc:08x}, got {found:08x}",
                leaf=leaf.name,
                file=location,
                hint="the disk or the memory of this machine is faulty; nothing was kept",
            )
