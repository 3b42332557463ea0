"""The plan of a restore by a job of many hosts: what each would read, and all together. Pure.

Every host is planned as `build_plan` plans it there (see `plan_hosts`), so the figures are those of
a restore on these hosts, not estimates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .._core.text import format_size, leaf_noun, list_names
from .._escape import join_lines
from .._match.result import Match
from ..errors import UsageError
from .topology import Topology


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
