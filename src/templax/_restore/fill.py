"""Fills buffers from one request of a plan: reads, checks, decodes and copies. No threads here.

A part takes the cheapest way that its codecs, its size and its place in memory allow:

- read in place: raw bytes that lie in memory as they do in the file (`HostMemory.find_in_order`);
- checked or decoded piece by piece as they are read: single parts of more than `whole` bytes, and
  what is checked in place (`_read_streamed`);
- many at once: small zstd frames of one request (`_decode_many`);
- read to scratch memory, then decoded or copied (`_decode_part`).
"""

from __future__ import annotations

import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from .._catalog.checksums import BlockVerifier, check_blocks
from .._codecs.crc32c import compare_crc32c, crc32c
from .._codecs.decode import decode
from .._codecs.zstd import Inflater, inflate_many
from .._core.memory import SMALL_BYTES, Scratch
from .._plan.parts import (
    AHEAD_BYTES,
    CHECKED_BYTES,
    REQUEST_BYTES,
    Part,
    reads_crc32c_in_place,
)
from .._plan.plan import ReadOp
from ..errors import CheckpointError, Corrupted, NotFound, SourceError
from ..storage.source import Source, begin_read, find_cost
from .buffers import HostMemory
from .scatter import scatter, scatter_blocks, scatter_fill
from .stats import StageSeconds


class _PerThread(threading.local):
    """Memory that a thread reuses for each request; freed when the thread ends."""

    def __init__(self) -> None:
        self.scratch = Scratch(minimum=1024 * 1024)


_worker = _PerThread()

_AHEAD_BLOCKS = 4
"""Number of blocks of a request that are fetched, or decoded, at the same time."""


def fill_buffers(
    op: ReadOp, memory: HostMemory, source: Source, verify: bool, summed: bool, whole: int
) -> StageSeconds:
    """Reads one request and fills the buffers that want a piece of it.

    Args:
        op: The request, or a group of values that an index holds.
        memory: The buffers of its batch.
        source: Where it is read from.
        verify: Whether codecs compare the checksums that they store.
        summed: Whether to compare the `sums` of chunks that have any.
        whole: A zstd chunk that decodes to more bytes is decoded as it is read.

    Returns:
        The seconds that it took.

    Raises:
        Corrupted: Bytes are missing or altered. Names the leaf, the file and the byte range.
        SourceError: The storage failed, or the checkpoint changed meanwhile.
    """
    busy = StageSeconds()
    part = op.parts[0]
    begin = time.perf_counter()
    try:
        data, in_place = memoryview(b""), None
        if op.stop > op.start:
            if len(op.parts) == 1 and _read_streamed(
                op, part, memory, source, verify, summed, whole, busy
            ):
                busy.decode_s = time.perf_counter() - begin - busy.read_s - busy.cast_s
                return busy
            in_place = memory.find_in_order(op)
            out = in_place
            if out is None:
                out = _worker.scratch.bytes("stored", op.stop - op.start)
            data = _read_request(op, source, out)
            busy.read_s = time.perf_counter() - begin
        if summed:
            for part in op.parts:
                if part.chunk.sums:
                    check_blocks(part.chunk, part.start, _stored_bytes(part, op, data))
        if in_place is None and not (len(op.parts) > 1 and _decode_many(op, data, memory)):
            for part in op.parts:
                stored = _stored_bytes(part, op, data)
                busy.cast_s += _decode_part(part, stored, memory, verify, whole)
        busy.decode_s = time.perf_counter() - begin - busy.read_s - busy.cast_s
        return busy
    except NotFound as error:
        raise missing_file(part.name, op.key, source) from error
    except CheckpointError as error:
        extent = part.chunk.extent
        raise error.locate(
            leaf=part.name,
            file=op.key or source.url,
            start=extent.start,
            stop=extent.stop,
            stored_as=part.chunk.stored_as,
        ) from error
    except SourceError as error:
        error.add_note(f"while leaf `{part.name}` was read")
        raise


def _read_request(op: ReadOp, source: Source, out: memoryview) -> memoryview:
    """Reads a request. If the file is too short, the error names the first leaf that is cut."""
    try:
        return source.read(op.key, op.start, op.stop, out)
    except Corrupted:
        for part in op.parts:
            try:
                source.read(op.key, part.start, part.stop)
            except Corrupted as error:
                raise error.locate(leaf=part.name, stored_as=part.chunk.stored_as) from None
        raise


