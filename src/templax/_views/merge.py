"""Several checkpoints as one: a catalog of the leaves of all."""

from __future__ import annotations

import functools
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from msgspec import structs

from .._catalog.catalog import Catalog, record_damage
from .._catalog.entry import Chunk, LeafEntry
from .._catalog.regions import Region
from .._core.gc_pause import pause_gc
from .._core.names import matches_pattern
from .._core.text import list_names
from ..errors import CheckpointError, Corrupted, MappingError, Unsupported, UsageError
from ..formats.registry import Checkpoint, open_checkpoint
from .merged_source import MergedSource, join_key, move_error

Part = Checkpoint | tuple[Checkpoint, str | Sequence[str]]
"""A checkpoint, or one with the patterns of the leaves that are taken of it."""


def merge(*checkpoints: Part) -> Merged:
    """Shows several checkpoints as one that has the leaves of all, without reading or writing any.

    The result takes the place of a checkpoint in every call, and in `view`. No leaf is computed
    from several: the weights of a LoRA stay beside those of the base, and adding them up is the
    model's task.

    Args:
        *checkpoints: See `open`. A tuple `(checkpoint, patterns)` takes only the leaves whose names
            match a pattern, or one of several; `*` stands for any characters.

    Raises:
        UsageError: No argument was given, or one is neither a checkpoint nor a tuple of a
            checkpoint and patterns.
        MappingError: By the calls that take the result: two checkpoints have a leaf of one name, or
            a pattern matches nothing. The error names both checkpoints.
        Unsupported: By these calls: a checkpoint is a view, or its leaves have no names.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> import templax as tx
        >>> at = pathlib.Path(tempfile.mkdtemp())
        >>> _ = tx.save(at / "base", {"w": np.zeros((4, 4)), "step": 100})
        >>> _ = tx.save(at / "lora", {"w_a": np.ones((4, 1)), "w_b": np.ones((1, 4)), "step": 7})
        >>> merged = tx.merge(at / "base", (at / "lora", "w_*"))
        >>> sorted(tx.open(merged).leaves)
        ['step', 'w', 'w_a', 'w_b']
        >>> int(tx.restore(merged, {"step": 0}, extra="ignore")["step"])
        100
    """
    return Merged(checkpoints)


class Merged:
    """Several checkpoints as one; `templax.merge` makes one.

    Attributes:
        parts: Each checkpoint with the patterns of the leaves that are taken of it; none for all.
    """

    def __init__(self, parts: Sequence[Part]):
        if not parts:
            raise UsageError("Expected checkpoints to merge, got none")
        self.parts: tuple[tuple[Checkpoint, tuple[str, ...]], ...] = tuple(map(_read_part, parts))

    def __repr__(self) -> str:
        shown = [
            repr(each if patterns else each[0]) for each in self.parts for patterns in each[1:]
        ]
        return f"merge({', '.join(shown)})"

    @pause_gc()
    def catalog(self) -> Catalog:
        """The leaves of all checkpoints."""
        catalogs = [_open_part(checkpoint) for checkpoint, _ in self.parts]
        patterns = [patterns for _, patterns in self.parts]
        chosen, evidence = _choose_entries(catalogs, patterns)
        source = MergedSource([catalog.source for catalog in catalogs])
        names = {
            entry.path[:k] for each in chosen for entry in each for k in range(len(entry.path))
        }
        leaves = {entry.name for each in chosen for entry in each}
        parts = _Parts(catalogs, source.roots)
        return Catalog(
            url=" + ".join(catalog.url for catalog in catalogs),
            format="merged",
            evidence=evidence,
            entries=tuple(
                structs.replace(entry, handle=(i, entry))
                for i, entries in enumerate(chosen)
                for entry in entries
            ),
            source=source,
            locator=parts.locate,
            empties={
                path: what
                for catalog, own in zip(catalogs, patterns, strict=True)
                for path, what in (catalog.empties.items() if not own else ())
                if path not in names
            },
            unread={
                name: why
                for catalog, own in zip(catalogs, patterns, strict=True)
                for name, why in (catalog.unread.items() if not own else ())
                if name not in leaves
            },
            audit=parts.audit if any(catalog.audit for catalog in catalogs) else None,
            audits_values=all(catalog.audits_values for catalog in catalogs),
            fingerprints=functools.partial(_join_fingerprints, catalogs, chosen)
            if all(catalog.fingerprints for catalog in catalogs)
            else None,
            regions=parts.list_regions,
        )


def _read_part(part: Part) -> tuple[Checkpoint, tuple[str, ...]]:
    if not isinstance(part, tuple):
        return part, ()
    if len(part) == 2:
        checkpoint, given = part
        patterns = (given,) if isinstance(given, str) else given
        listed = isinstance(patterns, (list, tuple)) and len(patterns) > 0
        if listed and all(isinstance(pattern, str) for pattern in patterns):
            return checkpoint, tuple(patterns)
    raise UsageError(
        f"Expected a checkpoint, or a tuple of one and patterns of names, got {part!r:.200}"
    )


