"""Leaves that are mapped instead of read (`mapped=True`): the mappings, and their checksums."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from .._catalog.checksums import check_blocks
from .._catalog.entry import Extent
from .._plan.buffers import Buffer
from .._plan.parts import Check
from .._plan.plan import Batch
from ..errors import CheckpointError, NotFound, SourceError
from ..storage.source import Source
from .fill import missing_file
from .stats import StageSeconds


@dataclass(frozen=True, slots=True)
class MappedFiles:
    """The private mappings of files that a batch needs.

    Attributes:
        arrays: Index of a buffer with a `view` → the array over it.
        files: Index of the source and key → the byte where the mapping begins, and its bytes.
    """

    arrays: dict[int, np.ndarray]
    files: dict[tuple[int, str], tuple[int, memoryview]]


def map_files(batch: Batch, sources: Sequence[Source]) -> MappedFiles:
    """Maps each file behind a buffer with a `view`, once, as far as buffers and checks need it.

    Raises:
        Corrupted: A file does not exist or is too short.
        SourceError: A file can no longer be mapped, or changed.
    """
    wanted: dict[tuple[int, str], list[tuple[int, Buffer, Extent]]] = {}
    spans: dict[tuple[int, str], list[tuple[int, int]]] = {}
    for i, buffer in enumerate(batch.buffers):
        if (view := buffer.view) is not None:
            place = buffer.pair.source, view.key
            wanted.setdefault(place, []).append((i, buffer, view))
            spans.setdefault(place, []).append((view.start, view.stop))
    for item in (item for job in batch.checks for item in job):
        spans[item.source, item.chunk.extent.key].append((item.start, item.stop))
    done = MappedFiles({}, {})
    for (number, key), mine in wanted.items():
        source, leaf = sources[number], mine[0][1].pair.target.name
        begin, end = min(a for a, _ in spans[number, key]), max(b for _, b in spans[number, key])
        try:
            data = source.view(key, begin, end)
        except NotFound as error:
            raise missing_file(leaf, key, source) from error
        except CheckpointError as error:
            raise error.locate(leaf=leaf) from error
        if data is None:  # moved to another file system since it was planned
            raise SourceError(f"`{key}` of {source.url} can't be mapped any more")
        done.files[number, key] = begin, data
        for i, buffer, extent in mine:
            piece = data[extent.start - begin : extent.stop - begin]
            done.arrays[i] = np.frombuffer(piece, buffer.dtype).reshape(buffer.shape)
    return done


def check_mapped(
    job: Sequence[Check], mapped: Future[MappedFiles], sources: Sequence[Source]
) -> StageSeconds:
    """Compares mapped bytes with their checksums, which reads them. One job of a batch.

    `mapped` was submitted before this job, so that waiting for it here cannot block for ever.
    """
    files = mapped.result().files
    begin = time.perf_counter()
    for item in job:
        first, data = files[item.source, item.chunk.extent.key]
        try:
            check_blocks(item.chunk, item.start, data[item.start - first : item.stop - first])
        except CheckpointError as error:
            file = item.chunk.extent.key or sources[item.source].url
            raise error.locate(leaf=item.name, file=file) from error
    return StageSeconds(read_s=time.perf_counter() - begin)
