"""What hosts read of leaves that are alike, worked out once for all of them. Pure.

The layers of a model have leaves of the same shape, dtype and sharding, in chunks of the same
boxes. What a host reads of them differs only in where their chunks are stored: the parts of one
such leaf, counted from the ends of its chunks, are those of all. And parts hardly depend on where
in a chunk the boxes lie, so that most hosts have the same parts.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from msgspec import structs

from .._catalog.chunk_columns import ChunkColumns
from .._catalog.entry import Chunk
from .._codecs.decode import COMPRESSIONS
from .._core.boxes import Box, intersect, relative_box, shape_of, size_of
from .._match.result import Pair
from .buffers import Buffer, Measures, make_buffers
from .build import group_buffers
from .chunk_lookup import ChunkLookup
from .limits import Limits
from .mapped_parts import make_mapped_parts
from .parts import (
    Part,
    count_useful_bytes,
    is_raw,
    make_parts,
    make_parts_by_chunk,
    measure_scratch,
)
from .ranges import Ranges, merge_ranges
from .requests import find_alone_bytes, is_in_place
from .topology import Indices, Topology

CHUNK, START, STOP, NBYTES, USEFUL, LEAST, STORED, DECODED, PARTS, LEFT_OUT = range(10)
"""Columns of rows. A row is a part of a chunk, or a run of parts that are requests of their own:

