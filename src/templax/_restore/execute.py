"""Runs the reads of a plan in threads, the only ones of a restore, and yields filled batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np

from .._codecs.zstd import FAST_BYTES, prepare_inflating
from .._core.dtypes import count_bits
from .._plan.parts import BLOCK_BYTES
from .._plan.plan import IN_FLIGHT, Batch, Plan
from ..errors import Corrupted
from ..storage.request_group import RequestGroup
from ..storage.source import Source
from .buffers import HostMemory
from .fill import fill_buffers
from .mapping import MappedFiles, check_mapped, map_files
from .meter import ReadMeter
from .stats import StageSeconds


@dataclass(slots=True)
class FilledBatch:
    """A batch whose buffers are filled.

    Attributes:
        batch: The batch, as planned.
        arrays: One per `batch.buffers`: C-contiguous, writable, at a 64-byte boundary, no two over
            the same bytes (small ones share arenas). For a buffer with a `view` it is a private
            mapping of the file.
        busy: The seconds that its reads took.
    """

    batch: Batch
    arrays: list[np.ndarray]
    busy: StageSeconds


def execute_plan(
    plan: Plan, sources: Sequence[Source], meter: ReadMeter | None = None
) -> Generator[FilledBatch, None, None]:
    """Carries out the reads of a plan, and yields its batches in order.

    While the consumer has one batch, the next are being read: at most `IN_FLIGHT` of those that
    need memory beyond the result, so that no worker waits for a large chunk that another one
    decodes. An error is raised when its batch is due. An error, or closing the generator, cancels
    the requests that have not started, waits for the others, and frees the buffers.

    Args:
        plan: What to read, and with how many threads.
        sources: The source of the checkpoint, then of each one given as `missing=`.
        meter: Counts what is read, and reports it while this waits.

    Raises:
        Corrupted: Bytes are missing or altered. Names the leaf, the file and the byte range.
        SourceError: The storage failed, or the checkpoint changed meanwhile.
    """
    readable = sources if meter is None else [meter.count_reads(source) for source in sources]
    verify = plan.verify != "off"
    summed = verify and plan.summed
    ahead: deque[
        tuple[Batch, HostMemory, list[Future[StageSeconds]], Future[MappedFiles] | None]
    ] = deque()
    inflated = _count_inflated(plan)
    passing = deque[bool]()  # whether each of them needs memory beyond the result
    requests = RequestGroup(plan.held_bytes // 2 or None)
    pool = ThreadPoolExecutor(plan.threads, thread_name_prefix="templax", initializer=requests.join)
    try:
        for batch in plan.batches:
            passes = batch.transient_bytes > 0
            while passes and sum(passing) == IN_FLIGHT:
                prepare_inflating(inflated)
                passing.popleft()
                yield _finish_batch(*ahead.popleft(), sources, meter)
            memory = HostMemory(batch)
            jobs = [
                pool.submit(
                    fill_buffers,
                    op,
                    memory,
                    readable[op.source],
                    verify,
                    summed,
                    plan.whole_bytes,
                )
                for op in batch.reads
            ]
            mapped = None
            if summed and batch.checks:
                mapped = pool.submit(map_files, batch, sources)
                checks = [pool.submit(check_mapped, job, mapped, sources) for job in batch.checks]
                if meter is not None:
                    for job, check in zip(batch.checks, checks, strict=True):
                        meter.count_checks(job, check)
                jobs += checks
            ahead.append((batch, memory, jobs, mapped))
            passing.append(passes)
            del memory, jobs, mapped  # only the consumer holds a finished batch
        prepare_inflating(inflated)  # while workers already decode without
        while ahead:
            yield _finish_batch(*ahead.popleft(), sources, meter)
    finally:
        requests.cancel()
        pool.shutdown(wait=True, cancel_futures=True)


def _count_inflated(plan: Plan) -> int:
    """How many bytes a plan decodes of zstd chunks that are large, and decoded in one call."""
    alone = (op.parts[0] for batch in plan.batches for op in batch.reads if len(op.parts) == 1)
    return sum(
        part.nbytes
        for part in alone
        if part.chunk.codecs == ("zstd",) and FAST_BYTES <= part.nbytes <= plan.whole_bytes
    )


def _finish_batch(
    batch: Batch,
    memory: HostMemory,
    jobs: list[Future[StageSeconds]],
    mapped: Future[MappedFiles] | None,
    sources: Sequence[Source],
    meter: ReadMeter | None,
) -> FilledBatch:
    """Waits for the reads of a batch, and returns it with its arrays; raises their first error."""
    if meter is None:
        wait(jobs, return_when=FIRST_EXCEPTION)
    else:
        meter.wait(jobs)
    for job in jobs:  # in plan order, so that of several errors always the same one is raised
        if job.done():
            job.result()
    busy = StageSeconds()
    for job in jobs:
        busy += job.result()
    views = (map_files(batch, sources) if mapped is None else mapped.result()).arrays
    arrays = [views[i] if i in views else memory.array(i) for i in range(len(batch.buffers))]
    _check_arrays(batch, arrays)
    return FilledBatch(batch, arrays, busy)


def read_batch(batch: Batch, plan: Plan, source: Source) -> list[np.ndarray]:
    """Reads a batch of a plan in the calling thread, for callers that have threads of their own.

    These count their memory themselves, so that large zstd chunks are decoded as they are read.

    Args:
        batch: One of `plan.batches`, without mapped buffers.
        plan: Says which checksums are compared.
        source: The only source of the plan.

    Returns:
        As `FilledBatch.arrays`.

    Raises:
        Corrupted, SourceError: See `execute_plan`.
    """
    memory, verify = HostMemory(batch), plan.verify != "off"
    for op in batch.reads:
        fill_buffers(op, memory, source, verify, verify and plan.summed, BLOCK_BYTES)
    arrays = [memory.array(i) for i in range(len(batch.buffers))]
    _check_arrays(batch, arrays)
    return arrays


def _check_arrays(batch: Batch, arrays: Sequence[np.ndarray]) -> None:
    """Checks the values of the buffers of a batch; see `check_values`."""
    checked = {dtype for dtype in {b.dtype for b in batch.buffers} if _has_invalid_bytes(dtype)}
    if checked:
        for buffer, array in zip(batch.buffers, arrays, strict=True):
            if buffer.dtype in checked:
                check_values(buffer.dtype, array, buffer.pair.target.name)


def _has_invalid_bytes(dtype: np.dtype) -> bool:
    """Whether a dtype has invalid bit patterns, as booleans and narrow numbers have."""
    return dtype.kind == "b" or count_bits(dtype) < 8


def check_values(dtype: np.dtype, array: np.ndarray, name: str) -> None:
    """Checks that the bytes of booleans and of narrow numbers are such values.

    Raises:
        Corrupted: They are not.
    """
    # Programs disagree about whether a byte other than 0 and 1 is true.
    if dtype.kind == "b" and array.size and array.view(np.uint8).max() > 1:
        raise Corrupted("Expected booleans of bytes 0 and 1, got another byte", leaf=name)
    if count_bits(dtype) < 8:
        _check_narrow_values(dtype, array, name)


def _check_narrow_values(dtype: np.dtype, array: np.ndarray, name: str) -> None:
    """Checks that each byte is an element of a dtype like int4: numpy ignores its other bits."""
    values, bits = array.view(np.uint8), count_bits(dtype)
    invalid = values >= 1 << bits
    if dtype.name.startswith("int"):  # programs disagree about the bits above a negative number
        invalid &= values < 256 - (1 << (bits - 1))
    if invalid.any():
        byte = int(values[invalid][0])
        raise Corrupted(f"Expected {dtype.name}, one per byte, got the byte {byte}", leaf=name)
