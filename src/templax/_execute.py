"""The only threads of a restore: read, decode, copy. Yields finished batches of host buffers."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np

from ._boxes import shape_of, slices, span_of
from ._codecs import decode
from ._dtypes import cast_into
from ._errors import CheckpointError, Damaged, NotFound, SourceError
from ._plan import Batch, Part, Plan, ReadOp
from .sources import Source

ALIGN = 64
"""Bytes. `jax.device_put` on CPU takes over a host buffer at such a boundary without a copy."""

ARENA_BYTES = 4 * 1024 * 1024
SMALL_BYTES = 64 * 1024
"""Buffers up to this size share arenas: one allocation for many leaves."""

MAX_THREADS = 8


@dataclass(slots=True)
class Finished:
    """A batch whose buffers are filled.

    Attributes:
        batch: As planned.
        arrays: One per `batch.buffers`: C-contiguous, writable, at a 64-byte boundary, and
            referred to by nobody else.
        cast_s: Seconds of all threads spent on casts.
    """

    batch: Batch
    arrays: list[np.ndarray]
    cast_s: float


def execute(
    plan: Plan, sources: Sequence[Source], threads: int | None = None
) -> Generator[Finished, None, None]:
    """Does the reads of a plan.

    While a batch is with the consumer the next one is read. The first error cancels what has not
    begun, waits for what has, and is raised; buffers are freed with it.

    Args:
        plan: What to read.
        sources: Of the checkpoint, and of the one given as `missing=`.
        threads: Workers. Default: the cores of this process, at most 8.

    Raises:
        Damaged: Bytes missing or altered; names leaf, file and byte range.
        SourceError: The store failed, or the checkpoint changed meanwhile.
    """
    if threads is None:
        threads = min(MAX_THREADS, _cores())
    pool = ThreadPoolExecutor(threads, thread_name_prefix="templax")
    try:
        ahead: tuple[Batch, list[np.ndarray], list[Future[float]]] | None = None
        for batch in plan.batches:
            arrays = allocate(batch)
            jobs = [pool.submit(_run, op, arrays, sources[op.source]) for op in batch.reads]
            if ahead is not None:
                yield _finish(*ahead)
            ahead = batch, arrays, jobs
        if ahead is not None:
            yield _finish(*ahead)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _cores() -> int:
    """Cores that this process may use; a container often has fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _finish(batch: Batch, arrays: list[np.ndarray], jobs: list[Future[float]]) -> Finished:
    wait(jobs, return_when=FIRST_EXCEPTION)
    for job in jobs:  # in order of the plan: of several errors the same one is raised each time
        if job.done():
            job.result()
    return Finished(batch, arrays, sum(job.result() for job in jobs))