- the index of the chunk in its leaf;
- the first byte counted from that of the chunk, and the last counted from that of the chunk;
- the bytes that it decodes to;
- how many more bytes are useful than it has: none, or a negative number;
- from how many stored bytes on it is a request of its own;
- the most scratch memory for its stored bytes, and that for its decoded ones;
- its number of parts, and the bytes between them, which are not read.
"""

_ANY_SIZE = 1 << 62


@dataclass(frozen=True, slots=True)
class ChunkParts:
    """What is read of a chunk.

    Attributes:
        rows: Its parts.
        runs: The same, in one row if each of them is a request of its own.
        ranges: Start and stop of the bytes that are read, as in `rows`.
        inline: Of each value that an index holds: the bytes that it decodes to, and the scratch
            memory for stored and decoded bytes.
        ideal_bytes: The stored bytes that would be read if the boxes were chunks of their own.
        ideal_share: The same as a share of the stored bytes of the chunk, which is added.
        parts, decoded: Number of parts, and of those to decompress.
    """

    rows: np.ndarray
    runs: np.ndarray
    ranges: np.ndarray
    inline: tuple[tuple[int, int, int], ...]
    ideal_bytes: int
    ideal_share: tuple[int, int] | None
    parts: int
    decoded: int


@dataclass(frozen=True, slots=True)
class BoxGroup:
    """What a host reads for some boxes of a leaf, which go to the same batch.

    Attributes:
        boxes, nbytes, transient: Number of boxes, their bytes, and those that are transient.
        pieces: For each chunk: its index, from which byte its parts count, and these.
    """

    boxes: int
    nbytes: int
    transient: int
    pieces: tuple[tuple[int, int, ChunkParts], ...]

    def list_rows(self, *, exact: bool) -> np.ndarray:
        """The rows of all chunks. Without runs, if `exact`."""
        found = [parts.rows if exact else parts.runs for _, _, parts in self.pieces]
        return self._place(found)

    def list_ranges(self) -> np.ndarray:
        """The index of a chunk, and the bytes that are read of it, as in rows."""
        return self._place([parts.ranges for _, _, parts in self.pieces])[:, : STOP + 1]

    def _place(self, found: list[np.ndarray]) -> np.ndarray:
        if not found:
            return np.zeros((0, LEFT_OUT + 1), np.int64)
        places = np.array([(chunk, base) for chunk, base, _ in self.pieces], np.int64)
        places = np.repeat(places, [len(rows) for rows in found], axis=0)
        rows = np.concatenate(found)
        rows[:, CHUNK] = places[:, 0]
        rows[:, START : STOP + 1] += places[:, 1:]
        return rows


@dataclass(frozen=True, slots=True)
class LeafShare:
    """What a host holds of a leaf.

    Attributes:
        groups: Its boxes.
        placed_bytes, device_bytes: Of the finished leaf, and of its largest box.
    """

    groups: tuple[BoxGroup, ...]
    placed_bytes: int
    device_bytes: int


class LeafClass:
    """Leaves that are alike: all that a host reads of one of them, it reads of the others.

    Args:
        pair: One of them. Its target is sharded over the mesh of the topology, or not at all.
        chunks: Its chunks, merged.
        topology: The hosts.
        limits: What follows from the options of the plan.
        gap: See `build_plan`; of the source of these leaves.
        required: Whether all bytes that a checksum covers are read.
    """

    def __init__(
        self,
        pair: Pair,
        chunks: Sequence[Chunk],
        topology: Topology,
        limits: Limits,
        *,
        gap: int,
        required: bool,
    ):
        self.pair = pair
        self._chunks = tuple(chunks)
        self._plain = sum([chunk.origin is None for chunk in self._chunks])
        self._lookup = ChunkLookup(self._chunks)
        self._topology, self._limits = topology, limits
        self._gap, self._required = gap, required
        self._measures = Measures()
        self._kinds: dict[int, Hashable] = {}
        self._parts: dict[Hashable, ChunkParts] = {}
        self._shares: dict[tuple[Indices, ...], LeafShare] = {}

    def find_share(self, host: int) -> LeafShare:
        """What a host holds of each of the leaves. Equal for hosts that hold the same slices."""
        sharding = self.pair.target.sharding
        spec = None if sharding is None else sharding.spec
        indices = () if spec is None else self._topology.find_indices(spec, host)
        share = self._shares.get(indices)
        if share is None:
            boxes = self._topology.find_boxes(spec, self.pair.target.shape, host)
            share = self._shares[indices] = self._make_share(boxes)
        return share

    def list_ranges(self) -> Ranges:
        """The bytes of the chunks of a leaf that any of the hosts so far reads, as in rows.

        Returns:
            Index of the chunk, start and stop of each range.
        """
        length = np.array([chunk.extent.nbytes for chunk in self._chunks], np.int64)
        found = [g.list_ranges() for share in self._shares.values() for g in share.groups]
        ranges = np.concatenate(found) if found else np.zeros((0, STOP + 1), np.int64)
        number = ranges[:, CHUNK]
        number, start, stop = merge_ranges(
            number, ranges[:, START], ranges[:, STOP] + length[number]
        )
        return number, start, stop - length[number]

    def _make_share(self, boxes: Sequence[Box]) -> LeafShare:
        target = self.pair.target
        transient = not target.host and self._topology.platform != "cpu"
        target = structs.replace(target, boxes=tuple(boxes), transient=transient)
        pair = structs.replace(self.pair, target=target)
        numbers = self._lookup.find(boxes)
        chunks = [self._chunks[i] for i in numbers]
        buffers = make_buffers(pair, self._measures)
        groups: list[BoxGroup] = []
        for mine in group_buffers(buffers, chunks, self._limits.share):
            nbytes = sum([buffer.nbytes for buffer in mine])
            passing = nbytes if mine and mine[0].transient else 0
            # As in `build_plan`, chunks with an `origin` come after the others.
            found = [self._find_plain(pair, mine, i) for i in numbers]
            found += [self._find_mapped(pair, mine, i) for i in numbers]
            pieces = tuple([piece for piece in found if piece is not None])
            groups.append(BoxGroup(len(mine), nbytes, passing, pieces))
        itemsize = target.dtype.itemsize
        placed = sum([b.nbytes // b.dtype.itemsize * itemsize for b in buffers])
        largest = 0 if target.host else max(map(size_of, boxes), default=0) * itemsize
        return LeafShare(tuple(groups), placed, largest)

    def _find_plain(
        self, pair: Pair, buffers: Sequence[Buffer], number: int
    ) -> tuple[int, int, ChunkParts] | None:
        """What boxes need of a chunk that no mapping has moved, wherever in it they lie."""
        chunk = self._chunks[number]
        if chunk.origin is not None:
            return None
        wanted = [
            (relative_box(overlap, chunk.box), buffer.shape)
            for buffer in buffers
            if (overlap := intersect(chunk.box, buffer.box)) is not None
        ]
        if not wanted:
            return None
        corner = tuple([min(axis)[0] for axis in zip(*[src for src, _ in wanted], strict=True)])
        moved = tuple(
            [
                (tuple([(a - at, b - at) for (a, b), at in zip(src, corner, strict=True)]), shape)
                for src, shape in wanted
            ]
        )
        rows, row = list[int](), pair.entry.dtype.itemsize
        for a, b in reversed(chunk.box):
            rows.append(row)
            row *= b - a
        steps = [at * row for at, row in zip(corner, reversed(rows), strict=True)]
        base = sum(steps) if is_raw(chunk) else 0
        # Parts may begin and end where blocks do, of which the last one may be shorter.
        phase: tuple[int, ...] = ()
        if chunk.sums and is_raw(chunk):
            absolute, short = self._required, chunk.extent.nbytes % chunk.block
            if short and not absolute:
                far = [max(axis)[1] - 1 for axis in zip(*[src for src, _ in wanted], strict=True)]
                end = sum([at * row for at, row in zip(far, reversed(rows), strict=True)])
                end += pair.entry.dtype.itemsize  # of which the last byte may be in that block
                absolute = end > chunk.extent.nbytes - short
            phase = tuple(steps if absolute else [step % chunk.block for step in steps])
        key = self._describe_kind(number), moved, phase
        parts = self._parts.get(key)
        if parts is None:
            make = make_parts if self._plain == 1 else make_parts_by_chunk
            made = make(pair, buffers, 0, (chunk,), self._measures, self._required)
            parts = self._parts[key] = self._make_chunk_parts(tuple(made), base)
        return number, base, parts

    def _find_mapped(
        self, pair: Pair, buffers: Sequence[Buffer], number: int
    ) -> tuple[int, int, ChunkParts] | None:
        """What boxes need of a chunk with an `origin`."""
        chunk = self._chunks[number]
        if chunk.origin is None:
            return None
        key = self._describe_kind(number), chunk.box, tuple([buffer.box for buffer in buffers])
        parts = self._parts.get(key)
        if parts is None:
            made = make_mapped_parts(pair.entry, buffers, 0, chunk, self._required)
            parts = self._parts[key] = self._make_chunk_parts(tuple(made), 0)
        return (number, 0, parts) if parts.parts else None

    def _describe_kind(self, number: int) -> Hashable:
        found = self._kinds.get(number)
        if found is None:
            chunk = self._chunks[number]
            found = self._kinds[number] = shape_of(chunk.box), describe_chunk(chunk)
        return found

    def _make_chunk_parts(self, parts: Sequence[Part], base: int) -> ChunkParts:
        """The parts of a chunk, which count from the byte `base` of it."""
        ahead, whole = self._limits.ahead, self._limits.whole
        rows: list[tuple[int, ...]] = []
        inline: list[tuple[int, int, int]] = []
        ideal_bytes, ideal_share = 0, None
        decoded = 0
        for part in parts:
            chunk, extent = part.chunk, part.chunk.extent
            packed = _is_packed(chunk)
            decoded += packed
            # Any number of bytes may be stored of what is compressed: the row says how many.
            longest = structs.replace(part, stop=part.start + _ANY_SIZE) if packed else part
            stored, room = measure_scratch(longest, ahead, whole)
            if extent.inline is not None:
                inline.append((part.nbytes, *measure_scratch(part, ahead, whole)))
                continue
            start, stop = part.start - extent.start - base, part.stop - extent.stop - base
            useful = count_useful_bytes(part) - (part.stop - part.start)
            least = find_alone_bytes(is_in_place(part), self._gap)
            rows.append((0, start, stop, part.nbytes, useful, least, stored, room, 1, 0))
            if not packed:
                ideal_bytes += count_wanted_bytes(part)
            else:
                ideal_share = _find_wanted_share(part)
        made = np.array(rows, np.int64).reshape(-1, 10)
        length = parts[0].chunk.extent.nbytes if parts else 0
        packed = bool(parts) and _is_packed(parts[0].chunk)
        runs = made if packed else _join_run(made, length)
        ranges = made[:, : STOP + 1]
        if len(runs) < len(made):
            ranges = _join_ranges(ranges, length)
        return ChunkParts(
            made, runs, ranges, tuple(inline), ideal_bytes, ideal_share, len(parts), decoded
        )


def describe_layout(chunks: Sequence[Chunk]) -> Hashable:
    """What the parts of a leaf depend on, besides its boxes: equal for leaves that are alike."""
    if isinstance(chunks, ChunkColumns):
        return chunks.layout
    return tuple([(chunk.box, describe_chunk(chunk)) for chunk in chunks])


def describe_chunk(chunk: Chunk) -> Hashable:
    """What the parts of a chunk depend on, besides its box."""
    packed, raw = _is_packed(chunk), is_raw(chunk)
    return (
        chunk.codecs,
        chunk.order,
        chunk.extent.inline is None,
        None if packed else chunk.extent.nbytes,
        chunk.block if raw and chunk.sums else 0,
        chunk.origin,
    )


def count_wanted_bytes(part: Part) -> int:
    """The stored bytes of the elements that a part is read for, if they lay together."""
    if part.strided:
        return part.stop - part.start
    wanted, size = _find_wanted_share(part)
    return -(-part.chunk.extent.nbytes * wanted // size)


def _find_wanted_share(part: Part) -> tuple[int, int]:
    """Which share of the elements of a chunk a part is read for."""
    if part.strided:
        return 1, 1
    wanted = sum([size_of(copy.src) for copy in part.copies])
    size = max(1, size_of(part.chunk.box))
    common = math.gcd(wanted, size)
    return wanted // common, size // common


def _is_packed(chunk: Chunk) -> bool:
    """Whether the shape and dtype don't say how many bytes are stored."""
    return not COMPRESSIONS.keys().isdisjoint(chunk.codecs)


