"""One leaf: its boxes × its chunks → parts, the pieces of work that fill its buffers. Pure.

A `Part` is read by one job and serves all buffers that want a piece of it. Raw chunks (see
`is_raw`) may be cut at any row, so that threads share a large one; others are always one part.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import msgspec
import numpy as np

from .._catalog.checksums import align_to_blocks, covers_whole_blocks
from .._catalog.entry import Chunk, Extent
from .._core.boxes import (
    Box,
    Shape,
    full_box,
    intersect,
    is_contiguous,
    relative_box,
    shape_of,
    span_of,
)
from .._core.index_map import StridedCopy, span_copies
from .._match.result import Pair
from .buffers import Buffer, Measures

IN_PLACE_BYTES = 128 * 1024
"""A raw part of at least this size is a request of its own: it is read in place, at the cost of a
system call (5 µs) instead of a copy."""

GAP_BYTES = 64 * 1024
"""A gap of at most this many bytes between two parts of a file is read and dropped; a wider one
separates requests."""

REQUEST_BYTES = 4 * 1024 * 1024
"""Small parts are joined to requests of at most this size, so that every thread gets work. It also
limits the stored bytes that a worker holds of a zstd chunk that is read as it is decoded."""

AHEAD_BYTES = 16 * 1024 * 1024
"""From an object store, bytes that are checked or decoded as they come are fetched in blocks of
this size, and small parts are joined to requests of at most this size: each takes as long as the
network takes to answer."""

STORE_BYTES = 128 * 1024 * 1024
"""What an object store may hold at most: half of it are pieces of answers, 1 MiB for each request,
and the rest what was read around short ranges."""

LARGE_BYTES = 1024 * 1024
"""An encoded part of at least this size is a request of its own."""

BLOCK_BYTES = 1024 * 1024
"""Compressed chunks that must be cut into pieces or cast are decoded in blocks of this size, which
are still in cache when they are copied."""

CHECKED_BYTES = 2 * 1024 * 1024
"""Raw bytes that are checked as they are read come in pieces of this size: small enough to be still
in the cache that cores share, large enough to keep the reads few (1 MiB is 10 % slower)."""

SCATTER_BYTES = 4 * 1024 * 1024
"""Raw parts whose pieces go to several places, or are cast, are read in pieces of at most this."""

NEARLY = 16
"""The rest of a block is read too, so that it can be compared with its checksum, if there are at
least this many wanted bytes for each byte of the rest."""

SPLIT_BYTES = 32 * 1024 * 1024
"""Raw parts larger than this are shared by several threads, which read them or, if they are mapped,
check them."""


class Copy(msgspec.Struct, frozen=True, gc=False):
    """A piece of a chunk that a buffer wants.

    Attributes:
        buffer: Index of the buffer in the batch.
        src: Box within the chunk.
        dst: Box within the buffer; of the same shape.
    """

    buffer: int
    src: Box
    dst: Box


class Part(msgspec.Struct, frozen=True, gc=False):
    """The bytes to read of one chunk, and the buffers that want a piece of them.

    Attributes:
        name: The leaf.
        chunk: The chunk.
        dtype: The stored dtype.
        start, stop: Bytes of the object to read: the whole chunk unless it is raw. More than the
            copies need where a checksum that must be compared covers more.
        direct: The byte of the buffer where the decoded bytes begin, if they can be read or decoded
            in place: there is a single copy, it is contiguous in the buffer, and it is not cast.
            Else None.
        nbytes: Bytes that the chunk decodes to; for a raw chunk, the bytes that are read.
        copies: At least one, unless some are `strided`.
        strided: In place of `copies`, if the chunk has an `origin` (see `mapped_parts`).
    """

    name: str
    chunk: Chunk
    dtype: np.dtype
    start: int
    stop: int
    direct: int | None
    nbytes: int
    copies: tuple[Copy, ...]
    strided: tuple[StridedCopy, ...] = ()

    @property
    def buffer(self) -> int:
        """The buffer that its first copy is for: the only one, if the part is direct."""
        return (self.strided or self.copies)[0].buffer


class Check(msgspec.Struct, frozen=True, gc=False):
    """Bytes of a mapping to compare with the checksums of their chunk.

    Attributes:
        name: The leaf.
        source: Index of the source, as in `ReadOp`.
        chunk: The chunk; it has `sums`.
        start, stop: Bytes of the object.
    """

    name: str
    source: int
    chunk: Chunk
    start: int
    stop: int


def merge_chunks(chunks: Sequence[Chunk]) -> Sequence[Chunk]:
    """Merges raw chunks that lie back to back along the first dimension into one chunk.

    templax saves large leaves so: other readers see chunks of ordinary size, and templax can map
    the leaf as one range. Chunks whose checksums would not cover equal blocks of the merged one are
    returned unchanged.
    """
    first = chunks[0]
    (key, stop), rest = (first.extent.key, first.extent.start), first.box[1:]
    if not first.box:
        return chunks
    edge = first.box[0][0]
    for chunk in chunks:
        extent, box = chunk.extent, chunk.box
        follows = extent.key == key and extent.start == stop and box[0][0] == edge
        if not follows or box[1:] != rest or not is_raw(chunk) or chunk.origin is not None:
            return chunks
        stop, edge = extent.stop, box[0][1]
    extent, box = Extent(key, first.extent.start, stop), ((first.box[0][0], edge), *rest)
    checked = all(chunk.checked for chunk in chunks)
    sums = [value for chunk in chunks for value in chunk.sums]
    if not sums:
        return (Chunk(extent, box, checked=checked),)
    block = first.extent.nbytes
    sizes = {chunk.extent.nbytes for chunk in chunks[:-1]}
    one_each = all(len(chunk.sums) == 1 for chunk in chunks)
    if not one_each or sizes != {block} or chunks[-1].extent.nbytes > block:
        return chunks
    return (Chunk(extent, box, (), "C", checked, tuple(sums), block),)


def make_parts(
    pair: Pair,
    buffers: Sequence[Buffer],
    first: int,
    chunks: Sequence[Chunk],
    measures: Measures,
    whole_blocks: bool = False,
) -> Iterable[Part]:
    """Makes the parts to read: of each chunk that overlaps a buffer.

    Args:
        pair: The leaf.
        buffers: Some or all of its buffers.
        first: Index of the first of them in the batch.
        chunks: All chunks of the leaf.
        measures: Measures of boxes seen so far.
        whole_blocks: Whether to read all bytes that a checksum covers where only some are wanted.
    """
    if not (len(chunks) == 1 == len(buffers) and chunks[0].box == buffers[0].box):
        return make_parts_by_chunk(pair, buffers, first, chunks, measures, whole_blocks)
    # The common case: the only chunk is exactly the buffer.
    entry, chunk = pair.entry, chunks[0]
    dtype, extent, measure = entry.dtype, chunk.extent, measures[chunk.box]
    direct = 0 if chunk.order == "C" and buffers[0].dtype == dtype else None
    nbytes, copies = measure.size * dtype.itemsize, (Copy(first, measure.origin, measure.origin),)
    part = Part(entry.name, chunk, dtype, extent.start, extent.stop, direct, nbytes, copies)
    return (part,) if nbytes <= SCATTER_BYTES else _split_part(part, _max_bytes(part))


def make_parts_by_chunk(
    pair: Pair,
    buffers: Sequence[Buffer],
    first: int,
    chunks: Sequence[Chunk],
    measures: Measures,
    whole_blocks: bool,
) -> Iterator[Part]:
    """As `make_parts`, for some of the chunks of a leaf."""
    entry = pair.entry
    itemsize = entry.dtype.itemsize
    everything = full_box(entry.shape)
    for chunk in chunks:
        inside = intersect(chunk.box, everything)  # an edge chunk reaches past the shape
        if inside is None:
            continue
        copies: list[Copy] = []
        for i, buffer in enumerate(buffers, first):
            overlap = intersect(inside, buffer.box)
            if overlap is not None:
                copies.append(
                    Copy(i, relative_box(overlap, chunk.box), relative_box(overlap, buffer.box))
                )
        if not copies:
            continue
        start, stop = chunk.extent.start, chunk.extent.stop
        measure = measures[chunk.box]
        nbytes = measure.size * itemsize
        raw = is_raw(chunk)
        if raw:
            start, stop = _span_of_copies(chunk, copies, itemsize)
            nbytes = stop - start
        buffer, src, dst = buffers[copies[0].buffer - first], copies[0].src, copies[0].dst
        direct = None
        if (
            len(copies) == 1
            and chunk.order == "C"
            and buffer.dtype == entry.dtype
            and is_contiguous(dst, buffer.shape)
            and (src == measure.origin or (raw and is_contiguous(src, measure.shape)))
        ):
            direct = span_of(dst, buffer.shape, itemsize)[0]
        part = Part(entry.name, chunk, entry.dtype, start, stop, direct, nbytes, tuple(copies))
        if whole_blocks and raw and chunk.sums:
            # Widened pieces go through scratch memory. Small ones keep the others direct.
            most = _max_bytes(part) if covers_whole_blocks(chunk, start, stop) else SCATTER_BYTES
            yield from map(widen_to_blocks, _split_part(part, most))
        else:
            yield from map(complete_blocks, _split_part(part, _max_bytes(part)))


def _max_bytes(part: Part) -> int:
    """The most bytes of a raw part that one job reads."""
    return SCATTER_BYTES if part.direct is None else SPLIT_BYTES


def is_raw(chunk: Chunk) -> bool:
    """Whether any range of elements can be read from the source by itself."""
    return not chunk.codecs and chunk.order == "C" and chunk.extent.inline is None


def _split_part(part: Part, most: int, axis: int = 0) -> Iterator[Part]:
    """Cuts a raw part of more than `most` bytes along its first dimension of more than one element.

    Threads then share it, and pieces that are scattered are still in cache. Pieces of a chunk with
    checksums begin and end where blocks do, so that each block is read by one job.
    """
    chunk, shape = part.chunk, shape_of(part.chunk.box)
    if part.stop - part.start <= most or axis == len(shape) or not is_raw(chunk):
        yield part
        return
    begin = min(copy.src[axis][0] for copy in part.copies)
    end = max(copy.src[axis][1] for copy in part.copies)
    row = math.prod(shape[axis + 1 :]) * part.dtype.itemsize
    unit = chunk.block // math.gcd(chunk.block, row) if chunk.sums else 1
    step = max(unit, most // row // unit * unit)
    if end - begin == 1 and (not chunk.sums or _row_begins_block(part, axis, row)):
        yield from _split_part(part, most, axis + 1)
    elif end - begin <= step:
        yield part
    else:
        for first in range(begin - begin % unit, end, step):
            piece = _cut_rows(part, axis, first, first + step)
            if piece is not None:
                yield from _split_part(piece, most, axis)


def _row_begins_block(part: Part, axis: int, row: int) -> bool:
    """Whether a block begins where the single row of a part, `row` bytes along `axis`, begins."""
    index = 0
    for (start, _), n in zip(
        part.copies[0].src[: axis + 1], shape_of(part.chunk.box), strict=False
    ):
        index = index * n + start
    return index * row % part.chunk.block == 0


def _cut_rows(part: Part, axis: int, first: int, last: int) -> Part | None:
    """Rows `first` to `last` of a raw part along a dimension; None if no copy wants any."""
    copies: list[Copy] = []
    for copy in part.copies:
        (a, b), (to, _) = copy.src[axis], copy.dst[axis]
        low, high = max(a, first), min(b, last)
        if low < high:
            src = (*copy.src[:axis], (low, high), *copy.src[axis + 1 :])
            dst = (*copy.dst[:axis], (low - a + to, high - a + to), *copy.dst[axis + 1 :])
            copies.append(Copy(copy.buffer, src, dst))
    if not copies:
        return None
    start, stop = _span_of_copies(part.chunk, copies, part.dtype.itemsize)
    direct = None if part.direct is None else part.direct + start - part.start
    return msgspec.structs.replace(
        part, start=start, stop=stop, direct=direct, nbytes=stop - start, copies=tuple(copies)
    )


def _span_of_copies(chunk: Chunk, copies: Sequence[Copy], itemsize: int) -> tuple[int, int]:
    """The bytes of the object that these copies of a raw chunk need."""
    shape, origin = shape_of(chunk.box), chunk.extent.start
    spans = [span_of(copy.src, shape, itemsize) for copy in copies]
    return origin + min(a for a, _ in spans), origin + max(b for _, b in spans)


def count_useful_bytes(part: Part) -> int:
    """The bytes that a part reads, without those that only a checksum needs."""
    if not part.chunk.sums or not is_raw(part.chunk):
        return part.stop - part.start
    if part.strided:
        start, stop = span_copies(part.strided)
        return (stop - start) * part.dtype.itemsize
    start, stop = _span_of_copies(part.chunk, part.copies, part.dtype.itemsize)
    return stop - start


def widen_to_blocks(part: Part) -> Part:
    """Widens a part of a chunk with `sums` to whole blocks; it is then read to scratch memory."""
    start, stop = align_to_blocks(part.chunk, part.start, part.stop)
    if (start, stop) == (part.start, part.stop):
        return part
    return msgspec.structs.replace(part, start=start, stop=stop, direct=None, nbytes=stop - start)


def complete_blocks(part: Part) -> Part:
    """`widen_to_blocks` for a part that lacks little of its blocks, so that they can be compared.

    Not for a large part that is read in place, which would be copied.
    """
    nbytes = part.stop - part.start
    if not part.chunk.sums or (part.direct is not None and nbytes > SCATTER_BYTES):
        return part
    start, stop = align_to_blocks(part.chunk, part.start, part.stop)
    lacks = stop - start - nbytes
    return widen_to_blocks(part) if 0 < lacks <= nbytes // NEARLY else part


def make_checks(name: str, source: int, chunk: Chunk, start: int, stop: int) -> Iterator[Check]:
    """Splits mapped bytes of a chunk with `sums` into checks that threads can share."""
    step = max(1, SPLIT_BYTES // chunk.block) * chunk.block
    origin = chunk.extent.start
    for first in range(start - (start - origin) % step, stop, step):
        yield Check(name, source, chunk, max(first, start), min(first + step, stop))


def find_long_axis(shape: Shape) -> int:
    """The first dimension with more than one element; the last if none has."""
    return next((i for i, n in enumerate(shape) if n > 1), len(shape) - 1)


def reads_crc32c_in_place(part: Part) -> bool:
    """Whether a chunk of codecs `("crc32c",)` is read in place, its checksum separately."""
    stored, chunk = part.stop - part.start, part.chunk
    if part.direct is None or chunk.codecs != ("crc32c",) or chunk.sums:
        return False
    return stored >= LARGE_BYTES and stored == part.nbytes + 4 and chunk.extent.inline is None


def measure_scratch(part: Part, ahead: int, whole: int) -> tuple[int, int]:
    """Scratch bytes that a worker needs for a part: for stored bytes, and for decoded ones.

    Args:
        part: The part.
        ahead: Stored bytes that are held of a part that is decoded as it is read.
        whole: The most decoded bytes of a zstd part that is not.
    """
    codecs, order = part.chunk.codecs, part.chunk.order
    stored = 0 if part.chunk.extent.inline is not None else part.stop - part.start
    if part.direct is not None and not codecs and stored >= IN_PLACE_BYTES:
        return 0, 0
    if reads_crc32c_in_place(part):
        return 0, 0
    if codecs == ("fill",) or (codecs == ("zstd",) and part.nbytes > whole):
        stored = min(stored, ahead)
    if codecs in ((), ("fill",)) or (part.direct is not None and codecs == ("zstd",)):
        return stored, 0
    decoded = part.nbytes
    in_blocks = order == "C" and part.chunk.box and part.chunk.origin is None
    if codecs == ("zstd",) and decoded > whole and in_blocks:
        shape = shape_of(part.chunk.box)
        row = math.prod(shape[find_long_axis(shape) + 1 :]) * part.dtype.itemsize
        decoded = min(decoded, max(row, BLOCK_BYTES))
    return stored, decoded
