"""The only threads of a restore: read, decode, copy. Yields finished batches of host buffers."""

from __future__ import annotations

import functools
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .._catalog.checksums import BlockVerifier, check_blocks
from .._catalog.entry import Extent
from .._codecs.crc32c import compare_crc32c, crc32c
from .._codecs.decode import decode
from .._codecs.zstd import Inflater, inflate_many
from .._core.memory import SMALL_BYTES, allocate_aligned
from .._plan.parts import CHECKED_BYTES, REQUEST_BYTES, Buffer, Check, Part, with_crc32c_in_place
from .._plan.plan import IN_FLIGHT, Batch, Plan, ReadOp
from ..errors import CheckpointError, Corrupted, NotFound, SourceError
from ..storage.source import Source
from .buffers import HostMemory
from .scatter import scatter, scatter_blocks, scatter_fill

_thread = threading.local()


@dataclass(slots=True)
class StageSeconds:
    """Seconds that threads spent, summed over them."""

    read_s: float = 0.0
    decode_s: float = 0.0
    cast_s: float = 0.0
    place_s: float = 0.0

    def __iadd__(self, other: StageSeconds) -> StageSeconds:
        self.read_s += other.read_s
        self.decode_s += other.decode_s
        self.cast_s += other.cast_s
        self.place_s += other.place_s
        return self


@dataclass(slots=True)
class FilledBatch:
    """A batch whose buffers are filled.

    Attributes:
        batch: As planned.
        arrays: One per `batch.buffers`: C-contiguous, writable, at a 64-byte boundary, no two over
            the same bytes (small ones share arenas). Where a buffer has a `view`, a private mapping
            of the file.
        busy: What it took.
    """

    batch: Batch
    arrays: list[np.ndarray]
    busy: StageSeconds


def execute_plan(plan: Plan, sources: Sequence[Source]) -> Generator[FilledBatch, None, None]:
    """Does the reads of a plan.

    While a batch is with the consumer the next ones are read. An error is raised when its batch is
    due: it cancels what has not begun and waits for what has; buffers are freed with it.

    Args:
        plan: What to read, and by how many threads.
        sources: Of the checkpoint, and of the one given as `missing=`.

    Raises:
        Corrupted: Bytes missing or altered; names leaf, file and byte range.
        SourceError: The store failed, or the checkpoint changed meanwhile.
    """
    verify = plan.verify != "off"
    summed = verify and plan.summed
    ahead: deque[tuple[Batch, HostMemory, list[Future[StageSeconds]], Future[_Mapped] | None]] = (
        deque()
    )
    pool = ThreadPoolExecutor(plan.threads, thread_name_prefix="templax")
    try:
        for batch in plan.batches:
            if len(ahead) == IN_FLIGHT:
                yield _finish(*ahead.popleft(), sources)
            memory = HostMemory(batch)
            jobs = [
                pool.submit(_run, op, memory, sources[op.source], verify, summed)
                for op in batch.reads
            ]
            mapped = None
            if summed and batch.checks:
                mapped = pool.submit(_mapped, batch, sources)
                jobs += [pool.submit(_check_mapped, job, mapped, sources) for job in batch.checks]
            ahead.append((batch, memory, jobs, mapped))
            del memory, jobs, mapped  # a finished batch is the consumer's alone
        while ahead:
            yield _finish(*ahead.popleft(), sources)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _finish(
    batch: Batch,
    memory: HostMemory,
    jobs: list[Future[StageSeconds]],
    mapped: Future[_Mapped] | None,
    sources: Sequence[Source],
) -> FilledBatch:
    wait(jobs, return_when=FIRST_EXCEPTION)
    for job in jobs:  # in order of the plan: of several errors the same one is raised each time
        if job.done():
            job.result()
    busy = StageSeconds()
    for job in jobs:
        busy += job.result()
    views = (_mapped(batch, sources) if mapped is None else mapped.result()).arrays
    arrays = [views[i] if i in views else memory.array(i) for i in range(len(batch.buffers))]
    for buffer, array in zip(batch.buffers, arrays, strict=True):
        # Any other byte would be true to some programs and false to others.
        if buffer.dtype.kind == "b" and array.size and array.view(np.uint8).max() > 1:
            name = buffer.pair.target.name
            raise Corrupted("Expected booleans of bytes 0 and 1, got another byte", leaf=name)
    return FilledBatch(batch, arrays, busy)


@dataclass(frozen=True, slots=True)
class _Mapped:
    """Private mappings of files, of a batch.

    Attributes:
        arrays: Index of a buffer with a `view` → the array over it.
        files: Source and key → where a mapping begins, and its bytes.
    """

    arrays: dict[int, np.ndarray]
    files: dict[tuple[int, str], tuple[int, memoryview]]


