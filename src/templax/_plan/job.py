"""The plan of a restore by a job of many hosts: what each would read, and all together. Pure.

Every host is planned by `build_plan`, as it would plan itself; hosts that hold the same boxes are
planned once. So the figures are those of a restore on these hosts, not estimates.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from msgspec import structs

from .._catalog.entry import Chunk
from .._core.boxes import size_of
from .._core.text import format_size, leaf_noun, list_names
from .._escape import join_lines
from .._match.result import Match, Pair
from ..errors import UsageError
from .chunk_lookup import ChunkLookup
from .parts import Part, merge_chunks
from .plan import Plan
from .topology import Indices, Spec, Topology

Located = Sequence[Mapping[str, Sequence[Chunk]]]


@dataclass(frozen=True, slots=True)
class HostPlan:
    """What hosts that hold the same boxes of every leaf do, each of them.

    Attributes:
        hosts: Their numbers.
        requests, read_bytes, useful_bytes, decoded_chunks, placed_bytes, peak_bytes: See `Plan`.
        chunks: Number of chunks of which anything is read, or pieces of large ones.
        device_bytes: Bytes of the finished leaves on the device that holds most.
        ideal_bytes: Stored bytes that would be read if each of its boxes were a chunk of its own.
    """

    hosts: tuple[int, ...]
    requests: int
    read_bytes: int
    useful_bytes: int
    chunks: int
    decoded_chunks: int
    placed_bytes: int
    peak_bytes: int
    device_bytes: int
    ideal_bytes: int


@dataclass(frozen=True, slots=True, repr=False)
class JobPlan:
    """What a restore costs on each host of a topology. `print(plan)` shows it.

    Attributes:
        match: The pairs of targets and leaves.
        topology: The hosts.
        groups: The hosts, grouped by what they hold.
        distinct_bytes: Bytes of the checkpoint that any host reads.
        whole: Names of the leaves that every host reads whole, as they have no sharding.
        threads: Number of workers of each host.
    """

    match: Match
    topology: Topology
    groups: tuple[HostPlan, ...]
    distinct_bytes: int
    whole: tuple[str, ...]
    threads: int

    @property
    def read_bytes(self) -> int:
        """Bytes that all hosts read together."""
        return sum(group.read_bytes * len(group.hosts) for group in self.groups)

    @property
    def repeated_bytes(self) -> int:
        """How many of `read_bytes` are read again by another host, or for another leaf."""
        return self.read_bytes - self.distinct_bytes

    @property
    def worst(self) -> HostPlan:
        """What the hosts that read most do."""
        return max(self.groups, key=lambda group: (group.read_bytes, group.requests))

    def find_host(self, number: int) -> HostPlan:
        """Returns what one host does, and the others that do the same.

        Raises:
            UsageError: The topology has fewer hosts.
        """
        found = next((group for group in self.groups if number in group.hosts), None)
        if found is None:
            most = self.topology.hosts - 1
            raise UsageError(f"Expected the number of a host from 0 to {most:,}, got {number!r}")
        return found

    def estimate_seconds(self, *, bandwidth: float, latency: float = 0.0) -> float:
        """Seconds that the slowest host reads for, if nothing else takes time.

        Args:
            bandwidth: Bytes that one host reads in a second.
            latency: Seconds until the first byte of a request; as many requests as there are
                threads wait at a time.
        """
        return max(
            group.read_bytes / bandwidth + -(-group.requests // self.threads) * latency
            for group in self.groups
        )

    def __repr__(self) -> str:
        return f"JobPlan({self.match.url!r}, {self.topology})"

    def __str__(self) -> str:
        return explain_job(self)


JOB_FIGURES: Mapping[str, str] = {
    "requests": "requests",
    "bytes read": "read_bytes",
    "bytes useful": "useful_bytes",
    "bytes placed": "placed_bytes",
    "chunks": "chunks",
    "chunks decoded": "decoded_chunks",
    "peak host bytes": "peak_bytes",
    "device bytes": "device_bytes",
}
"""What is shown of each host → the attribute of `HostPlan`."""


def list_figures(plan: JobPlan) -> list[tuple[str, int, int, int, int]]:
    """For each of `JOB_FIGURES`: its name, the least, median and most of a host, and the sum."""
    rows: list[tuple[str, int, int, int, int]] = []
    for what, name in JOB_FIGURES.items():
        values = sorted(v for g in plan.groups for v in [getattr(g, name)] * len(g.hosts))
        rows.append((what, values[0], values[len(values) // 2], values[-1], sum(values)))
    return rows


def explain_job(plan: JobPlan) -> str:
    """The text of `str(plan)`: the figures of the hosts as a table, and what would help."""
    n, topology = len(plan.match.pairs), plan.topology
    mesh = " × ".join(f"{axis}={size:,}" for axis, size in topology.mesh.items())
    lines = [
        f"restore of {n:,} {leaf_noun(n)} from {plan.match.url}",
        f"  hosts {topology.hosts:,} × devices {topology.devices_per_host:,}, mesh {mesh}",
        f"  {'a host':<16}{'least':>18}{'median':>18}{'most':>18}{'all hosts':>22}",
    ]
    for what, least, median, most, total in list_figures(plan):
        lines.append(f"  {what:<16}{least:>18,}{median:>18,}{most:>18,}{total:>22,}")
    lines += [f"  {line}" for line in list_advice(plan)]
    return join_lines(lines)


def list_advice(plan: JobPlan) -> list[str]:
    """Which host is the worst, what is read more than once, and the effect of what would help."""
    worst, hosts = plan.worst, plan.topology.hosts
    first, *rest = worst.hosts
    others = f" and {len(rest):,} more" if rest else ""
    lines = [f"reads most: host {first:,}{others}, {format_size(worst.read_bytes)}"]
    if plan.whole:
        names = list_names(plan.whole)
        lines.append(f"without a sharding, read whole by every host: {names}")
    if plan.repeated_bytes:
        share = plan.repeated_bytes / plan.read_bytes
        lines.append(
            f"read more than once: {format_size(plan.repeated_bytes)} ({share:.1%}); if every byte"
            f" was read once, each host would read {format_size(-(-plan.distinct_bytes // hosts))}"
        )
    ideal = max(group.ideal_bytes for group in plan.groups)
    if ideal < worst.read_bytes:
        lines.append(
            f"saved in chunks of these shards, no host would read more than {format_size(ideal)}"
        )
    return lines


def plan_job(
    match: Match,
    chunks: Located,
    topology: Topology,
    build: Callable[[Match, Located], Plan],
) -> JobPlan:
    """Plans a restore for every host.

    Args:
        match: Pairs without mismatches, whose targets are sharded over the mesh of the topology or
            not at all.
        chunks: See `build_plan`.
        topology: The hosts.
        build: `build_plan` with the options of the restore, given merged chunks.
    """
    pairs = [pair for pair in match.pairs if pair.target.kind != "string"]
    specs = {p.target.sharding.spec: None for p in pairs if p.target.sharding is not None}
    lookups = [
        {name: ChunkLookup(merge_chunks(located)) for name, located in each.items() if located}
        for each in chunks
    ]
    ranges, threads = _Ranges(), 1
    plans: list[HostPlan] = []
    for hosts in _group_hosts(topology, list(specs)):
        placed = [_place_pair(pair, topology, hosts[0]) for pair in pairs]
        narrowed: list[dict[str, Sequence[Chunk]]] = [{} for _ in chunks]
        for pair in placed:
            lookup = lookups[pair.source].get(pair.entry.name)
            found = () if lookup is None else lookup.find(pair.target.boxes)
            narrowed[pair.source][pair.entry.name] = found
        plan = build(replace(match, pairs=tuple(placed)), narrowed)
        ranges.add(plan)
        threads = max(threads, plan.threads)
        plans.append(_summarize(plan, tuple(hosts)))
    whole = tuple(pair.target.name for pair in pairs if pair.target.sharding is None)
    return JobPlan(match, topology, tuple(plans), ranges.count(), whole, threads)


def _group_hosts(topology: Topology, specs: Sequence[Spec]) -> list[list[int]]:
    """The hosts that hold the same slices, in the order of the first of each group."""
    groups: defaultdict[tuple[tuple[Indices, ...], ...], list[int]] = defaultdict(list)
    for host in range(topology.hosts):
        groups[tuple(topology.find_indices(spec, host) for spec in specs)].append(host)
    return list(groups.values())


def _place_pair(pair: Pair, topology: Topology, host: int) -> Pair:
    """A pair whose target has the boxes of a host."""
    target = pair.target
    spec = None if target.sharding is None else target.sharding.spec
    boxes = topology.find_boxes(spec, target.shape, host)
    transient = not target.host and topology.platform != "cpu"
    return structs.replace(pair, target=structs.replace(target, boxes=boxes, transient=transient))


def _summarize(plan: Plan, hosts: tuple[int, ...]) -> HostPlan:
    chunks = ideal = 0
    for batch in plan.batches:
        for op in batch.reads:
            chunks += len(op.parts)
            if op.stop > op.start:
                ideal += sum(map(_count_wanted_bytes, op.parts))
    targets = [p.target for p in plan.match.pairs if not p.target.host and p.target.boxes]
    on_device = sum(max(map(size_of, t.boxes)) * t.dtype.itemsize for t in targets)
    return HostPlan(
        hosts,
        plan.requests,
        plan.read_bytes,
        plan.useful_bytes,
        chunks,
        plan.decoded_chunks,
        plan.placed_bytes,
        plan.peak_bytes,
        on_device,
        ideal,
    )


def _count_wanted_bytes(part: Part) -> int:
    """The stored bytes of the elements that a part is read for, if they lay together."""
    if part.strided:
        return part.stop - part.start
    chunk = part.chunk
    wanted = sum([size_of(copy.src) for copy in part.copies])
    return -(-chunk.extent.nbytes * wanted // max(1, size_of(chunk.box)))


class _Ranges:
    """The byte ranges that any host reads."""

    def __init__(self) -> None:
        self._found: defaultdict[tuple[int, str], list[Any]] = defaultdict(list)

    def add(self, plan: Plan) -> None:
        """Adds the requests of a plan."""
        mine: defaultdict[tuple[int, str], list[tuple[int, int]]] = defaultdict(list)
        for batch in plan.batches:
            for op in batch.reads:
                if op.stop > op.start:
                    mine[op.source, op.key].append((op.start, op.stop))
        for key, ranges in mine.items():
            self._found[key].append(np.array(ranges, np.int64))

    def count(self) -> int:
        """Number of bytes in any of the ranges."""
        total = 0
        for arrays in self._found.values():
            ranges = np.concatenate(arrays)
            ranges = ranges[np.argsort(ranges[:, 0], kind="stable")]
            reach = np.maximum.accumulate(ranges[:, 1])
            begin = ranges[:, 0].copy()
            begin[1:] = np.maximum(begin[1:], reach[:-1])  # what lies before was counted
            total += int(np.maximum(ranges[:, 1] - begin, 0).sum())
        return total
