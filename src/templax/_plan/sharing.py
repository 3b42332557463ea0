"""Which leaves the processes of a job read together, each an even part of them. Pure.

Where several processes need the same bytes, as replicas or as shards that cut across the chunks of
the checkpoint, each can read other bytes, in another layout over the same devices, which then move
the values to where the template wants them. The choice is a function of what every process knows:
shapes, shardings, chunks and options. So all make the same one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec
from msgspec import structs

from .._core.boxes import size_of
from .._core.text import format_size, leaf_noun, list_names
from .._template.template import Target
from .moves import Layout, Move

ShareReads = Literal["auto", "always", "never"]

GROUP_BYTES = 64 * 1024 * 1024
"""Leaves are moved together while their parts, their results and what XLA needs for them have at
most this many bytes."""


class ReadCost(msgspec.Struct, frozen=True):
    """What one process reads of a leaf.

    Attributes:
        requests: Byte ranges.
        read_bytes: Bytes in them.
        decoded_bytes: Bytes that chunks with a compression decode to.
        copied_bytes: Bytes that are copied from where they were read or decoded.
    """

    requests: int = 0
    read_bytes: int = 0
    decoded_bytes: int = 0
    copied_bytes: int = 0

    def __add__(self, other: ReadCost) -> ReadCost:
        pairs = zip(structs.astuple(self), structs.astuple(other), strict=True)
        return ReadCost(*[a + b for a, b in pairs])

    def __mul__(self, count: int) -> ReadCost:
        return ReadCost(*[n * count for n in structs.astuple(self)])

    def estimate_seconds(self, machine: Machine, *, remote: bool) -> float:
        """Seconds that one process takes, from fixed rates."""
        rate = (
            STORE_BYTES_PER_S / machine.processes if remote else LOCAL_BYTES_PER_S * machine.share
        )
        decoded = self.decoded_bytes / DECODED_BYTES_PER_S
        return self.read_bytes / rate + (
            (decoded + self.copied_bytes / COPIED_BYTES_PER_S) / machine.share
        )


class Machine(msgspec.Struct, frozen=True, array_like=True):
    """What the processes of a job run on, as process 0 sees it.

    Attributes:
        cores: Cores that a process may use.
        processes: Processes that share these cores, and the network.
    """

    cores: int
    processes: int = 1

    @property
    def share(self) -> float:
        """Cores for one process."""
        return self.cores / self.processes


# Measured on two cores of an Intel Xeon, 2026-11-29, with 2 and 4 processes on loopback. "Auto" has
# to be right where one way takes much longer than the other, not to the last percent.
STORE_BYTES_PER_S = 100e6
"""What a machine gets from an object store. Many get more: then sharing costs what XLA compiles."""

LOCAL_BYTES_PER_S = 3e9
"""What a core reads from a file in the page cache."""

DECODED_BYTES_PER_S = 450e6
"""What a core decodes, with zstd, to where it is needed."""

COPIED_BYTES_PER_S = 2e9
"""What a core copies from strided pieces."""


class MoveRates(msgspec.Struct, frozen=True):
    """What moves between devices cost.

    Attributes:
        gather_bytes_per_s, exchange_bytes_per_s: What one process receives, with a core of its own.
        compile_s: Seconds of a core to compile the moves of leaves that are alike.
    """

    gather_bytes_per_s: float
    exchange_bytes_per_s: float
    compile_s: float


CPU_RATES = MoveRates(300e6, 350e6, 0.25)
"""Gloo over TCP on loopback."""

ACCELERATOR_RATES = MoveRates(10e9, 10e9, 0.25)
"""Assumed, not measured: NCCL over a network of 100 Gbit/s. The links of TPUs are faster."""


class SharedLeaf(msgspec.Struct, frozen=True):
    """A leaf that is read in another layout than the template's, then moved.

    Attributes:
        target: The leaf as the template wants it.
        layout: How it is read.
        moves: From there to the template's sharding.
        held_bytes: Bytes of what the devices of this process hold before the moves.
        placed_bytes: Bytes of what they hold after the moves.
        received_bytes: Bytes that they receive.
        scratch_bytes: The most that XLA needs besides, about.
    """

    target: Target
    layout: Layout
    moves: tuple[Move, ...]
    held_bytes: int
    placed_bytes: int
    received_bytes: int
    scratch_bytes: int

    @property
    def target_bytes(self) -> int:
        """Bytes of the finished leaf on this process, each distinct box counted once."""
        return sum(map(size_of, self.target.boxes)) * self.target.dtype.itemsize


class Declined(msgspec.Struct, frozen=True):
    """Leaves that each process reads for itself although together they would read less.

    Attributes:
        names: The leaves.
        why: The reason, in words.
        apart: What the process that reads most reads of all of them.
        shared: What it would read with sharing; zeros if that is not possible.
        received_bytes: What it would receive in the moves.
    """

    names: tuple[str, ...]
    why: str
    apart: ReadCost
    shared: ReadCost = ReadCost()
    received_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Sharing:
    """Which leaves are read together.

    Attributes:
        leaves: Those of which this process reads a part and receives the rest, by name.
        declined: Those that are not shared although several processes read the same bytes.
        digest: Equal on all processes that made the same choice; empty if nothing is shared.
        unshared: Requests, bytes read and chunks decoded by this process if nothing was shared.
        on_host: Whether devices use the memory of the host.
    """

    leaves: Mapping[str, SharedLeaf] = field(default_factory=dict)
    declined: tuple[Declined, ...] = ()
    digest: str = ""
    unshared: tuple[int, int, int] = (0, 0, 0)
    on_host: bool = True

    @property
    def received_bytes(self) -> int:
        """Bytes that the devices of this process receive."""
        return sum(leaf.received_bytes for leaf in self.leaves.values())

    @property
    def peak_bytes(self) -> int:
        """The most bytes beyond those of the result that devices hold while leaves are moved."""
        leaves = self.leaves.values()
        held, missing = sum(x.held_bytes for x in leaves), sum(x.placed_bytes for x in leaves)
        peak = 0
        for names in self.group_leaves():
            group = [self.leaves[name] for name in names]
            missing -= sum(leaf.placed_bytes for leaf in group)
            peak = max(peak, held - missing + sum(leaf.scratch_bytes for leaf in group))
            held -= sum(leaf.held_bytes for leaf in group)
        return peak

    def group_leaves(self) -> list[list[str]]:
        """The leaves that are moved together, group by group."""
        groups: list[list[str]] = []
        nbytes = GROUP_BYTES
        for name, leaf in self.leaves.items():
            mine = leaf.held_bytes + leaf.placed_bytes + leaf.scratch_bytes
            if not groups or nbytes + mine > GROUP_BYTES:
                groups.append([])
                nbytes = 0
            groups[-1].append(name)
            nbytes += mine
        return groups


def list_sharing(sharing: Sharing, requests: int, read_bytes: int) -> list[str]:
    """Which leaves are read together, which are not, and what the other way would cost.

    Args:
        sharing: The choice.
        requests, read_bytes: What this process reads, of all leaves.
    """
    lines: list[str] = []
    if sharing.digest:
        n, (apart, apart_bytes, _) = len(sharing.leaves), sharing.unshared
        lines.append(
            f"read together by several processes: {n:,} {leaf_noun(n)}, of which this one receives"
            f" {format_size(sharing.received_bytes)}: {list_names(list(sharing.leaves))}"
        )
        lines.append(
            f"without that it would read {format_size(apart_bytes)} in {apart:,} requests, not"
            f" {format_size(read_bytes)} in {requests:,}"
        )
    for each in sharing.declined:
        n, cost = len(each.names), each.apart
        text = f"read by each process: {n:,} {leaf_noun(n)}, up to {format_size(cost.read_bytes)}"
        if each.shared.read_bytes:
            text += (
                f"; together, {format_size(each.shared.read_bytes)} and"
                f" {format_size(each.received_bytes)} received"
            )
        lines.append(f"{text}; {each.why}: {list_names(each.names)}")
    return lines