def allocate(batch: Batch) -> list[np.ndarray]:
    """Uninitialised host arrays for the buffers of a batch, each at a 64-byte boundary."""
    arrays = []
    arena = np.empty(0, np.uint8)
    used = 0
    rest = sum(-(-b.nbytes // ALIGN) * ALIGN for b in batch.buffers if b.nbytes <= SMALL_BYTES)
    for buffer in batch.buffers:
        size = -(-buffer.nbytes // ALIGN) * ALIGN
        if buffer.nbytes > SMALL_BYTES:
            memory = _aligned(size)[: buffer.nbytes]
        else:
            if used + size > len(arena):
                arena, used = _aligned(max(size, min(rest, ARENA_BYTES))), 0
            memory = arena[used : used + buffer.nbytes]
            used += size
            rest -= size
        arrays.append(memory.view(buffer.dtype).reshape(buffer.shape))
    return arrays


def _aligned(nbytes: int) -> np.ndarray:
    memory = np.empty(nbytes + ALIGN, np.uint8)
    start = -memory.ctypes.data % ALIGN
    return memory[start : start + nbytes]


def _run(op: ReadOp, arrays: Sequence[np.ndarray], source: Source) -> float:
    """One job. Returns the seconds that casts took."""
    part = op.parts[0]
    try:
        data = memoryview(b"")
        if op.stop > op.start:
            if len(op.parts) == 1 and part.direct and not part.chunk.codecs:
                source.read(op.key, op.start, op.stop, _destination(part, arrays))
                return 0.0
            data = _read(op, source)
        cast_s = 0.0
        for part in op.parts:
            inline = part.chunk.extent.inline
            encoded = (
                memoryview(inline).cast("B")
                if inline is not None
                else data[part.start - op.start : part.stop - op.start]
            )
            cast_s += _deliver(part, encoded, arrays)
        return cast_s
    except NotFound as error:
        raise Damaged("Expected a data file, found none", leaf=part.name, file=op.key) from error
    except CheckpointError as error:
        extent = part.chunk.extent
        where = type(error)(
            error.what,
            leaf=error.leaf if error.leaf is not None else part.name,
            file=error.file if error.file is not None else extent.key,
            start=error.start if error.start is not None else extent.start,
            stop=error.stop if error.stop is not None else extent.stop,
            hint=error.hint,
        )
        raise where from error
    except SourceError as error:
        error.add_note(f"while leaf `{part.name}` was read")
        raise


def _read(op: ReadOp, source: Source) -> memoryview:
    """The bytes of a request. If the file is too short, the error names a leaf that lost some."""
    try:
        return source.read(op.key, op.start, op.stop)
    except Damaged:
        for part in op.parts:
            try:
                source.read(op.key, part.start, part.stop)
            except Damaged as error:
                raise error.locate(leaf=part.name) from None
        raise


def _destination(part: Part, arrays: Sequence[np.ndarray]) -> memoryview:
    """The bytes of a buffer that a direct part fills."""
    (copy,) = part.copies
    array = arrays[copy.buffer]
    start, stop = span_of(copy.dst, array.shape, array.itemsize)
    return memoryview(array.reshape(-1).view(np.uint8))[start:stop]


def _deliver(part: Part, encoded: memoryview, arrays: Sequence[np.ndarray]) -> float:
    """Decodes a part and copies its pieces to the buffers."""
    chunk = part.chunk
    shape = shape_of(chunk.box)
    itemsize = part.dtype.itemsize
    nbytes = int(np.prod(shape, dtype=object)) * itemsize
    if part.direct:
        out = _destination(part, arrays)
        if chunk.codecs:
            decode(chunk.codecs, encoded, nbytes, out)
        elif len(encoded) == len(out):
            out[:] = encoded
        else:
            raise Damaged(f"Expected {len(out)} bytes, got {len(encoded)}")
        return 0.0
    strides = _strides(shape, itemsize, chunk.order)
    if chunk.codecs:
        encoded, first = memoryview(decode(chunk.codecs, encoded, nbytes)).cast("B"), 0
    elif chunk.extent.inline is not None:
        first = 0
    else:
        first = part.start - chunk.extent.start  # a raw chunk is read in part
    cast_s = 0.0
    for copy in part.copies:
        offset = sum(start * stride for (start, _), stride in zip(copy.src, strides, strict=True))
        try:
            piece = np.ndarray(shape_of(copy.src), part.dtype, encoded, offset - first, strides)
        except (TypeError, ValueError) as error:
            raise Damaged(f"Expected {nbytes} bytes, got {len(encoded) + first}") from error
        wanted = arrays[copy.buffer][(*slices(copy.dst), ...)]  # a view, of 0-d arrays too
        if wanted.dtype == part.dtype:
            wanted[...] = piece
        else:
            begin = time.perf_counter()
            cast_into(wanted, piece)
            cast_s += time.perf_counter() - begin
    return cast_s


def _strides(shape: Sequence[int], itemsize: int, order: str) -> tuple[int, ...]:
    strides, step = [], itemsize
    for n in reversed(shape) if order == "C" else shape:
        strides.append(step)
        step *= n
    return tuple(reversed(strides)) if order == "C" else tuple(strides)