def _open_part(checkpoint: Checkpoint) -> Catalog:
    try:
        return open_checkpoint(checkpoint)
    except CheckpointError as error:
        if not isinstance(checkpoint, (str, os.PathLike)):
            raise
        root = os.fspath(checkpoint).rstrip("/")
        if error.file is not None and error.file.startswith(root):
            raise
        raise move_error(error, root) from error


def _choose_entries(
    catalogs: Sequence[Catalog], patterns: Sequence[Sequence[str]]
) -> tuple[list[list[LeafEntry]], str]:
    """The leaves that are taken of each checkpoint, and what that is in words.

    Raises:
        MappingError: A name occurs in two, or a pattern matches nothing.
    """
    problems: list[str] = []
    chosen: list[list[LeafEntry]] = []
    clashes: defaultdict[tuple[int, int], list[str]] = defaultdict(list)
    owners: dict[str, int] = {}
    words: list[str] = []
    for i, (catalog, own) in enumerate(zip(catalogs, patterns, strict=True)):
        if catalog.base is not None:
            raise Unsupported(
                "templax merges checkpoints as they are stored, got a view: merge what it shows,"
                " and map that, as in tx.view(tx.merge(...), mapping)",
                file=catalog.url,
            )
        if catalog.positional:
            raise Unsupported("templax merges leaves by name, got some without", file=catalog.url)
        entries = list(catalog.entries)
        for pattern in own:
            if not any(matches_pattern(entry.name, pattern) for entry in entries):
                problems.append(f"{pattern!r} matches no leaf of {catalog.url}: correct it")
        if own:
            entries = [e for e in entries if any(matches_pattern(e.name, p) for p in own)]
        chosen.append(entries)
        left = len(catalog.entries) - len(entries)
        words.append(f"{len(entries):,} leaves of {catalog.url}")
        words[-1] += f" ({left:,} that match no pattern left out)" if left else ""
        for name in dict.fromkeys(entry.name for entry in entries):
            if owners.setdefault(name, i) != i:
                clashes[owners[name], i].append(name)
    for (one, other), names in clashes.items():
        first, second = catalogs[one].url, catalogs[other].url
        problems.append(
            f"{list_names(names)} {'is' if len(names) == 1 else 'are'} in {first} and in {second}:"
            " take it from one of them, as in tx.merge(base, (lora, ['*.lora_?']))"
        )
    if problems:
        raise MappingError(problems)
    return chosen, "; ".join(words)


class _Parts:
    """The merged checkpoints, each with what the keys of its files begin with."""

    def __init__(self, catalogs: Sequence[Catalog], roots: Sequence[str]):
        self._parts = list(zip(catalogs, roots, strict=True))

    def locate(
        self, entries: Iterable[LeafEntry], damages: list[Corrupted] | None = None
    ) -> dict[str, tuple[Chunk, ...]]:
        located: dict[str, tuple[Chunk, ...]] = {}
        inside: defaultdict[int, list[LeafEntry]] = defaultdict(list)
        for entry in entries:
            i, own = entry.handle
            inside[i].append(own)
            located[entry.name] = ()
        for i, own in inside.items():
            catalog, root = self._parts[i]
            found: list[Corrupted] = []
            try:
                chunks = catalog.locate(own, None if damages is None else found)
            except CheckpointError as error:
                raise move_error(error, root) from error
            for damage in found:
                record_damage(move_error(damage, root), damages)
            for name, each in chunks.items():
                located[name] = tuple([_move_chunk(chunk, root) for chunk in each])
        return located

    def audit(self) -> Iterator[Corrupted]:
        for catalog, root in self._parts:
            for damage in catalog.audit() if catalog.audit is not None else ():
                moved = move_error(damage, root)
                yield moved if isinstance(moved, Corrupted) else damage

    def list_regions(self) -> Iterator[Region]:
        for catalog, root in self._parts:
            for region in catalog.regions() if catalog.regions is not None else ():
                yield structs.replace(region, file=join_key(root, region.file))


def _move_chunk(chunk: Chunk, root: str) -> Chunk:
    """A chunk of one checkpoint, as one of the merged source."""
    extent = structs.replace(chunk.extent, key=join_key(root, chunk.extent.key))
    return structs.replace(chunk, extent=extent)


def _join_fingerprints(
    catalogs: Sequence[Catalog], chosen: Sequence[Sequence[LeafEntry]]
) -> dict[str, int]:
    found: dict[str, int] = {}
    for catalog, entries in zip(catalogs, chosen, strict=True):
        read: Callable[[], Mapping[str, int]] | None = catalog.fingerprints
        crcs = {} if read is None else read()
        found |= {entry.name: crcs[entry.name] for entry in entries if entry.name in crcs}
    return found