def _stored_bytes(part: Part, op: ReadOp, data: memoryview) -> memoryview:
    """The stored bytes of a part: a slice of its request's, or the value that an index holds."""
    inline = part.chunk.extent.inline
    if inline is not None:
        return memoryview(inline).cast("B")
    return data[part.start - op.start : part.stop - op.start]


def _read_streamed(
    op: ReadOp,
    part: Part,
    memory: HostMemory,
    source: Source,
    verify: bool,
    summed: bool,
    whole: int,
    busy: StageSeconds,
) -> bool:
    """Reads a request for a single part that can be checked or decoded piece by piece.

    A piece is still in cache when it is checked or decoded, and no more than a piece is held.

    Returns:
        Whether the part is of such a kind. If not, nothing was read.
    """
    chunk, nbytes = part.chunk, op.stop - op.start
    codecs, blocks = chunk.codecs, None
    if summed and chunk.sums:
        blocks = BlockVerifier(chunk, op.start, op.stop)
        if not codecs and nbytes == part.nbytes:
            direct = part.direct is not None
            out = (
                _bytes_to_fill(part, memory) if direct else _worker.scratch.bytes("stored", nbytes)
            )
            for piece in _read_in_pieces(op, source, out, busy):
                blocks.feed(piece)
            busy.cast_s += 0.0 if direct else scatter(part, out, memory)
            return True
    if codecs == ("crc32c",) and reads_crc32c_in_place(part):
        _read_checked(op, _bytes_to_fill(part, memory), source, verify, busy)
        return True
    if codecs == ("zstd",) and nbytes > REQUEST_BYTES and part.nbytes > whole:
        stream = _RequestStream(op, source, busy, blocks)
        try:
            busy.cast_s += _inflate(part, stream, memory)
        except Corrupted as error:
            if error.start is None:
                stream.drain()  # a checksum that differs is the better error
            raise
        finally:
            stream.close()
        return True
    return False


def _read_in_pieces(
    op: ReadOp, source: Source, out: memoryview, busy: StageSeconds
) -> Iterator[memoryview]:
    """Reads the first `len(out)` bytes of a request into `out`; yields each piece as it comes.

    An object store fetches several pieces at a time, since it takes long to answer.
    """
    block = CHECKED_BYTES if find_cost(source) is None else AHEAD_BYTES
    for first in range(0, len(out), block):
        begin, start = time.perf_counter(), op.start + first
        ready = out[first : first + block]
        source.read(op.key, start, start + len(ready), ready)
        busy.read_s += time.perf_counter() - begin
        for at in range(0, len(ready), CHECKED_BYTES):
            yield ready[at : at + CHECKED_BYTES]


def _read_checked(
    op: ReadOp, out: memoryview, source: Source, verify: bool, busy: StageSeconds
) -> None:
    """Reads a raw chunk in place, summing each piece while it is in cache, and then its crc32c."""
    crc = 0
    for piece in _read_in_pieces(op, source, out, busy):
        if verify:
            crc = crc32c(piece, crc)
    stored = source.read(op.key, op.stop - 4, op.stop)
    if verify:
        compare_crc32c(int.from_bytes(stored, "little"), crc)


