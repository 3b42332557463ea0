"""Plans a restore for every host of a job, without the objects of each plan. Pure.

A host's figures are those of `build_plan`, and the rules are its own: `LeafClass` takes the parts
of one leaf for all that are alike, `BatchSize` fills the batches, `find_requests` joins the parts
of a batch. What is stored where comes in only then, as columns.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .._catalog.chunk_columns import ChunkColumns
from .._catalog.entry import Chunk
from .._match.result import Match, Pair
from .job import HostPlan, JobPlan
from .job_leaves import (
    CHUNK,
    DECODED,
    LEAST,
    LEFT_OUT,
    NBYTES,
    PARTS,
    START,
    STOP,
    STORED,
    USEFUL,
    LeafClass,
    LeafShare,
    describe_layout,
)
from .limits import BatchSize, Limits, find_limits
from .parts import merge_chunks
from .plan import measure_window
from .ranges import Ranges, count_bytes
from .requests import find_inline_groups, find_requests
from .topology import Indices, Spec, Topology

Located = Sequence[Mapping[str, Sequence[Chunk]]]


class _Leaves:
    """Leaves that are alike, and where the chunks of each are stored.

    Attributes:
        alike: One of them.
        source: See `Pair`.
        file, start, stop: For each leaf and chunk: the number of its file, and its bytes there.
    """

    def __init__(self, alike: LeafClass, source: int):
        self.alike, self.source = alike, source
        self._places: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, chunks: Sequence[Chunk], files: _Files) -> int:
        """Adds a leaf; returns how many there were."""
        self._places.append(files.list_places(chunks))
        return len(self._places) - 1

    def finish(self) -> None:
        """Makes the columns, once all leaves were added."""
        self.file, self.start, self.stop = map(np.stack, zip(*self._places, strict=True))
        self._places.clear()

    def __len__(self) -> int:
        return len(self.file)


class _Files:
    """Numbers of the files of a source."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._listed: dict[int, tuple[Sequence[str], np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def list_places(self, chunks: Sequence[Chunk]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The number of the file of each chunk, and its bytes there."""
        if isinstance(chunks, ChunkColumns):
            return self._list_numbers(chunks.files)[chunks.file], chunks.start, chunks.stop
        extents = [chunk.extent for chunk in chunks]
        return (
            self._number([extent.key for extent in extents]),
            np.array([extent.start for extent in extents], np.int64),
            np.array([extent.stop for extent in extents], np.int64),
        )

    def _list_numbers(self, names: Sequence[str]) -> np.ndarray:
        """The numbers of these files. All leaves of a checkpoint share the list, which may grow."""
        known = self._listed.get(id(names))
        if known is None or len(known[1]) < len(names):
            known = self._listed[id(names)] = names, self._number(names)
        return known[1]

    def _number(self, names: Sequence[str]) -> np.ndarray:
        numbers = self._numbers
        return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)


@dataclass(frozen=True, slots=True)
class _Batches:
    """The batches of hosts whose boxes have the same sizes.

    Attributes:
        numbers: For each class of leaves and group of its boxes: the batch of each leaf.
        transient: The most transient bytes at a time.
    """

    numbers: Sequence[Sequence[np.ndarray]]
    transient: int


@dataclass(frozen=True, slots=True)
class _Reads:
    """The requests of a host from one source.

    Attributes:
        requests, read_bytes, useful_bytes: See `Plan`.
        stored, decoded: The most scratch memory for stored bytes and for decoded ones.
        joined: The bytes of requests of several parts.
    """

    requests: int
    read_bytes: int
    useful_bytes: int
    stored: int
    decoded: int
    joined: Ranges


