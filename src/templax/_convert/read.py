"""Reads the blocks of a checkpoint's leaves, checked, decoded and cast."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from msgspec import structs

from .._audit.diff_blocks import check_size, divide_chunks
from .._catalog.catalog import Catalog
from .._catalog.entry import Chunk, LeafEntry
from .._catalog.written import Leaf
from .._core.boxes import Box, Shape, full_box, shape_of
from .._core.dtypes import cast_into, count_lost
from .._core.memory import allocate_aligned
from .._match.result import Match, Pair
from .._plan.build import build_plan
from .._restore.execute import check_values, read_batch
from .._restore.undecodable import name_undecodable
from .._save.jobs import Block
from .._template.template import Target, Template
from ..errors import CheckpointError, SourceError, Unsupported
from .cut import Cut, count_memory_of_block, cut_blocks
from .stream import ChunkStreams


class LeafReader:
    """Reads blocks of leaves; a `BlockReader` of a save.

    Args:
        catalog: The checkpoint.
        entries: Name of a leaf as it is written → the leaf of the checkpoint. No two of these have
            the same name.

    Attributes:
        overflows: The row of a block → how many of its values the dtype that is written can't
            hold. Blocks without any are left out.

    Raises:
        Corrupted, Unsupported: See `Catalog.locate`.
    """

    def __init__(self, catalog: Catalog, entries: Mapping[str, LeafEntry]):
        self._source, self._entries = catalog.source, entries
        arrays = [entry for entry in entries.values() if entry.kind != "string"]
        try:
            self._located = catalog.locate(arrays)
        except Unsupported as error:
            remedy = "skip= leaves them out"
            raise name_undecodable([(catalog, arrays)], error, remedy) from error
        for entry in arrays:
            check_size(entry, self._located[entry.name])
        self._cuts: dict[tuple[str, Box], Cut] = {}
        self.overflows: dict[int, int] = {}

    def find_shared(self) -> list[list[str]]:
        """Groups of leaves that are the same bytes of the checkpoint, by the names they get."""
        found: dict[tuple[tuple[str, int, int], ...], list[str]] = {}
        for name, entry in self._entries.items():
            chunks = self._located.get(entry.name, ())
            extents = [chunk.extent for chunk in chunks]
            if (
                entry.nbytes
                and extents
                and all(extent.inline is None for extent in extents)
                and all(chunk.origin is None for chunk in chunks)  # else parts of the same bytes
            ):
                places = tuple((extent.key, extent.start, extent.stop) for extent in extents)
                found.setdefault(places, []).append(name)
        return [names for names in found.values() if len(names) > 1]

    def find_filled(self) -> list[str]:
        """The leaves with chunks that are absent, by the names they get."""
        return [
            name
            for name, entry in self._entries.items()
            if any(chunk.codecs == ("fill",) for chunk in self._located.get(entry.name, ()))
        ]

    def hold_numbers(self, leaves: Sequence[Leaf]) -> None:
        """Gives numbers of Python their values, for a format that does not store them as arrays."""
        numbers = [leaf for leaf in leaves if leaf.is_python]
        if not numbers:
            return
        blocks = [Block(leaf, (), 0) for leaf in numbers]
        for leaf, values in zip(numbers, self.read(blocks), strict=True):
            leaf.pieces = (((), functools.partial(np.array, values.copy())),)

    def cut(self, leaf: Leaf, chunk: Shape) -> Iterator[tuple[list[Box], int]]:
        """See `BlockReader`."""
        entry = self._entries[leaf.name]
        itemsize, written = entry.dtype.itemsize, leaf.dtype.itemsize
        chunks = divide_chunks(self._located[entry.name], entry.dtype)
        for cuts in cut_blocks(full_box(leaf.shape), itemsize, chunk, chunks):
            for cut in cuts:
                self._cuts[leaf.name, cut.box] = cut
            most = max(count_memory_of_block(cut, itemsize, written) for cut in cuts)
            yield [cut.box for cut in cuts], most

    def read(self, blocks: Sequence[Block]) -> Iterator[np.ndarray]:
        """See `BlockReader`."""
        first = self._cuts.get((blocks[0].leaf.name, blocks[0].box))
        if first is not None and first.streamed:
            found = self._read_streamed(blocks)
        else:
            found = self._read_planned(blocks)
        for block, values in zip(blocks, found, strict=True):
            yield self._cast(block, values)

    def _cast(self, block: Block, values: np.ndarray) -> np.ndarray:
        """The values in the dtype in which they are written."""
        dtype = block.leaf.dtype
        if values.dtype == dtype:
            return values
        nbytes = values.size * dtype.itemsize
        cast = np.ndarray(values.shape, dtype, allocate_aligned(nbytes))
        cast_into(cast, values)
        lost = count_lost(values, cast)
        if lost:
            self.overflows[block.row] = lost
        return cast

    def _read_planned(self, blocks: Sequence[Block]) -> Iterator[np.ndarray]:
        """Reads blocks with the plan and the codecs of a restore."""
        pairs: list[Pair] = []
        chunks: dict[str, tuple[Chunk, ...]] = {}
        for i, (leaf, box, _) in enumerate(blocks):
            # The plan is of blocks: to it, each one is a leaf with a name of its own.
            name, entry = str(i), self._entries[leaf.name]
            cut = self._cuts.get((leaf.name, box))
            chunks[name] = tuple(self._located[entry.name] if cut is None else cut.chunks)
            shape, dtype = entry.shape, entry.dtype
            target = Target(name, entry.path, shape, dtype, boxes=(box,), transient=True)
            pairs.append(Pair(target, structs.replace(entry, name=name)))
        plan = build_plan(
            Match("", Template(()), pairs=tuple(pairs)),
            [chunks],
            memory=sys.maxsize,
            blocks=True,
            verify="required",  # so that checksums of which a block needs a part are compared, too
        )
        with self._name_leaves(blocks):
            for batch in plan.batches:
                yield from read_batch(batch, plan, self._source)

    def _read_streamed(self, blocks: Sequence[Block]) -> Iterator[np.ndarray]:
        """Reads blocks of one leaf whose chunks are decoded piece by piece."""
        entry = self._entries[blocks[0].leaf.name]
        streams = ChunkStreams(entry, self._source)
        memory = allocate_aligned(
            max(math.prod(shape_of(block.box)) for block in blocks) * entry.dtype.itemsize
        )
        for block in blocks:
            cut = self._cuts[block.leaf.name, block.box]
            values = np.ndarray(shape_of(block.box), entry.dtype, memory)
            streams.fill(values, block.box, cut.chunks)
            check_values(entry.dtype, values, entry.name)
            yield values
        streams.finish()

    @contextmanager
    def _name_leaves(self, blocks: Sequence[Block]) -> Generator[None]:
        """Says in errors which leaf they are about, instead of which block."""

        def find(name: str) -> str:
            return self._entries[blocks[int(name)].leaf.name].name

        try:
            yield
        except CheckpointError as error:
            if error.leaf is None:
                raise
            raise type(error)(
                error.what,
                leaf=find(error.leaf),
                file=error.file,
                start=error.start,
                stop=error.stop,
                hint=error.hint,
                box=error.box,
            ) from error
        except SourceError as error:
            notes: list[str] = getattr(error, "__notes__", [])
            for i, note in enumerate(notes):
                name = note.removeprefix("while leaf `").removesuffix("` was read")
                if name.isdecimal() and name != note:
                    notes[i] = f"while leaf `{find(name)}` was read"
            raise