def _mapped(batch: Batch, sources: Sequence[Source]) -> _Mapped:
    """The buffers of a batch that are mapped, and what is checked. Each file is looked at once."""
    wanted: dict[tuple[int, str], list[tuple[int, Buffer, Extent]]] = {}
    spans: dict[tuple[int, str], list[tuple[int, int]]] = {}
    for i, buffer in enumerate(batch.buffers):
        if (view := buffer.view) is not None:
            place = int(buffer.pair.fallback), view.key
            wanted.setdefault(place, []).append((i, buffer, view))
            spans.setdefault(place, []).append((view.start, view.stop))
    for item in (item for job in batch.checks for item in job):
        spans[item.source, item.chunk.extent.key].append((item.start, item.stop))
    done = _Mapped({}, {})
    for (number, key), mine in wanted.items():
        source, leaf = sources[number], mine[0][1].pair.target.name
        begin, end = min(a for a, _ in spans[number, key]), max(b for _, b in spans[number, key])
        try:
            data = source.view(key, begin, end)
        except NotFound as error:
            raise _gone(leaf, key, source) from error
        except CheckpointError as error:
            raise error.locate(leaf=leaf) from error
        if data is None:  # it was moved to where it can't be mapped since it was planned
            raise SourceError(f"`{key}` of {source.url} can't be mapped any more")
        done.files[number, key] = begin, data
        for i, buffer, extent in mine:
            piece = data[extent.start - begin : extent.stop - begin]
            done.arrays[i] = np.frombuffer(piece, buffer.dtype).reshape(buffer.shape)
    return done


def _check_mapped(
    job: Sequence[Check], mapped: Future[_Mapped], sources: Sequence[Source]
) -> StageSeconds:
    """One job: touches the blocks that a mapping has in full."""
    files = mapped.result().files  # was begun before this job
    begin = time.perf_counter()
    for item in job:
        first, data = files[item.source, item.chunk.extent.key]
        try:
            check_blocks(item.chunk, item.start, data[item.start - first : item.stop - first])
        except CheckpointError as error:
            file = item.chunk.extent.key or sources[item.source].url
            raise error.locate(leaf=item.name, file=file) from error
    return StageSeconds(read_s=time.perf_counter() - begin)


def _gone(leaf: str, key: str, source: Source) -> Corrupted:
    return Corrupted("Expected a data file, found none", leaf=leaf, file=key or source.url)


def _run(
    op: ReadOp, memory: HostMemory, source: Source, verify: bool, summed: bool
) -> StageSeconds:
    """One job. `summed`: whether chunks may have `sums` that shall be compared."""
    busy = StageSeconds()
    part = op.parts[0]
    begin = time.perf_counter()
    try:
        data, in_place = memoryview(b""), None
        if op.stop > op.start:
            if len(op.parts) == 1 and _alone(op, part, memory, source, verify, summed, busy):
                busy.decode_s = time.perf_counter() - begin - busy.read_s - busy.cast_s
                return busy
            in_place = memory.in_order(op)
            data = _read(
                op, source, _scratch("stored", op.stop - op.start) if in_place is None else in_place
            )
            busy.read_s = time.perf_counter() - begin
        if summed:
            for part in op.parts:
                if part.chunk.sums:
                    check_blocks(part.chunk, part.start, _stored(part, op, data))
        if in_place is None and not (len(op.parts) > 1 and _together(op, data, memory)):
            for part in op.parts:
                busy.cast_s += _deliver(part, _stored(part, op, data), memory, verify)
        busy.decode_s = time.perf_counter() - begin - busy.read_s - busy.cast_s
        return busy
    except NotFound as error:
        raise _gone(part.name, op.key, source) from error
    except CheckpointError as error:
        extent = part.chunk.extent
        raise error.locate(
            leaf=part.name, file=op.key or source.url, start=extent.start, stop=extent.stop
        ) from error
    except SourceError as error:
        error.add_note(f"while leaf `{part.name}` was read")
        raise


def _stored(part: Part, op: ReadOp, data: memoryview) -> memoryview:
    """The stored bytes of a part: of what was read for its request, or held by an index."""
    inline = part.chunk.extent.inline
    if inline is not None:
        return memoryview(inline).cast("B")
    return data[part.start - op.start : part.stop - op.start]


def _alone(
    op: ReadOp,
    part: Part,
    memory: HostMemory,
    source: Source,
    verify: bool,
    summed: bool,
    busy: StageSeconds,
) -> bool:
    """A request for one part that is checked or decoded as it is read; False if it is another."""
    chunk, nbytes = part.chunk, op.stop - op.start
    codecs, blocks = chunk.codecs, None
    if summed and chunk.sums:
        blocks = BlockVerifier(chunk, op.start, op.stop)
        if not codecs and nbytes == part.nbytes:
            direct = part.direct is not None
            out = _place_of(part, memory) if direct else _scratch("stored", nbytes)
            for piece in _in_pieces(op, source, out, busy):
                blocks.feed(piece)
            busy.cast_s += 0.0 if direct else scatter(part, out, memory)
            return True
    if codecs == ("crc32c",) and with_crc32c_in_place(part):
        _read_checked(op, _place_of(part, memory), source, verify, busy)
        return True
    if codecs == ("zstd",) and nbytes > REQUEST_BYTES:
        pieces = _Pieces(op, source, busy, blocks)
        try:
            busy.cast_s += _inflate(part, pieces, memory)
        except Corrupted as error:
            if error.start is None:
                pieces.drain()  # whether these are the bytes that were saved, their checksum tells
            raise
        return True
    return False