def _join_run(rows: np.ndarray, length: int) -> np.ndarray:
    """A single row for parts of a chunk of `length` bytes that are requests of their own."""
    begins, ends = rows[:, START], rows[:, STOP] + length
    sizes = ends - begins
    if len(rows) < 2 or (sizes < rows[:, LEAST]).any() or (begins[1:] < ends[:-1]).any():
        return rows
    left_out = int((begins[1:] - ends[:-1]).sum())
    run = np.zeros((1, 10), np.int64)
    run[0, START], run[0, STOP] = rows[0, START], rows[-1, STOP]
    run[0, USEFUL] = rows[:, USEFUL].sum() - left_out
    run[0, STORED] = np.minimum(rows[:, STORED], sizes).max()
    run[0, DECODED] = rows[:, DECODED].max()
    run[0, PARTS], run[0, LEFT_OUT] = len(rows), left_out
    return run


def _join_ranges(ranges: np.ndarray, length: int) -> np.ndarray:
    """The same ranges, in order and apart, with neighbours joined."""
    begins, ends = ranges[:, START], ranges[:, STOP] + length
    first = np.flatnonzero(np.append(True, begins[1:] > ends[:-1]))
    joined = ranges[first].copy()
    joined[:, STOP] = ranges[np.append(first[1:], len(ranges)) - 1, STOP]
    return joined