def plan_job(
    match: Match,
    chunks: Located,
    topology: Topology,
    *,
    threads: int,
    memory: int,
    verify: str,
    gaps: Sequence[int],
) -> JobPlan:
    """Plans a restore for every host.

    Args:
        match: Pairs without mismatches, whose targets are sharded over the mesh of the topology or
            not at all.
        chunks, threads, memory, verify, gaps: See `build_plan`.
        topology: The hosts.
    """
    limits = find_limits(threads, memory, gaps)
    pairs = [pair for pair in match.pairs if pair.target.kind != "string"]
    job = _Job(topology, limits, gaps, required=verify == "required")
    for pair in pairs:
        job.add(pair, chunks[pair.source][pair.entry.name])
    specs = {p.target.sharding.spec: None for p in pairs if p.target.sharding is not None}
    found = [job.plan(hosts) for hosts in _group_hosts(topology, list(specs))]
    whole = tuple(pair.target.name for pair in pairs if pair.target.sharding is None)
    most = max((workers for _, workers in found), default=1)
    plans = tuple([plan for plan, _ in found])
    return JobPlan(match, topology, plans, job.count_distinct_bytes(), whole, most)


def _group_hosts(topology: Topology, specs: Sequence[Spec]) -> list[list[int]]:
    """The hosts that hold the same slices, in the order of the first of each group."""
    groups: defaultdict[tuple[tuple[Indices, ...], ...], list[int]] = defaultdict(list)
    for host in range(topology.hosts):
        groups[tuple(topology.find_indices(spec, host) for spec in specs)].append(host)
    return list(groups.values())