def _in_pieces(
    op: ReadOp, source: Source, out: memoryview, busy: StageSeconds
) -> Iterator[memoryview]:
    """The first bytes of a request, read into `out`, in pieces that are still in cache."""
    for first in range(0, len(out), CHECKED_BYTES):
        piece = out[first : first + CHECKED_BYTES]
        begin = time.perf_counter()
        start = op.start + first
        source.read(op.key, start, start + len(piece), piece)
        busy.read_s += time.perf_counter() - begin
        yield piece


def _read_checked(
    op: ReadOp, out: memoryview, source: Source, verify: bool, busy: StageSeconds
) -> None:
    """Reads a raw chunk in place and then its crc32c, which is made while bytes are in cache."""
    crc = 0
    for piece in _in_pieces(op, source, out, busy):
        if verify:
            crc = crc32c(piece, crc)
    stored = source.read(op.key, op.stop - 4, op.stop)
    if verify:
        compare_crc32c(int.from_bytes(stored, "little"), crc)


def _deliver(part: Part, stored: memoryview, memory: HostMemory, verify: bool) -> float:
    """Decodes a part, of which all stored bytes are there. Returns the seconds of casts."""
    codecs = part.chunk.codecs
    if codecs == ("fill",):
        return scatter_fill(part, stored, memory)
    if part.direct is None:
        if codecs == ("zstd",) and part.nbytes > SMALL_BYTES:
            return _inflate(part, stored, memory)
        if codecs:
            decoded = _scratch("decoded", part.nbytes)
            stored = decode(codecs, stored, part.nbytes, decoded, verify=verify)
        return scatter(part, stored, memory)
    out = _place_of(part, memory)
    if codecs:
        decode(codecs, stored, part.nbytes, out, verify=verify)
    elif len(stored) == len(out):
        out[:] = stored
    else:
        raise Corrupted(f"Expected {len(out)} bytes, got {len(stored)}")
    return 0.0


def _inflate(part: Part, stored: memoryview | _Pieces, memory: HostMemory) -> float:
    """Decodes a part of codecs `("zstd",)` as it comes. Returns the seconds of casts."""
    inflater, cast_s = Inflater(stored), 0.0
    if part.direct is not None:
        inflater.fill(_place_of(part, memory))
    elif part.chunk.order == "C":
        scratch = functools.partial(_scratch, "decoded")
        cast_s = scatter_blocks(part, inflater.fill, scratch, memory)
    else:
        decoded = _scratch("decoded", part.nbytes)
        inflater.fill(decoded)
        cast_s = scatter(part, decoded, memory)
    inflater.finish()
    return cast_s


def _place_of(part: Part, memory: HostMemory) -> memoryview:
    """The bytes of the buffer that a direct part fills."""
    assert part.direct is not None
    return memory.bytes(part.copies[0].buffer, part.direct, part.nbytes)


def _together(op: ReadOp, data: memoryview, memory: HostMemory) -> bool:
    """Decodes the many small parts of a request at once; False if they are of other kinds."""
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


class _Pieces:
    """The bytes of a request, read as they are asked for, and compared with checksums if any."""

    def __init__(
        self, op: ReadOp, source: Source, busy: StageSeconds, blocks: BlockVerifier | None
    ):
        self._op, self._source, self._busy, self._blocks = op, source, busy, blocks
        self._at = op.start

    def read(self, n: int, /) -> memoryview:
        begin = time.perf_counter()
        start, stop = self._at, min(self._at + n, self._op.stop)
        self._at = stop
        data = self._source.read(self._op.key, start, stop, _scratch("stored", stop - start))
        self._busy.read_s += time.perf_counter() - begin
        if self._blocks is not None:
            self._blocks.feed(data)
        return data

    def drain(self) -> None:
        """Reads what is left, if there is a checksum to compare it with."""
        while self._blocks is not None and self._at < self._op.stop:
            self.read(CHECKED_BYTES)


def _scratch(what: Literal["stored", "decoded"], nbytes: int) -> memoryview:
    """Memory of this thread: touched once, used again for each request, freed with the pool."""
    scratch: memoryview | None = getattr(_thread, what, None)
    if scratch is None or len(scratch) < nbytes:
        setattr(_thread, what, None)  # before the larger one is there
        scratch = memoryview(allocate_aligned(max(nbytes, 1 << 20)))  # pyright: ignore[reportArgumentType]
        setattr(_thread, what, scratch)
    return scratch[:nbytes]


def _read(op: ReadOp, source: Source, out: memoryview) -> memoryview:
    """The bytes of a request. If the file is too short, the error names a leaf that lost some."""
    try:
        return source.read(op.key, op.start, op.stop, out)
    except Corrupted:
        for part in op.parts:
            try:
                source.read(op.key, part.start, part.stop)
            except Corrupted as error:
                raise error.locate(leaf=part.name) from None
        raise
