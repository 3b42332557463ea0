"""Compares the ways in which processes can read a leaf together, by what each would read. Pure."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import structs

from .._catalog.entry import Chunk
from .._codecs.decode import COMPRESSIONS
from .._core.boxes import Box, size_of
from .._core.dtypes import is_narrow_float
from .._match.result import Pair
from .._template.template import Target
from .buffers import Measures, make_buffers
from .chunk_lookup import ChunkLookup
from .mapped_parts import make_mapped_parts
from .moves import DeviceMesh, Layout, Move, count_received, find_moves, list_sizes, make_layout
from .parts import make_parts, merge_chunks
from .sharing import (
    CPU_RATES,
    Declined,
    Machine,
    MoveRates,
    ReadCost,
    SharedLeaf,
    ShareReads,
    Sharing,
)

MIN_BYTES = 1024 * 1024
"""A smaller leaf is never worth a collective, unless `"always"` asks for it."""

_GAIN = 0.9
"""`"auto"` shares what is estimated to take less than this part of the time."""

_MAX_LAYOUTS = 16
"""Most layouts that are compared for a leaf."""

_MAX_PROCESSES = 8
"""Most processes of which the reads are computed to compare layouts; of more, some are chosen."""


class _Choice(msgspec.Struct, frozen=True):
    """What is best for leaves that are alike.

    Attributes:
        apart, shared: What the process that takes longest reads of one of them, either way.
        layout, moves: How one of them is shared.
        received: Elements that each device receives.
        why: Why they are not shared; empty if they are.
    """

    apart: ReadCost
    why: str = ""
    shared: ReadCost = ReadCost()
    layout: Layout = ()
    moves: tuple[Move, ...] = ()
    received: int = 0


def choose_sharing(
    pairs: Sequence[Pair],
    meshes: Sequence[DeviceMesh | None],
    chunks: Sequence[Mapping[str, Sequence[Chunk]]],
    *,
    process: int,
    share: ShareReads,
    remote: Sequence[bool],
    machine: Machine,
    rates: MoveRates = CPU_RATES,
    verify: str = "available",
) -> Sharing:
    """Chooses the leaves to read together, and how.

    Args:
        pairs: Targets and leaves.
        meshes: For each pair, the devices of its sharding; None if it can't be shared.
        chunks: See `build_plan`.
        process: The index of this process.
        share: See `restore`.
        remote: For each source, whether it is an object store.
        machine: What the processes run on. All of them must be given the same.
        rates: What moves cost.
        verify: See `restore`. What is shared is read in whole blocks of checksums, unless "off".
    """
    if share == "never":
        return Sharing()
    leaves: dict[str, SharedLeaf] = {}
    declined: list[Declined] = []
    chosen: list[Any] = []
    for members in _group_alike(pairs, meshes, chunks, share):
        pair, mesh = pairs[members[0]], meshes[members[0]]
        assert mesh is not None
        located = chunks[pair.source][pair.entry.name]
        judge = _Judge(pair, mesh, located, machine, rates, verify, remote=remote[pair.source])
        choice = judge.choose(share, len(members))
        names = tuple(pairs[i].target.name for i in members)
        if choice is None:
            continue
        if choice.why:
            n = len(members)
            received = choice.received * n * pair.target.dtype.itemsize
            received *= mesh.count_devices(process)
            apart, shared = choice.apart * n, choice.shared * n
            declined.append(Declined(names, choice.why, apart, shared, received))
            continue
        chosen.append((names, choice.layout, choice.moves))
        if process in mesh.processes:
            targets = [pairs[i].target for i in members]
            leaves |= {t.name: _share_leaf(t, choice, mesh, process) for t in targets}
    digest = hashlib.sha256(repr(chosen).encode()).hexdigest()[:16] if chosen else ""
    in_order = {p.target.name: leaves[p.target.name] for p in pairs if p.target.name in leaves}
    return Sharing(in_order, tuple(declined), digest)


def _group_alike(
    pairs: Sequence[Pair],
    meshes: Sequence[DeviceMesh | None],
    chunks: Sequence[Mapping[str, Sequence[Chunk]]],
    share: ShareReads,
) -> Iterable[list[int]]:
    """The pairs that could be shared, grouped by what the choice depends on."""
    kinds: dict[Any, list[int]] = {}
    for i, (pair, mesh) in enumerate(zip(pairs, meshes, strict=True)):
        target, sharding = pair.target, pair.target.sharding
        nbytes = math.prod(target.shape) * target.dtype.itemsize
        if mesh is None or sharding is None or nbytes < (MIN_BYTES if share == "auto" else 1):
            continue
        located = chunks[pair.source][pair.entry.name]
        grid: Any = tuple((c.box, c.codecs, c.order, c.extent.inline is None) for c in located)
        if any(chunk.origin is not None for chunk in located):
            grid = pair.entry.name
        kind = target.shape, pair.entry.dtype, target.dtype, id(mesh), sharding.spec, pair.source
        kinds.setdefault((kind, grid), []).append(i)
    return kinds.values()


def _share_leaf(target: Target, choice: _Choice, mesh: DeviceMesh, process: int) -> SharedLeaf:
    layout, moves = choice.layout, choice.moves
    sizes = list_sizes(moves, layout, target.shape, mesh)
    exchanged = [n for n, move in zip(sizes, moves, strict=False) if move.target is not None]
    narrow = is_narrow_float(target.dtype)
    unit = mesh.count_devices(process) * target.dtype.itemsize
    return SharedLeaf(
        target,
        layout,
        moves,
        held_bytes=sizes[0] * unit,
        placed_bytes=sizes[-1] * unit,
        received_bytes=choice.received * unit,
        scratch_bytes=max(2 * max(exchanged, default=0), sizes[-1] if narrow else 0) * unit,
    )


class _Judge:
    """Compares the ways to read leaves that are alike.

    Args:
        pair: One of them.
        mesh: The devices of its sharding.
        chunks: Its chunks.
        machine, rates, verify: See `choose_sharing`.
        remote: Whether it is in an object store.
    """

    def __init__(
        self,
        pair: Pair,
        mesh: DeviceMesh,
        chunks: Sequence[Chunk],
        machine: Machine,
        rates: MoveRates,
        verify: str,
        *,
        remote: bool,
    ):
        assert pair.target.sharding is not None
        self._pair, self._mesh, self._rates = pair, mesh, rates
        self._machine, self._verify, self._remote = machine, verify, remote
        self._compile_s = rates.compile_s / min(1, machine.share)
        self._chunks = merge_chunks(chunks) if len(chunks) > 1 else chunks
        self._lookup, self._measures = ChunkLookup(self._chunks), Measures()
        self._shape = pair.target.shape
        self._final = make_layout(pair.target.sharding.spec, len(self._shape), mesh.sizes)
        processes = sorted(set(mesh.processes))
        self._count = len(processes)
        step = max(1, -(-self._count // _MAX_PROCESSES))
        self._sampled = processes[::step]

    def choose(self, share: ShareReads, count: int) -> _Choice | None:
        """What is best for `count` such leaves; None if processes read even parts as it is."""
        apart = self._measure(self._final, shared=False)
        stored = sum(c.extent.nbytes for c in self._chunks if c.extent.inline is None)
        if apart.read_bytes * self._count <= 1.1 * stored or not stored:
            return None
        found: list[tuple[float, float, _Choice]] = []
        for layout in self._list_layouts():
            moves = find_moves(layout, self._final, self._shape, self._mesh)
            if not moves:
                continue
            shared = self._measure(layout, shared=True)
            if shared.read_bytes >= 0.95 * apart.read_bytes:
                continue
            received, move_s = self._estimate_moves(moves, layout)
            choice = _Choice(apart, "", shared, layout, moves, received)
            found.append((self._seconds(shared) + move_s, move_s, choice))
        if not found:
            return _Choice(apart, "no even parts of them that XLA can move would read less")
        took_s, move_s, best = min(found, key=lambda each: each[0])
        took_s += self._compile_s / count
        apart_s = self._seconds(apart)
        if share == "always" or took_s < _GAIN * apart_s:
            return best
        why = (
            f"that takes less time, about {count * apart_s:.2g} s instead of"
            f" {count * took_s:.2g} s, {count * move_s + self._compile_s:.2g} s of it to move"
        )
        return structs.replace(best, why=why)

    def _seconds(self, cost: ReadCost) -> float:
        return cost.estimate_seconds(self._machine, remote=self._remote)

    def _estimate_moves(self, moves: Sequence[Move], layout: Layout) -> tuple[int, float]:
        """Elements that each device receives in these moves, and the seconds that they take."""
        devices = len(self._mesh.processes) // self._count
        nbytes = self._pair.target.dtype.itemsize * devices
        total, seconds = 0, 0.0
        for move in moves:
            received = count_received(move, layout, self._shape, self._mesh)
            gathers, rates = move.target is None, self._rates
            rate = rates.gather_bytes_per_s if gathers else rates.exchange_bytes_per_s
            total, seconds = total + received, seconds + received * nbytes / rate
            layout = move.apply(layout)
        return total, seconds / min(1, self._machine.share)

    def _list_layouts(self) -> Iterator[Layout]:
        """Layouts in which processes may read: refined ones first, then along other dimensions."""
        found = dict.fromkeys(itertools.chain(self._refine(), self._along_dimensions()))
        found.pop(self._final, None)
        fitting = (each for each in found if self._mesh.divides(each, self._shape))
        return itertools.islice(fitting, _MAX_LAYOUTS)

    def _refine(self) -> Iterator[Layout]:
        """The final layout, cut further by axes along which it is replicated."""
        used = {axis for axes in self._final for axis in axes}
        free = tuple(a for a, n in self._mesh.sizes.items() if n > 1 and a not in used)
        for n in range(1, len(free) + 1):
            for axes in itertools.combinations(free, n):
                for i in range(len(self._shape)):
                    yield (*self._final[:i], self._final[i] + axes, *self._final[i + 1 :])

    def _along_dimensions(self) -> Iterator[Layout]:
        """Layouts that cut where chunks begin and end, or along the first dimension."""
        used = [axis for axes in self._final for axis in axes]
        mesh_order = tuple(axis for axis, n in self._mesh.sizes.items() if n > 1)
        free = tuple(axis for axis in mesh_order if axis not in used)
        # Axes of which processes differ are enough: those within a process may stay as they are.
        orders = dict.fromkeys((mesh_order, (*free, *used), (*used, *free), tuple(used)))
        ndim = len(self._shape)
        cut = [i for i in range(ndim) if len({c.box[i] for c in self._chunks}) > 1]
        first = [next((i for i, n in enumerate(self._shape) if n > 1), 0)] if ndim else []
        if any(chunk.origin is not None for chunk in self._chunks):
            cut = list(range(ndim))  # a mapping may have turned the rows that lie together
        dims = dict.fromkeys([*cut, *first])
        for i in dims:
            for order in orders:
                yield tuple(order if j == i else () for j in range(ndim))
        for i, j in itertools.permutations(dims, 2):
            for order in orders:
                for n in range(1, len(order)):
                    parts = {i: order[:n], j: order[n:]}
                    yield tuple(parts.get(k, ()) for k in range(ndim))

    def _measure(self, layout: Layout, *, shared: bool) -> ReadCost:
        """What the process that takes longest reads of the leaf in a layout."""
        boxes = self._mesh.find_boxes(layout, self._shape)
        whole = self._verify == "required" or (shared and self._verify != "off")
        costs = [self._measure_boxes(boxes[process], whole) for process in self._sampled]
        return max(costs, key=self._seconds)

    def _measure_boxes(self, boxes: tuple[Box, ...], whole: bool) -> ReadCost:
        pair = structs.replace(self._pair, target=structs.replace(self._pair.target, boxes=boxes))
        buffers = make_buffers(pair, self._measures)
        found = [self._chunks[i] for i in self._lookup.find(boxes)]
        plain = [chunk for chunk in found if chunk.origin is None]
        parts = list(make_parts(pair, buffers, 0, plain, self._measures, whole)) if plain else []
        for chunk in found:
            if chunk.origin is not None:
                parts += make_mapped_parts(pair.entry, buffers, 0, chunk, whole)
        requests = read = decoded = copied = 0
        for part in parts:
            requests += part.stop > part.start and part.chunk.extent.inline is None
            read += part.stop - part.start if part.chunk.extent.inline is None else 0
            if not COMPRESSIONS.keys().isdisjoint(part.chunk.codecs):
                decoded += part.nbytes
            if part.direct is None:
                copied += sum([size_of(copy.src) for copy in part.copies]) * part.dtype.itemsize
                copied += sum([math.prod(s.shape) for s in part.strided]) * part.dtype.itemsize
        return ReadCost(requests, read, decoded, copied)
