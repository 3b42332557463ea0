"""Match + chunks → Plan: which bytes are read, and where each goes. Pure: no I/O, no JAX.

Chunk-first: each chunk that meets a wanted box is read and decoded once, however many boxes want a
piece of it.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ._boxes import intersect, shape_of, span_of, within
from ._catalog import Chunk
from ._match import Match
from ._parts import (
    IN_PLACE_BYTES,
    LARGE_BYTES,
    REQUEST_BYTES,
    Buffer,
    Check,
    Measures,
    Part,
    buffers_of,
    checks_of,
    is_raw,
    merged,
    parts_of,
    scratch_of,
    useful_bytes,
    view_of,
)
from ._sums import in_full, widened

GAP_BYTES = 64 * 1024
"""Bytes between two parts of a file that are read and dropped rather than asked for separately."""

BATCH_BYTES = 128 * 1024 * 1024
"""Bytes of buffers after which a batch closes: it is placed while the next ones are read."""

IN_FLIGHT = 3
"""Batches that are being read while another is being placed."""

MEMORY_BYTES = 2 * 1024 * 1024 * 1024
"""Default of `memory=`."""

BATCH_LEAVES = 4096
"""Boxes after which a batch closes."""

INLINE_PARTS = 512
"""Values held by an index that one job decodes."""


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
        return sum(useful_bytes(part) for op in self._reads for part in op.parts)

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
        from ._report import explain

        return explain(self)


def plan(
    match: Match,
    chunks: Sequence[Mapping[str, tuple[Chunk, ...]]],
    *,
    threads: int = 1,
    memory: int = MEMORY_BYTES,
    verify: str = "available",
    mapped: Sequence[bool] = (),
    sources: Sequence[Any] = (),
) -> Plan:
    """Plans the reads of a match without mismatches.

    Args:
        match: Pairs of targets and leaves.
        chunks: Of the checkpoint, and of the one given as `missing=`: name of the entry → chunks
            that tile it.
        threads: Workers.
        memory: Bytes in flight beyond the arrays returned. Boxes that need the same bytes are
            loaded together, though they be more.
        verify: Goes into the plan. Under `"required"`, where a part of what a checksum covers is
            wanted, all of it is read; else that part goes unchecked.
        mapped: Of each source, whether its bytes can be mapped; empty if they shall not be.
        sources: Go into the plan.

    Returns:
        Batches in template order. Every element of every buffer is written exactly once.
    """
    share = max(1, memory // (2 * (IN_FLIGHT + 1)))
    batches: list[Batch] = []
    buffers: list[Buffer] = []
    parts: tuple[list[Part], list[Part]] = [], []  # of the checkpoint, and of `missing=`
    checks: list[Check] = []
    unverified: list[str] = []
    unmapped = Counter[str]()
    required, any_sums = verify == "required", False
    nbytes = transient = 0
    most = max(GAP_BYTES, min(REQUEST_BYTES, memory // (4 * threads)))
    measures = Measures()
    for pair in match.pairs:
        if pair.target.kind == "string":
            continue
        source = int(pair.fallback)
        located: Sequence[Chunk] = chunks[source][pair.entry.name]
        if len(located) > 1:
            located = merged(located)
        covered, summed = True, False
        for chunk in located:
            if not chunk.checked:
                covered = False
            elif chunk.sums:
                any_sums = summed = True
        boxes = buffers_of(pair, measures)
        for mine in (boxes,) if len(boxes) == 1 else _groups(boxes, located, share):
            here = mine[0].nbytes if len(mine) == 1 else sum([b.nbytes for b in mine])
            passing = here if mine and mine[0].transient else 0
            full = nbytes >= BATCH_BYTES or len(buffers) >= BATCH_LEAVES
            if buffers and (full or transient + passing > share):
                batches.append(_batch(parts, buffers, checks, most))
                buffers, parts, checks, nbytes, transient = [], ([], []), [], 0, 0
            view = "read"
            if mapped and here:
                view = view_of(pair, mine, located) if mapped[source] else "in no local file system"
                if isinstance(view, str):
                    unmapped[view] += 1
            if isinstance(view, str):
                made = parts_of(pair, mine, len(buffers), located, measures, required)
                if summed:
                    made = list(made)
                    for part in made:
                        if part.chunk.sums and not in_full(part.chunk, part.start, part.stop):
                            covered = False
                parts[source].extend(made)
            else:
                mine = [msgspec.structs.replace(mine[0], view=view)]
                if summed:
                    (chunk,), start, stop = tuple(located), view.start, view.stop
                    if required:
                        start, stop = widened(chunk, start, stop)
                    covered = covered and in_full(chunk, start, stop)
                    checks += checks_of(pair.entry.name, source, chunk, start, stop)
            buffers += mine
            nbytes += here
            transient += passing
        if not covered:
            unverified.append(pair.target.name)
    if buffers:
        batches.append(_batch(parts, buffers, checks, most))
    scratch = _scratch(op for batch in batches for op in batch.reads)
    threads = max(1, min(threads, memory // (2 * scratch) if scratch else threads))
    return Plan(
        match,
        tuple(batches),
        threads,
        verify,
        tuple(unverified),
        any_sums,
        scratch,
        memory,
        unmapped,
        sources,
    )


def _batch(
    parts: Sequence[list[Part]], buffers: Sequence[Buffer], checks: Sequence[Check], most: int
) -> Batch:
    """A batch of these buffers; `most` as of `_requests`."""
    jobs: list[list[Check]] = []
    nbytes = most
    for check in checks:
        if nbytes >= most:
            jobs.append([])
            nbytes = 0
        jobs[-1].append(check)
        nbytes += check.stop - check.start
    return Batch(tuple(_requests(parts, most)), tuple(buffers), tuple(map(tuple, jobs)))


def _groups(buffers: list[Buffer], chunks: Sequence[Chunk], share: int) -> Iterable[list[Buffer]]:
    """The boxes of a leaf, in groups that go to separate batches.

    All of them, unless they are more than may be in flight; then those that need the same bytes, so
    that none is read or decoded twice.
    """
    if sum([b.nbytes for b in buffers if b.transient]) <= share:
        return (buffers,)
    group = list(range(len(buffers)))  # buffer → the lowest of its group

    def lowest(i: int) -> int:
        while group[i] != i:
            i = group[i]
        return i

    for chunk in chunks:
        itemsize = buffers[0].pair.entry.dtype.itemsize
        last = reach = -1
        for start, stop, i in sorted(_needed(chunk, buffers, itemsize)):
            if start < reach:
                a, b = sorted((lowest(last), lowest(i)))
                group[b] = a
            last, reach = i, max(stop, reach)
    grouped: dict[int, list[Buffer]] = {}
    for i, buffer in enumerate(buffers):
        grouped.setdefault(lowest(i), []).append(buffer)
    return grouped.values()


def _needed(
    chunk: Chunk, buffers: Sequence[Buffer], itemsize: int
) -> Iterator[tuple[int, int, int]]:
    """Which decoded bytes of a chunk each buffer needs: start, stop, index of the buffer."""
    shape = shape_of(chunk.box)
    for i, buffer in enumerate(buffers):
        overlap = intersect(chunk.box, buffer.box)
        if overlap is not None:
            span = span_of(within(overlap, chunk.box), shape, itemsize)
            start, stop = span if is_raw(chunk) else (0, 1)
            yield start, stop, i


def _requests(parts: Sequence[list[Part]], most: int) -> Iterator[ReadOp]:
    """Joins the parts of each source into requests, in the order of its files.

    Args:
        parts: Of each source.
        most: Bytes, stored and decoded, that small parts are joined to.
    """
    for source, mine in enumerate(parts):
        files: dict[str, list[Part]] = {}
        held: list[Part] = []
        for part in mine:
            extent = part.chunk.extent
            if extent.inline is None:
                files.setdefault(extent.key, []).append(part)
            else:
                held.append(part)
        for key in sorted(files):
            yield from _joined(source, key, files[key], most)
        group: list[Part] = []
        decoded = 0
        for part in held:
            if group and (len(group) == INLINE_PARTS or decoded + part.nbytes > most):
                yield ReadOp(source, group[0].chunk.extent.key, 0, 0, tuple(group))
                group, decoded = [], 0
            group.append(part)
            decoded += part.nbytes
        if group:
            yield ReadOp(source, group[0].chunk.extent.key, 0, 0, tuple(group))


def _joined(source: int, key: str, parts: list[Part], most: int) -> Iterator[ReadOp]:
    """Requests for the parts of one file: neighbours together, unless large or far apart."""
    parts.sort(key=operator.attrgetter("start"))
    group: list[Part] = []
    begin = stop = decoded = 0
    alone = False
    for part in parts:
        raw = part.direct is not None and not part.chunk.codecs
        large = part.stop - part.start >= (IN_PLACE_BYTES if raw else LARGE_BYTES)
        if (
            group
            and not alone
            and not large
            and part.start - stop <= GAP_BYTES
            and part.stop - begin <= most
            and decoded + part.nbytes <= most
        ):
            group.append(part)
            stop = max(stop, part.stop)
            decoded += part.nbytes
            continue
        if group:
            yield ReadOp(source, key, begin, stop, tuple(group))
        group, begin, stop, alone, decoded = [part], part.start, part.stop, large, part.nbytes
    if group:
        yield ReadOp(source, key, begin, stop, tuple(group))


def _scratch(ops: Iterable[ReadOp]) -> int:
    """Most bytes that one worker holds beside the buffers: what is stored, and what it becomes."""
    stored = decoded = 0
    for op in ops:
        if len(op.parts) == 1:
            here, there = scratch_of(op.parts[0])
            stored, decoded = max(stored, here), max(decoded, there)
        else:
            stored = max(stored, op.stop - op.start)
            decoded = max(decoded, sum([part.nbytes for part in op.parts]))
    return stored + decoded
