"""The plan of a restore: requests, batches, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from .._codecs.decode import COMPRESSIONS
from .._core.text import leaf_noun, list_filled, list_names
from .._core.workers import MEMORY_BYTES
from .._escape import join_lines
from .._match.result import Match, list_differences
from .buffers import Buffer
from .parts import Check, Part, count_useful_bytes
from .sharing import Sharing, list_sharing

IN_FLIGHT = 3
"""How many batches are read ahead while one is being placed."""


class ReadOp(msgspec.Struct, frozen=True, gc=False):
    """One request, or a group of values that an index held (`start == stop`).

    Attributes:
        source: 0 for the checkpoint, 1 and up for those given as `missing=`.
        key: The object.
        start, stop: Bytes, half open, that cover all parts.
        parts: In order of their start.
    """

    source: int
    key: str
    start: int
    stop: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Boxes that are read together, then placed together.

    Attributes:
        reads: The requests that fill the buffers.
        buffers: One per box.
        checks: For mapped buffers: the bytes to compare with checksums, grouped into jobs.
    """

    reads: tuple[ReadOp, ...]
    buffers: tuple[Buffer, ...]
    checks: tuple[tuple[Check, ...], ...] = ()

    @property
    def transient_bytes(self) -> int:
        """Bytes of buffers that are freed once their leaves are placed."""
        return sum(buffer.nbytes for buffer in self.buffers if buffer.transient)


