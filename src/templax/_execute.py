"""The only threads of a restore: read, decode, copy. Yields finished batches of host buffers."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ._catalog import Extent
from ._codecs import Inflater, compare_crc32c, crc32c, decode, inflate_many
from ._errors import CheckpointError, Damaged, NotFound, SourceError
from ._memory import SMALL_BYTES, HostMemory, aligned
from ._parts import BLOCK_BYTES, LARGE_BYTES, REQUEST_BYTES, Buffer, Part
from ._plan import IN_FLIGHT, Batch, Plan, ReadOp
from ._scatter import scatter, scatter_blocks, scatter_fill
from .sources import Source

MAX_THREADS = 8

_thread = threading.local()


@dataclass(slots=True)
class Busy:
    """Seconds that threads spent, summed over them."""

    read_s: float = 0.0
    decode_s: float = 0.0
    cast_s: float = 0.0
    place_s: float = 0.0

    def __iadd__(self, other: Busy) -> Busy:
        self.read_s += other.read_s
        self.decode_s += other.decode_s
        self.cast_s += other.cast_s
        self.place_s += other.place_s
        return self


@dataclass(slots=True)
class Finished:
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
    busy: Busy


def execute(plan: Plan, sources: Sequence[Source]) -> Generator[Finished, None, None]:
    """Does the reads of a plan.

    While a batch is with the consumer the next ones are read. An error is raised when its batch is
    due: it cancels what has not begun and waits for what has; buffers are freed with it.

    Args:
        plan: What to read, and by how many threads.
        sources: Of the checkpoint, and of the one given as `missing=`.

    Raises:
        Damaged: Bytes missing or altered; names leaf, file and byte range.
        SourceError: The store failed, or the checkpoint changed meanwhile.
    """
    verify = plan.verify != "off"
    ahead: deque[tuple[Batch, HostMemory, list[Future[Busy]]]] = deque()
    pool = ThreadPoolExecutor(plan.threads, thread_name_prefix="templax")
    try:
        for batch in plan.batches:
            if len(ahead) == IN_FLIGHT:
                yield _finish(*ahead.popleft(), sources)
            memory = HostMemory(batch)
            jobs = [pool.submit(_run, op, memory, sources[op.source], verify) for op in batch.reads]
            ahead.append((batch, memory, jobs))
            del memory, jobs  # a finished batch is the consumer's alone
        while ahead:
            yield _finish(*ahead.popleft(), sources)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def cores() -> int:
    """Cores that this process may use; a container often has fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _finish(
    batch: Batch, memory: HostMemory, jobs: list[Future[Busy]], sources: Sequence[Source]
) -> Finished:
    wait(jobs, return_when=FIRST_EXCEPTION)
    for job in jobs:  # in order of the plan: of several errors the same one is raised each time
        if job.done():
            job.result()
    busy = Busy()
    for job in jobs:
        busy += job.result()
    mapped = _mapped(batch, sources)
    arrays = [mapped[i] if i in mapped else memory.array(i) for i in range(len(batch.buffers))]
    for buffer, array in zip(batch.buffers, arrays, strict=True):
        # Any other byte would be true to some programs and false to others.
        if buffer.dtype.kind == "b" and array.size and array.view(np.uint8).max() > 1:
            name = buffer.pair.target.name
            raise Damaged("Expected booleans of bytes 0 and 1, got another byte", leaf=name)
    return Finished(batch, arrays, busy)


def _mapped(batch: Batch, sources: Sequence[Source]) -> dict[int, np.ndarray]:
    """The buffers of a batch that are private mappings of a file. Each file is looked at once."""
    files: dict[tuple[int, str], list[tuple[int, Buffer, Extent]]] = {}
    for i, buffer in enumerate(batch.buffers):
        if buffer.view is not None:
            place = int(buffer.pair.fallback), buffer.view.key
            files.setdefault(place, []).append((i, buffer, buffer.view))
    arrays: dict[int, np.ndarray] = {}
    for (number, key), mine in files.items():
        source = sources[number]
        begin = min(extent.start for _, _, extent in mine)
        try:
            data = source.view(key, begin, max(extent.stop for _, _, extent in mine))
        except NotFound as error:
            raise _gone(mine[0][1].pair.target.name, key, source) from error
        except CheckpointError as error:
            raise error.locate(leaf=mine[0][1].pair.target.name) from error
        if data is None:  # it was moved to where it can't be mapped since it was planned
            raise SourceError(f"`{key}` of {source.url} can't be mapped any more")
        for i, buffer, extent in mine:
            piece = data[extent.start - begin : extent.stop - begin]
            arrays[i] = np.frombuffer(piece, buffer.dtype).reshape(buffer.shape)
    return arrays