class _Job:
    """The leaves of a job, by what is alike, and what its hosts read of them.

    Args:
        topology: The hosts.
        limits: What follows from the options.
        gaps: See `build_plan`.
        required: Whether all bytes that a checksum covers are read.
    """

    def __init__(self, topology: Topology, limits: Limits, gaps: Sequence[int], *, required: bool):
        self._topology, self._limits, self._gaps = topology, limits, gaps
        self._required = required
        self._classes: dict[Hashable, _Leaves] = {}
        self._order: list[tuple[_Leaves, int]] = []
        self._files = [_Files() for _ in gaps]
        self._batches: dict[Hashable, _Batches] = {}
        self._inline: dict[Hashable, tuple[int, int]] = {}
        self._joined: list[list[Ranges]] = [[] for _ in gaps]
        self._finished = False

    def add(self, pair: Pair, located: Sequence[Chunk]) -> None:
        """Adds a leaf, in template order."""
        merged = merge_chunks(located) if len(located) > 1 else located
        target, entry = pair.target, pair.entry
        spec = None if target.sharding is None else target.sharding.spec
        wanted = target.kind, target.host, target.shape, target.dtype, spec
        key = pair.source, wanted, entry.dtype, entry.shape, describe_layout(merged)
        leaves = self._classes.get(key)
        if leaves is None:
            gap = self._gaps[pair.source]
            alike = LeafClass(
                pair, merged, self._topology, self._limits, gap=gap, required=self._required
            )
            leaves = self._classes[key] = _Leaves(alike, pair.source)
        self._order.append((leaves, leaves.add(merged, self._files[pair.source])))

    def plan(self, hosts: Sequence[int]) -> tuple[HostPlan, int]:
        """What hosts that hold the same do, each of them, and its number of workers."""
        classes = list(self._classes.values())
        if not self._finished:
            for leaves in classes:
                leaves.finish()
            self._finished = True
        shares = [leaves.alike.find_share(hosts[0]) for leaves in classes]
        batches = self._fill_batches(shares)
        reads: list[_Reads] = []
        for source in range(len(self._gaps)):
            made = self._read(source, shares, batches)
            reads.append(made)
            self._joined[source].append(made.joined)
        stored, decoded = self._measure_inline(shares, batches)
        scratch = max([stored, *(r.stored for r in reads)])
        scratch += max([decoded, *(r.decoded for r in reads)])
        workers = self._limits.fit_threads(scratch, batches.transient)
        each = list(zip(classes, shares, strict=True))
        pieces = [
            (leaves, number, parts)
            for leaves, share in each
            for group in share.groups
            for number, _, parts in group.pieces
        ]
        plan = HostPlan(
            tuple(hosts),
            sum(r.requests for r in reads),
            sum(r.read_bytes for r in reads),
            sum(r.useful_bytes for r in reads),
            sum(len(leaves) * parts.parts for leaves, _, parts in pieces),
            sum(len(leaves) * parts.decoded for leaves, _, parts in pieces),
            sum(len(leaves) * share.placed_bytes for leaves, share in each),
            batches.transient + workers * scratch + self._limits.held,
            sum(len(leaves) * share.device_bytes for leaves, share in each),
            sum(len(leaves) * parts.ideal_bytes for leaves, _, parts in pieces)
            + sum(
                _share_bytes(leaves.stop[:, number] - leaves.start[:, number], *parts.ideal_share)
                for leaves, number, parts in pieces
                if parts.ideal_share is not None
            ),
        )
        return plan, workers

    def _fill_batches(self, shares: Sequence[LeafShare]) -> _Batches:
        """Which batch each group of boxes goes to; once for all hosts with boxes of these sizes."""
        sizes = tuple(
            [tuple([(g.boxes, g.nbytes, g.transient) for g in share.groups]) for share in shares]
        )
        known = self._batches.get(sizes)
        if known is not None:
            return known
        at = {id(leaves): i for i, leaves in enumerate(self._classes.values())}
        numbers = [
            [np.zeros(len(leaves), np.int64) for _ in groups]
            for leaves, groups in zip(self._classes.values(), sizes, strict=True)
        ]
        transient = [0]
        size = BatchSize(self._limits.share)
        for leaves, place in self._order:
            i = at[id(leaves)]
            for column, (boxes, nbytes, passing) in zip(numbers[i], sizes[i], strict=True):
                if size.add(boxes, nbytes, passing):
                    transient.append(0)
                transient[-1] = size.transient
                column[place] = len(transient) - 1
        made = self._batches[sizes] = _Batches(numbers, measure_window(transient))
        return made

    def _read(
        self, source: int, shares: Sequence[LeafShare], batches: _Batches, *, exact: bool = False
    ) -> _Reads:
        """The requests of a host.

        Args:
            source: What it reads from.
            shares: What it holds of each class of leaves.
            batches: Its batches.
            exact: Whether ranges overlap, which is rare: then the order of leaves counts, and each
                part has a row.
        """
        places: list[tuple[np.ndarray, ...]] = []
        kinds: list[np.ndarray] = []
        count, files = 0, max(1, len(self._files[source]))
        position = {}
        if exact:
            for i, (leaves, place) in enumerate(self._order):
                position[id(leaves), place] = i
        each = zip(self._classes.values(), shares, batches.numbers, strict=True)
        for leaves, share, numbers in each:
            if leaves.source != source:
                continue
            for g, (group, batch) in enumerate(zip(share.groups, numbers, strict=True)):
                rows = group.list_rows(exact=exact)
                if not len(rows):
                    continue
                chunk, shape = rows[:, CHUNK], (len(leaves), len(rows))
                kinds.append(rows)
                kind = np.broadcast_to(np.arange(count, count + len(rows)), shape)
                count += len(rows)
                columns = [
                    leaves.file[:, chunk] + (batch * files)[:, None],
                    leaves.start[:, chunk] + rows[:, START],
                    leaves.stop[:, chunk] + rows[:, STOP],
                    kind,
                ]
                if exact:
                    order = [position[id(leaves), i] for i in range(len(leaves))]
                    columns.append(np.broadcast_to(np.array(order)[:, None], shape))
                    columns.append(np.full(shape, g))
                places.append(tuple([column.ravel() for column in columns]))
        if not places:
            none = np.zeros(0, np.int64)
            return _Reads(0, 0, 0, 0, 0, (none, none, none))
        file, start, stop, kind, *leaf = map(np.concatenate, zip(*places, strict=True))
        order = (
            np.lexsort((kind, *reversed(leaf), start, file)) if exact else np.lexsort((start, file))
        )
        file, start, stop, kind = file[order], start[order], stop[order], kind[order]
        if not exact and ((start[1:] < stop[:-1]) & (file[1:] == file[:-1])).any():
            return self._read(source, shares, batches, exact=True)
        table = np.concatenate(kinds)
        sizes = stop - start
        nbytes = table[kind, NBYTES]
        first = find_requests(
            file,
            start,
            stop,
            nbytes,
            sizes >= table[kind, LEAST],
            most=self._limits.request,
            gap=self._gaps[source],
        )
        counts = np.diff(np.append(first, len(start)))
        begin, end = start[first], np.maximum.reduceat(stop, first)
        left_out, parts = table[kind, LEFT_OUT], table[kind, PARTS]
        read = end - begin - left_out[first]
        useful = np.minimum(end - begin, np.add.reduceat(sizes + table[kind, USEFUL], first))
        alone, several = counts == 1, counts > 1
        only = kind[first[alone]]
        stored = np.minimum(table[only, STORED], (end - begin)[alone]).max(initial=0)
        decoded = table[only, DECODED].max(initial=0)
        if several.any():
            stored = max(stored, (end - begin)[several].max())
            decoded = max(decoded, np.add.reduceat(nbytes, first)[several].max())
        return _Reads(
            len(first) + int((parts - 1)[first[alone]].sum()),
            int(read.sum()),
            int(useful.sum()),
            int(stored),
            int(decoded),
            (file[first][several] % files, begin[several], end[several]),
        )

    def _measure_inline(self, shares: Sequence[LeafShare], batches: _Batches) -> tuple[int, int]:
        """The most scratch memory for values that an index holds: stored bytes, and decoded."""
        values = tuple(
            [
                tuple(
                    [tuple([v for _, _, p in group.pieces for v in p.inline]) for group in s.groups]
                )
                for s in shares
            ]
        )
        if not any(any(groups) for groups in values):
            return 0, 0
        key = id(batches), values
        known = self._inline.get(key)
        if known is not None:
            return known
        at = {id(leaves): i for i, leaves in enumerate(self._classes.values())}
        held: defaultdict[tuple[int, int], list[tuple[int, int, int]]] = defaultdict(list)
        for leaves, place in self._order:
            i = at[id(leaves)]
            for column, mine in zip(batches.numbers[i], values[i], strict=True):
                if mine:
                    held[leaves.source, int(column[place])] += mine
        stored = decoded = 0
        for mine in held.values():
            first = find_inline_groups([nbytes for nbytes, _, _ in mine], self._limits.request)
            for a, b in itertools.pairwise([*first, len(mine)]):
                if b - a == 1:
                    stored, decoded = max(stored, mine[a][1]), max(decoded, mine[a][2])
                else:
                    decoded = max(decoded, sum([nbytes for nbytes, _, _ in mine[a:b]]))
        self._inline[key] = stored, decoded
        return stored, decoded

    def count_distinct_bytes(self) -> int:
        """Number of bytes that any host reads, once all hosts were planned."""
        total = 0
        for source in range(len(self._gaps)):
            found = list(self._joined[source])
            for leaves in self._classes.values():
                if leaves.source == source:
                    chunk, start, stop = leaves.alike.list_ranges()
                    found.append(
                        (
                            leaves.file[:, chunk].ravel(),
                            (leaves.start[:, chunk] + start).ravel(),
                            (leaves.stop[:, chunk] + stop).ravel(),
                        )
                    )
            if found:
                total += count_bytes(*map(np.concatenate, zip(*found, strict=True)))
        return total


def _share_bytes(nbytes: np.ndarray, wanted: int, size: int) -> int:
    """The sum of this share of each number of bytes, rounded up."""
    if int(nbytes.max(initial=0)) * wanted >= 1 << 62:
        return sum([-(-n * wanted // size) for n in nbytes.tolist()])
    return int((-(-nbytes * wanted // size)).sum())