@dataclass(frozen=True, slots=True, repr=False)
class Plan:
    """All reads of a restore. `print(plan)` shows their cost; `templax.run(plan)` does them.

    Attributes:
        match: The pairs of targets and leaves that it restores.
        batches: In the order in which they are read.
        threads: Number of workers: as asked, or fewer if their scratch memory would exceed
            `memory`.
        verify: As asked.
        unverified: Names of leaves with bytes that can't be checked, as far as the checkpoint's
            metadata tells: no checksum covers them, or one that covers more than is read.
        summed: Whether any chunk has `sums`.
        scratch_bytes: The most memory that one worker needs besides the buffers.
        held_bytes: The most memory that object stores hold themselves: pieces of answers, and what
            they have read around short ranges.
        whole_bytes: A zstd chunk that decodes to more is decoded as it is read.
        memory: As asked. A single box and a single worker are accepted even if they exceed it.
        unmapped: With `mapped=True`: reason → number of boxes that are read for this reason.
        sources: The source of the checkpoint, then of each one given as `missing=`; opaque here.
        prepared: Seconds that each of the earlier stages took.
        filled: Names of leaves with chunks that are absent, which means the fill value in zarr.
        cost: What a request costs, from an object store: parts that lie so close that a second
            request would take longer are read by one.
        sharing: The leaves that the processes of a job read together. `match` has their targets as
            they are read.
    """

    match: Match
    batches: tuple[Batch, ...]
    threads: int = 1
    verify: str = "available"
    unverified: tuple[str, ...] = ()
    summed: bool = False
    scratch_bytes: int = 0
    memory: int = MEMORY_BYTES
    unmapped: Mapping[str, int] = field(default_factory=dict)
    sources: Sequence[Any] = field(default=(), compare=False)
    prepared: Mapping[str, float] = field(default_factory=dict, compare=False)
    filled: tuple[str, ...] = ()
    held_bytes: int = 0
    whole_bytes: int = 0
    cost: str = ""
    sharing: Sharing = field(default_factory=Sharing)

    @property
    def _reads(self) -> Iterator[ReadOp]:
        return (op for batch in self.batches for op in batch.reads if op.stop > op.start)

    @property
    def requests(self) -> int:
        """Byte ranges requested from the sources. A large compressed one is read in 1 MiB steps."""
        return sum(1 for _ in self._reads)

    @property
    def read_bytes(self) -> int:
        """Bytes requested from the sources, gaps included."""
        return sum(op.stop - op.start for op in self._reads)

    @property
    def useful_bytes(self) -> int:
        """How many of `read_bytes` belong to the leaves asked for."""
        # In a view, several leaves may be made of the same bytes of a request.
        return sum(
            min(op.stop - op.start, sum([count_useful_bytes(part) for part in op.parts]))
            for op in self._reads
        )

    @property
    def decoded_chunks(self) -> int:
        """Number of chunks to decompress."""
        ops = (op for batch in self.batches for op in batch.reads)
        return sum(
            not COMPRESSIONS.keys().isdisjoint(part.chunk.codecs) for op in ops for part in op.parts
        )

    @property
    def placed_bytes(self) -> int:
        """Bytes of the finished leaves on this process, each distinct box counted once."""
        shared = self.sharing.leaves
        buffers = [b for batch in self.batches for b in batch.buffers]
        if shared:
            buffers = [b for b in buffers if b.pair.target.name not in shared]
        return sum(
            [b.nbytes // b.dtype.itemsize * b.pair.target.dtype.itemsize for b in buffers]
        ) + sum(leaf.target_bytes for leaf in shared.values())

    @property
    def mapped_bytes(self) -> int:
        """Bytes that are not read, since their file is mapped."""
        return sum([b.nbytes for batch in self.batches for b in batch.buffers if b.view])

    @property
    def peak_bytes(self) -> int:
        """The most host memory in flight beyond the arrays returned, in bytes."""
        scratch = self.threads * self.scratch_bytes
        reading = measure_transient(self.batches) + scratch + self.held_bytes
        return max(reading, self.sharing.peak_bytes) if self.sharing.on_host else reading

    def __repr__(self) -> str:
        leaves, nbytes = len(self.match.pairs), self.placed_bytes
        return f"Plan({self.match.url!r}, {leaves:,} leaves, {nbytes:,} bytes)"

    def __str__(self) -> str:
        return explain_plan(self)


def measure_transient(batches: Sequence[Batch]) -> int:
    """The most bytes of transient buffers that batches have while a plan is carried out."""
    return measure_window([batch.transient_bytes for batch in batches])


def measure_window(sizes: Sequence[int]) -> int:
    """The most transient bytes at a time, of batches that each have so many."""
    window = IN_FLIGHT + 1
    return max((sum(sizes[i : i + window]) for i in range(len(sizes))), default=0)


def explain_plan(plan: Plan) -> str:
    """The text of `str(plan)`: what a restore will do, as a table."""
    n = len(plan.match.pairs)
    lines = [f"restore of {n:,} {leaf_noun(n)} from {plan.match.url}"]
    lines += [f"  {what:<16}{n:>18,}  {note}".rstrip() for what, n, note in plan_figures(plan)]
    differences = list_differences(plan.match.supplied, plan.match.kept, plan.match.ignored)
    lines += [f"  {line}" for line in differences]
    if plan.unmapped:
        reasons = [f"{n:,} {why}" for why, n in plan.unmapped.items()]
        lines.append(f"  not mapped: {', '.join(reasons)}")
    if plan.unverified:
        lines.append(f"  not verifiable: {list_names(plan.unverified)}")
    lines += [f"  {line}" for line in list_sharing(plan.sharing, plan.requests, plan.read_bytes)]
    if plan.cost:
        lines.append(f"  cost model: {plan.cost}")
    lines += list_filled(plan.filled)
    return join_lines(lines)


def plan_figures(plan: Plan) -> list[tuple[str, int, str]]:
    """What a plan costs, as rows of name, figure and remark."""
    read, useful = plan.read_bytes, plan.useful_bytes
    buffers = [buffer for batch in plan.batches for buffer in batch.buffers]
    mapped = sum(buffer.view is not None for buffer in buffers)
    ops = [op for batch in plan.batches for op in batch.reads]
    parts = [part for op in ops for part in op.parts]
    inline = sum(part.chunk.extent.inline is not None for part in parts)
    direct = sum(part.direct is not None for part in parts)
    casts = sum(cast.nbytes for cast in plan.match.casts)
    over = "in flight beyond the arrays returned"
    if plan.peak_bytes > plan.memory:
        over += f"; more than memory={plan.memory:,}: less is not possible"
    files = len({op.key for op in ops if op.stop > op.start})
    return [
        (
            "requests",
            plan.requests,
            f"of {files:,} file{'' if files == 1 else 's'}",
        ),
        ("bytes read", read, "as stored"),
        ("bytes useful", useful, f"{useful / read:.1%} of those read" if read else ""),
        ("bytes placed", plan.placed_bytes, "of the finished leaves"),
        ("bytes mapped", plan.mapped_bytes, f"{mapped:,} leaves over the file itself"),
        ("bytes cast", casts, f"{len(plan.match.casts):,} leaves"),
        ("chunks", len(parts), f"{inline:,} of them held by an index, or computed"),
        ("chunks decoded", plan.decoded_chunks, "decompressed"),
        ("copies avoided", direct, "chunks read or decoded in place"),
        ("peak host bytes", plan.peak_bytes, over),
        ("unverified", len(plan.unverified), "leaves with bytes that no checksum covers"),
        ("threads", plan.threads, "that read and decode"),
    ]
