"""Parts → requests: which parts of a file are read together. Pure.

The rules look at columns, so that they serve a plan of one process, which has the parts, and that
of all hosts of a job, which only has their numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from .parts import GAP_BYTES, IN_PLACE_BYTES, LARGE_BYTES, Part
from .plan import ReadOp

INLINE_PARTS = 512
"""One job decodes at most this many values that an index holds."""


def is_in_place(part: Part) -> bool:
    """Whether a part is read straight to where it is wanted: it is direct, and not encoded."""
    return part.direct is not None and not part.chunk.codecs


def find_alone_bytes(in_place: bool, gap: int) -> int:
    """The stored bytes from which on a part is a request of its own.

    Args:
        in_place: See `is_in_place`.
        gap: See `build_plan`; of its source.
    """
    return max(gap, IN_PLACE_BYTES if in_place else LARGE_BYTES)


def find_requests(
    file: np.ndarray,
    start: np.ndarray,
    stop: np.ndarray,
    nbytes: np.ndarray,
    alone: np.ndarray,
    *,
    most: int,
    gap: int,
) -> np.ndarray:
    """Joins parts to requests: neighbours in a file, unless they are large or far apart.

    Args:
        file, start, stop, nbytes: For each part, a number of its file, its bytes there, and those
            that it decodes to; in the order of `file`, then of `start`.
        alone: Whether it is a request of its own.
        most: Parts are joined while they have at most this many bytes, stored and decoded.
        gap: See `build_plan`.

    Returns:
        The index of the first part of each request.
    """
    n, near = len(start), max(gap, GAP_BYTES)
    joins = np.zeros(n, bool)  # whether a part may share the request of the one before
    joins[1:] = (file[1:] == file[:-1]) & ~alone[1:] & ~alone[:-1]
    reach = stop[:-1]  # how far the parts before reach
    overlap = bool((joins[1:] & (start[1:] < reach)).any())
    if overlap:
        reach = _accumulate_reach(joins, stop)[:-1]
    joins[1:] &= start[1:] - reach <= near
    first = np.flatnonzero(~joins)
    if len(first) == n:
        return first
    last = np.append(first[1:], n)
    found = [first]
    long = np.maximum.reduceat(stop, first) - start[first] > most
    long |= np.add.reduceat(nbytes, first) > most
    if overlap:
        for a, b in zip(first.tolist(), last.tolist(), strict=True):
            found.append(a + _cut_overlapping(start[a:b], stop[a:b], nbytes[a:b], most, near))
        return np.sort(np.concatenate(found))
    long &= last - first > 1
    if not long.any():
        return first
    return np.sort(np.append(first, _cut_runs(first[long], last[long], start, stop, nbytes, most)))


def _accumulate_reach(joins: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """How far the parts up to each one reach, of those that may share its request."""
    reach = stop.copy()
    first = np.flatnonzero(~joins)
    for a, b in zip(first.tolist(), [*first[1:].tolist(), len(stop)], strict=True):
        np.maximum.accumulate(stop[a:b], out=reach[a:b])
    return reach


def _cut_runs(
    first: np.ndarray,
    last: np.ndarray,
    start: np.ndarray,
    stop: np.ndarray,
    nbytes: np.ndarray,
    most: int,
) -> list[int]:
    """Cuts runs of parts that are too many for one request: each takes what it can.

    Args:
        first, last: The first part of each run, and the one after its last.
        start, stop, nbytes, most: See `find_requests`. The parts of a run do not overlap.

    Returns:
        The first part of each request but the first of each run.
    """
    counts = last - first
    ends = np.cumsum(counts)
    rows = np.arange(ends[-1]) + np.repeat(first - ends + counts, counts)
    # The runs are laid end to end, so that one search finds where any request would end.
    spans = stop[last - 1] - start[first]
    moved = np.repeat(np.cumsum(spans) - spans - start[first], counts)
    begin, end, decoded = start[rows] + moved, stop[rows] + moved, np.cumsum(nbytes[rows])
    stored = np.searchsorted(end, begin + most, side="right")
    size = np.searchsorted(decoded, decoded - nbytes[rows] + most, side="right")
    after = np.maximum(np.minimum(stored, size), np.arange(len(rows)) + 1).tolist()
    found: list[int] = []
    begins, shifts = (ends - counts).tolist(), (first - ends + counts).tolist()
    for i, stop_at, shift in zip(begins, ends.tolist(), shifts, strict=True):
        while (i := after[i]) < stop_at:
            found.append(i + shift)
    return found


def _cut_overlapping(
    start: np.ndarray, stop: np.ndarray, nbytes: np.ndarray, most: int, near: int
) -> np.ndarray:
    """Cuts a run of parts of which some overlap; see `_cut_runs`.

    Returns:
        The index of the first part of each request but the first.
    """
    found: list[int] = []
    decoded = np.cumsum(nbytes)
    i, n = 0, len(start)
    while True:
        limit = decoded[i] - nbytes[i] + most
        end = max(i + 1, int(np.searchsorted(decoded, limit, side="right")))
        reach = np.maximum.accumulate(stop[i:end])[:-1]
        beyond = (stop[i + 1 : end] - start[i] > most) | (start[i + 1 : end] - reach > near)
        if beyond.any():
            end = i + 1 + int(beyond.argmax())
        if end == n:
            return np.array(found, np.intp)
        found.append(end)
        i = end


def find_inline_groups(nbytes: Sequence[int], most: int) -> list[int]:
    """Groups values that an index holds; one worker decodes a group.

    Args:
        nbytes: Bytes that each decodes to.
        most: They are grouped while they have at most this many bytes.

    Returns:
        The index of the first value of each group.
    """
    found: list[int] = []
    first = decoded = 0
    for i, n in enumerate(nbytes):
        if not found or i - first == INLINE_PARTS or decoded + n > most:
            found.append(i)
            first, decoded = i, 0
        decoded += n
    return found


def make_requests(parts: Sequence[list[Part]], most: int, gaps: Sequence[int]) -> Iterator[ReadOp]:
    """Joins the parts of each source into requests, in the order of its files.

    Args:
        parts: The parts of each source.
        most: Small parts are joined while they have at most this many bytes, stored and decoded.
        gaps: See `build_plan`.
    """
    for source, mine in enumerate(parts):
        stored = [part for part in mine if part.chunk.extent.inline is None]
        if stored:
            yield from _join_parts(source, stored, most, gaps[source])
        if len(stored) == len(mine):
            continue
        held = [part for part in mine if part.chunk.extent.inline is not None]
        first = find_inline_groups([part.nbytes for part in held], most)
        for a, b in zip(first, [*first[1:], len(held)], strict=True):
            yield ReadOp(source, held[a].chunk.extent.key, 0, 0, tuple(held[a:b]))


def _join_parts(source: int, parts: list[Part], most: int, gap: int) -> Iterator[ReadOp]:
    """The requests of the parts of a source that lie in files."""
    if len(parts) == 1:
        (part,) = parts
        yield ReadOp(source, part.chunk.extent.key, part.start, part.stop, (part,))
        return
    keys = [part.chunk.extent.key for part in parts]
    number = {key: i for i, key in enumerate(sorted(set(keys)))}
    file = np.array([number[key] for key in keys], np.int64)
    start = np.array([part.start for part in parts], np.int64)
    order = np.lexsort((start, file))
    file, start = file[order], start[order]
    parts = [parts[i] for i in order.tolist()]
    stop = np.array([part.stop for part in parts], np.int64)
    nbytes = np.array([part.nbytes for part in parts], np.int64)
    in_place = np.array([is_in_place(part) for part in parts])
    least = np.where(in_place, find_alone_bytes(True, gap), find_alone_bytes(False, gap))
    first = find_requests(file, start, stop, nbytes, stop - start >= least, most=most, gap=gap)
    begins = start[first].tolist()
    ends = np.maximum.reduceat(stop, first).tolist()
    last = [*first[1:].tolist(), len(parts)]
    for a, b, begin, end in zip(first.tolist(), last, begins, ends, strict=True):
        yield ReadOp(source, parts[a].chunk.extent.key, begin, end, tuple(parts[a:b]))