def _gone(leaf: str, key: str, source: Source) -> Damaged:
    return Damaged("Expected a data file, found none", leaf=leaf, file=key or source.url)


def _run(op: ReadOp, memory: HostMemory, source: Source, verify: bool) -> Busy:
    """One job."""
    busy = Busy()
    part = op.parts[0]
    begin = time.perf_counter()
    try:
        data = memoryview(b"")
        if op.stop > op.start:
            if len(op.parts) == 1 and _alone(op, part, memory, source, verify, busy):
                busy.decode_s = time.perf_counter() - begin - busy.read_s - busy.cast_s
                return busy
            if (in_place := memory.in_order(op)) is not None:
                _read(op, source, in_place)
                busy.read_s = time.perf_counter() - begin
                return busy
            data = _read(op, source, _scratch("stored", op.stop - op.start))
            busy.read_s = time.perf_counter() - begin
        together = len(op.parts) > 1 and _together(op, data, memory)
        for part in () if together else op.parts:
            inline = part.chunk.extent.inline
            encoded = (
                memoryview(inline).cast("B")
                if inline is not None
                else data[part.start - op.start : part.stop - op.start]
            )
            busy.cast_s += _deliver(part, encoded, memory, verify)
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


def _alone(
    op: ReadOp, part: Part, memory: HostMemory, source: Source, verify: bool, busy: Busy
) -> bool:
    """A request for one large part that is decoded as it is read; False if it is another."""
    codecs, nbytes = part.chunk.codecs, op.stop - op.start
    checked = codecs == ("crc32c",) and nbytes == part.nbytes + 4
    if checked and part.direct is not None and nbytes >= LARGE_BYTES:
        _read_checked(op, _place_of(part, memory), source, verify, busy)
        return True
    if codecs == ("zstd",) and nbytes > REQUEST_BYTES:
        busy.cast_s += _inflate(part, _Pieces(op, source, busy), memory)
        return True
    return False


def _read_checked(op: ReadOp, out: memoryview, source: Source, verify: bool, busy: Busy) -> None:
    """Reads a raw chunk in place and then its crc32c, which is made while bytes are in cache."""
    crc = 0
    for first in range(0, len(out), BLOCK_BYTES):
        piece = out[first : first + BLOCK_BYTES]
        begin = time.perf_counter()
        start = op.start + first
        source.read(op.key, start, start + len(piece), piece)
        busy.read_s += time.perf_counter() - begin
        if verify:
            crc = crc32c(piece, crc)
    stored = source.read(op.key, op.stop - 4, op.stop)
    if verify:
        compare_crc32c(stored, crc)


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
        raise Damaged(f"Expected {len(out)} bytes, got {len(stored)}")
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
    """The bytes of a request, read as they are asked for."""

    def __init__(self, op: ReadOp, source: Source, busy: Busy):
        self._op, self._source, self._busy = op, source, busy
        self._at = op.start

    def read(self, n: int, /) -> memoryview:
        begin = time.perf_counter()
        start, stop = self._at, min(self._at + n, self._op.stop)
        self._at = stop
        data = self._source.read(self._op.key, start, stop, _scratch("stored", stop - start))
        self._busy.read_s += time.perf_counter() - begin
        return data


def _scratch(what: Literal["stored", "decoded"], nbytes: int) -> memoryview:
    """Memory of this thread: touched once, used again for each request, freed with the pool."""
    scratch: memoryview | None = getattr(_thread, what, None)
    if scratch is None or len(scratch) < nbytes:
        setattr(_thread, what, None)  # before the larger one is there
        scratch = memoryview(aligned(max(nbytes, 1 << 20)))  # pyright: ignore[reportArgumentType]
        setattr(_thread, what, scratch)
    return scratch[:nbytes]


def _read(op: ReadOp, source: Source, out: memoryview) -> memoryview:
    """The bytes of a request. If the file is too short, the error names a leaf that lost some."""
    try:
        return source.read(op.key, op.start, op.stop, out)
    except Damaged:
        for part in op.parts:
            try:
                source.read(op.key, part.start, part.stop)
            except Damaged as error:
                raise error.locate(leaf=part.name) from None
        raise
