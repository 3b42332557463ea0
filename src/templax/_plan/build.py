"""Match + chunks → Plan: which bytes are read, and where each goes. Pure: no I/O, no JAX.

Planning goes chunk by chunk: each chunk that overlaps a wanted box is read and decoded once,
however many boxes want a piece of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from .._catalog.checksums import align_to_blocks, covers_whole_blocks
from .._catalog.entry import Chunk
from .._codecs.decode import FILL
from .._core.boxes import intersect, relative_box, shape_of, span_of
from .._core.workers import MEMORY_BYTES
from .._match.result import Match
from .buffers import Buffer, Measures, find_view, make_buffers
from .limits import BatchSize, Limits, find_limits
from .mapped_parts import make_mapped_parts
from .parts import Check, Part, is_raw, make_checks, make_parts, measure_scratch, merge_chunks
from .plan import Batch, Plan, ReadOp, measure_transient
from .requests import make_requests


def build_plan(
    match: Match,
    chunks: Sequence[Mapping[str, Sequence[Chunk]]],
    *,
    threads: int = 1,
    memory: int = MEMORY_BYTES,
    verify: str = "available",
    mapped: Sequence[bool] = (),
    sources: Sequence[Any] = (),
    gaps: Sequence[int] = (),
    shared: Container[str] = (),
    blocks: bool = False,
) -> Plan:
    """Plans the reads of a match without mismatches.

    Args:
        match: Pairs of targets and leaves.
        chunks: For the checkpoint, then for each one given as `missing=`: name of the entry → the
            chunks that tile it.
        threads: Most workers to use.
        memory: Bytes in flight beyond the arrays returned. Boxes that need the same bytes are
            loaded together even if they exceed it.
        verify: Stored in the plan. With `"required"`, all bytes that a checksum covers are read
            where some of them are wanted; otherwise these stay unchecked.
        mapped: For each source, whether its bytes can be mapped; empty for no mapping.
        sources: Stored in the plan.
        gaps: For each source, the bytes between two parts that are rather read and dropped than
            left out by a second request; empty, or 0, for local files.
        shared: Names of targets of which several processes read a part each. Of these, too, all
            bytes that a checksum covers are read: else none of them could compare it where two
            parts meet.
        blocks: Whether the targets are blocks of leaves that are read whole, block by block. What
            lies between the short runs of a block is then read with it and dropped.

    Returns:
        A plan with batches in template order. Its copies tile every buffer: each element is written
        exactly once.
    """
    gaps = gaps or [0] * len(chunks)
    limits = find_limits(threads, memory, gaps)
    size = BatchSize(limits.share)
    batches: list[Batch] = []
    buffers: list[Buffer] = []
    parts: list[list[Part]] = [[] for _ in chunks]  # of each source
    checks: list[Check] = []
    unverified: list[str] = []
    filled: list[str] = []
    unmapped = Counter[str]()
    required, any_sums = verify == "required", False
    whole_blocks = shared if verify != "off" else ()
    measures = Measures()
    for pair in match.pairs:
        target, source = pair.target, pair.source
        if target.kind == "string":
            continue
        located: Sequence[Chunk] = chunks[source][pair.entry.name]
        if len(located) > 1:
            located = merge_chunks(located)
        whole = required or target.name in whole_blocks
        covered, summed, absent = True, False, False
        mapped_chunks: list[Chunk] = []
        for chunk in located:
            if chunk.origin is not None:
                mapped_chunks.append(chunk)
            if not chunk.checked:
                covered = False
            elif chunk.sums:
                any_sums = summed = True
            if chunk.codecs == FILL:
                absent = True
        boxes = make_buffers(pair, measures)
        for mine in (boxes,) if len(boxes) == 1 else group_buffers(boxes, located, limits.share):
            here = mine[0].nbytes if len(mine) == 1 else sum([b.nbytes for b in mine])
            passing = here if mine and mine[0].transient else 0
            if size.add(len(mine), here, passing):
                batches.append(_make_batch(parts, buffers, checks, limits.request, gaps))
                buffers, parts, checks = [], [[] for _ in chunks], []
            view = "read"
            if mapped and here:
                view = (
                    find_view(pair, mine, located) if mapped[source] else "in no local file system"
                )
                if isinstance(view, str):
                    unmapped[view] += 1
            if isinstance(view, str):
                first = len(buffers)
                if mapped_chunks:
                    plain_chunks = [chunk for chunk in located if chunk.origin is None]
                    made = list(make_parts(pair, mine, first, plain_chunks, measures, whole))
                    for chunk in mapped_chunks:
                        made += make_mapped_parts(pair.entry, mine, first, chunk, whole, blocks)
                else:
                    made = make_parts(pair, mine, first, located, measures, whole)
                if summed:
                    made = list(made)
                    for part in made:
                        if part.chunk.sums and not covers_whole_blocks(
                            part.chunk, part.start, part.stop
                        ):
                            covered = False
                parts[source].extend(made)
            else:
                mine = [msgspec.structs.replace(mine[0], view=view)]
                if summed:
                    (chunk,), start, stop = tuple(located), view.start, view.stop
                    if whole:
                        start, stop = align_to_blocks(chunk, start, stop)
                    covered = covered and covers_whole_blocks(chunk, start, stop)
                    checks += make_checks(pair.entry.name, source, chunk, start, stop)
            buffers += mine
        if not covered:
            unverified.append(target.name)
        if absent:
            filled.append(target.name)
    if buffers:
        batches.append(_make_batch(parts, buffers, checks, limits.request, gaps))
    scratch = _max_scratch((op for batch in batches for op in batch.reads), limits)
    threads = limits.fit_threads(scratch, measure_transient(batches))
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
        filled=tuple(filled),
        held_bytes=limits.held,
        whole_bytes=limits.whole,
    )


def _make_batch(
    parts: Sequence[list[Part]],
    buffers: Sequence[Buffer],
    checks: Sequence[Check],
    most: int,
    gaps: Sequence[int],
) -> Batch:
    """Makes a batch of these buffers; its requests and checks have about `most` bytes at most."""
    jobs: list[list[Check]] = []
    nbytes = most
    for check in checks:
        if nbytes >= most:
            jobs.append([])
            nbytes = 0
        jobs[-1].append(check)
        nbytes += check.stop - check.start
    return Batch(tuple(make_requests(parts, most, gaps)), tuple(buffers), tuple(map(tuple, jobs)))


def group_buffers(
    buffers: list[Buffer], chunks: Sequence[Chunk], share: int
) -> Iterable[list[Buffer]]:
    """Groups the boxes of a leaf; each group may go to a batch of its own.

    All boxes are one group unless they exceed the memory that may be in flight. Then boxes that
    need the same bytes share a group, so that no byte is read or decoded twice.
    """
    if sum([b.nbytes for b in buffers if b.transient]) <= share:
        return (buffers,)
    group = list(range(len(buffers)))  # union-find: buffer → a lower one of its group, or itself

    def lowest(i: int) -> int:
        while group[i] != i:
            i = group[i]
        return i

    for chunk in chunks:
        itemsize = buffers[0].pair.entry.dtype.itemsize
        last = reach = -1
        for start, stop, i in sorted(_find_needed_ranges(chunk, buffers, itemsize)):
            if start < reach:
                a, b = sorted((lowest(last), lowest(i)))
                group[b] = a
            last, reach = i, max(stop, reach)
    grouped: dict[int, list[Buffer]] = {}
    for i, buffer in enumerate(buffers):
        grouped.setdefault(lowest(i), []).append(buffer)
    return grouped.values()


def _find_needed_ranges(
    chunk: Chunk, buffers: Sequence[Buffer], itemsize: int
) -> Iterator[tuple[int, int, int]]:
    """The decoded bytes of a chunk that each buffer needs: start, stop, index of the buffer.

    A chunk that is decoded whole, or mapped, counts as one byte, which all its buffers need.
    """
    shape = shape_of(chunk.box)
    for i, buffer in enumerate(buffers):
        overlap = intersect(chunk.box, buffer.box)
        if overlap is not None and (chunk.origin is not None or not is_raw(chunk)):
            yield 0, 1, i
        elif overlap is not None:
            yield *span_of(relative_box(overlap, chunk.box), shape, itemsize), i


def _max_scratch(ops: Iterable[ReadOp], limits: Limits) -> int:
    """The most scratch bytes that one worker needs: for stored bytes, and for decoded ones."""
    stored = decoded = 0
    for op in ops:
        if len(op.parts) == 1:
            here, there = measure_scratch(op.parts[0], limits.ahead, limits.whole)
            stored, decoded = max(stored, here), max(decoded, there)
        else:
            stored = max(stored, op.stop - op.start)
            decoded = max(decoded, sum([part.nbytes for part in op.parts]))
    return stored + decoded