class _RequestStream:
    """The bytes of a request as a stream, compared with their checksums as they are read.

    From an object store, the next blocks are fetched while one is decoded.
    """

    def __init__(
        self, op: ReadOp, source: Source, busy: StageSeconds, blocks: BlockVerifier | None
    ):
        self._op, self._source, self._busy, self._blocks = op, source, busy, blocks
        self._at = self._begun = op.start
        self._block = 0 if find_cost(source) is None else AHEAD_BYTES // _AHEAD_BLOCKS
        self._begins: deque[Callable[[], memoryview]] = deque()
        self._ready = memoryview(b"")

    def read(self, n: int, /) -> memoryview:
        if not self._ready:
            self._fetch(n)
        data, self._ready = self._ready[:n], self._ready[n:]
        self._at += len(data)
        if self._blocks is not None:
            self._blocks.feed(data)
        return data

    def _fetch(self, n: int) -> None:
        begin, key = time.perf_counter(), self._op.key
        if self._block:
            self._begin_reads()
            self._ready = self._begins.popleft()() if self._begins else memoryview(b"")
        else:
            start, stop = self._at, min(self._at + n, self._op.stop)
            out = _worker.scratch.bytes("stored", stop - start)
            self._ready = self._source.read(key, start, stop, out)
        self._busy.read_s += time.perf_counter() - begin

    def _begin_reads(self) -> None:
        """Begins to read the next blocks, where the ones that were decoded have been."""
        scratch = _worker.scratch.bytes("stored", AHEAD_BYTES)
        while len(self._begins) < _AHEAD_BLOCKS and self._begun < self._op.stop:
            start, stop = self._begun, min(self._begun + self._block, self._op.stop)
            at = (start - self._op.start) % AHEAD_BYTES
            out = scratch[at : at + stop - start]
            self._begins.append(begin_read(self._source, self._op.key, start, stop, out))
            self._begun = stop

    def close(self) -> None:
        """Forgets blocks that were not read to their end, and their memory."""
        if self._begins:
            self._begins.clear()
            _worker.scratch.drop("stored")

    def drain(self) -> None:
        """Reads the rest if it has checksums; raises if one of them differs."""
        while self._blocks is not None and self._at < self._op.stop:
            self.read(CHECKED_BYTES)


def _decode_many(op: ReadOp, data: memoryview, memory: HostMemory) -> bool:
    """Decodes all parts of a request in one call, which is faster than one by one.

    Returns:
        False if they are not all small zstd frames that fill buffers directly, or if one of them
        is damaged (decoded one by one, the error names its leaf), or if zstandard lacks the call.
    """
    frames: list[bytes | memoryview] = []
    for part in op.parts:
        if part.direct is None or part.chunk.codecs != ("zstd",) or part.nbytes > SMALL_BYTES:
            return False
        inline = part.chunk.extent.inline
        frames.append(
            data[part.start - op.start : part.stop - op.start] if inline is None else inline
        )
    decoded = inflate_many(frames, [part.nbytes for part in op.parts])
    if decoded is None:
        return False
    memory.fill(op.parts, decoded)
    return True


def _decode_part(
    part: Part, stored: memoryview, memory: HostMemory, verify: bool, whole: int
) -> float:
    """Decodes a part whose stored bytes are all in memory. Returns the seconds that casts took."""
    codecs = part.chunk.codecs
    if codecs == ("fill",):
        return scatter_fill(part, stored, memory)
    if part.direct is None:
        if codecs == ("zstd",) and part.nbytes > whole:
            return _inflate(part, stored, memory)
        if codecs:
            decoded = _worker.scratch.bytes("decoded", part.nbytes)
            stored = decode(codecs, stored, part.nbytes, decoded, verify=verify)
        return scatter(part, stored, memory)
    out = _bytes_to_fill(part, memory)
    if codecs:
        decode(codecs, stored, part.nbytes, out, verify=verify)
    elif len(stored) == len(out):
        out[:] = stored
    else:
        raise Corrupted(f"Expected {len(out)} bytes, got {len(stored)}")
    return 0.0


def _inflate(part: Part, stored: memoryview | _RequestStream, memory: HostMemory) -> float:
    """Decodes a part of codecs `("zstd",)` as its bytes come. Returns the seconds of casts."""
    inflater, cast_s = Inflater(stored), 0.0
    if part.direct is not None:
        inflater.fill(_bytes_to_fill(part, memory))
    elif part.chunk.order == "C" and part.chunk.origin is None:
        scratch = functools.partial(_worker.scratch.bytes, "decoded")
        cast_s = scatter_blocks(part, inflater.fill, scratch, memory)
    else:
        decoded = _worker.scratch.bytes("decoded", part.nbytes)
        inflater.fill(decoded)
        cast_s = scatter(part, decoded, memory)
    inflater.finish()
    return cast_s


def _bytes_to_fill(part: Part, memory: HostMemory) -> memoryview:
    """The bytes of its buffer that a direct part fills."""
    assert part.direct is not None
    return memory.bytes(part.buffer, part.direct, part.nbytes)


def missing_file(leaf: str, key: str, source: Source) -> Corrupted:
    """The error for a data file of a leaf that does not exist."""
    return Corrupted("Expected a data file, found none", leaf=leaf, file=key or source.url)
