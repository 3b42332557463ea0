"""The plan of a restore: requests, batches, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from .._core.text import leaf_noun, list_names
from .._core.workers import MEMORY_BYTES
from .._match.result import Match
from .buffers import Buffer
from .parts import Check, Part, count_useful_bytes

IN_FLIGHT = 3
"""Batches that are being read while another is being placed."""


class ReadOp(msgspec.Struct, frozen=True, gc=False):
    """One request, or a group of values that an index held (`start == stop`).

    Attributes:
        source: 0 for the checkpoint, 1 for the one given as `missing=`.
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
    """Boxes that are read, and then placed, together.

    Attributes:
        reads: That fill the buffers.
        buffers: One per box.
        checks: Of buffers that are mapped: what is compared with checksums, a job each.
    """

    reads: tuple[ReadOp, ...]
    buffers: tuple[Buffer, ...]
    checks: tuple[tuple[Check, ...], ...] = ()

    @property
    def transient_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers if buffer.transient)


@dataclass(frozen=True, slots=True, repr=False)
class Plan:
    """All reads of a restore. `print(plan)` shows what they cost, `templax.run(plan)` does them.

    Attributes:
        match: What it fulfils.
        batches: In the order in which they are done.
        threads: Workers: as asked, or fewer where their scratch would not fit in the memory.
        verify: As asked.
        unverified: Names of leaves with bytes that can't be checked, as far as the checkpoint's
            metadata tells: no checksum covers them, or one that covers more than a job reads.
        summed: Whether there are chunks with `sums`.
        scratch_bytes: Most memory that one worker needs beside the buffers.
        memory: As asked. One box, and one worker, are taken even if they are more.
        unmapped: Under `mapped=True`, why boxes are read all the same, and how many.
        sources: Of the checkpoint, and of the one given as `missing=`; opaque here.
        prepared: Seconds that each stage before took.
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

    @property
    def _reads(self) -> Iterator[ReadOp]:
        return (op for batch in self.batches for op in batch.reads if op.stop > op.start)

    @property
    def requests(self) -> int:
        """Ranges asked of the sources. Of a large compressed one 1 MiB is read at a time."""
        return sum(1 for _ in self._reads)

    @property
    def read_bytes(self) -> int:
        """Bytes asked of the sources, gaps included."""
        return sum(op.stop - op.start for op in self._reads)

    @property
    def useful_bytes(self) -> int:
        """Of these, bytes that belong to what was asked for."""
        return sum(count_useful_bytes(part) for op in self._reads for part in op.parts)

    @property
    def decoded_chunks(self) -> int:
        """Chunks that have to be decompressed."""
        ops = (op for batch in self.batches for op in batch.reads)
        return sum("zstd" in part.chunk.codecs for op in ops for part in op.parts)

    @property
    def placed_bytes(self) -> int:
        """Bytes of the finished leaves on this process, each distinct box once."""
        buffers = (b for batch in self.batches for b in batch.buffers)
        return sum([b.nbytes // b.dtype.itemsize * b.pair.target.dtype.itemsize for b in buffers])

    @property
    def mapped_bytes(self) -> int:
        """Bytes that no request reads, since their file is mapped."""
        return sum([b.nbytes for batch in self.batches for b in batch.buffers if b.view])

    @property
    def peak_bytes(self) -> int:
        """Most host memory in flight beyond the arrays returned."""
        sizes = [batch.transient_bytes for batch in self.batches]
        window = IN_FLIGHT + 1
        most = max((sum(sizes[i : i + window]) for i in range(len(sizes))), default=0)
        return most + self.threads * self.scratch_bytes

    def __repr__(self) -> str:
        leaves, nbytes = len(self.match.pairs), self.placed_bytes
        return f"Plan({self.match.url!r}, {leaves:,} leaves, {nbytes:,} bytes)"

    def __str__(self) -> str:
        return explain_plan(self)


def explain_plan(plan: Plan) -> str:
    """The text of `str(plan)`: what a restore will do, as a table."""
    n = len(plan.match.pairs)
    lines = [f"restore of {n:,} {leaf_noun(n)} from {plan.match.url}"]
    lines += [f"  {what:<16}{n:>18,}  {note}".rstrip() for what, n, note in plan_figures(plan)]
    if plan.unmapped:
        reasons = [f"{n:,} {why}" for why, n in plan.unmapped.items()]
        lines.append(f"  not mapped: {', '.join(reasons)}")
    if plan.unverified:
        lines.append(f"  not verifiable: {list_names(plan.unverified)}")
    return "\n".join(lines)


def plan_figures(plan: Plan) -> list[tuple[str, int, str]]:
    """What a plan costs: name, figure and a remark for each."""
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
