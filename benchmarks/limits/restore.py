"""Parts of a restore, each done with nothing around it.

They go into memory that was touched before: first touch costs a library that allocates, and not one
that can do without.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..files import files_under
from ..jobs import Job
from ..workloads import named
from .threads import PIECE, shared, touched

_GAP = 64 << 10
"""Bytes that are read for nothing rather than with another call."""


def pread(job: Job) -> Callable[[], None]:
    """Reads the bytes that the restore can't do without, in pieces, with all threads."""
    extents = [(os.open(file, os.O_RDONLY), start, stop) for file, start, stop in _ranges(job)]
    buffer = memoryview(touched(sum(stop - start for _, start, stop in extents)))
    pieces, at = [], 0
    for fd, start, stop in extents:
        for offset in range(start, stop, PIECE):
            nbytes = min(PIECE, stop - offset)
            pieces.append((fd, offset, buffer[at : at + nbytes]))
            at += nbytes

    def read(todo: Iterator[tuple[int, int, memoryview]]) -> None:
        for fd, offset, into in todo:
            if os.preadv(fd, [into], offset) != len(into):
                raise EOFError(f"Expected {len(into)} bytes at {offset}, got fewer")

    return shared(read, pieces)


def decode(job: Job) -> Callable[[], None]:
    """Decodes the zstd chunks that the restore needs, from memory, by the fastest binding."""
    import numpy as np

    root = job.path  # a file is its own only object, of the empty key
    jobs = []
    for chunk, itemsize in _chunks(job):
        if chunk.codecs != ("zstd",):
            raise NotImplementedError(f"nothing to decode: codecs {list(chunk.codecs)}")
        extent = chunk.extent
        data = extent.inline
        if data is None:
            with (root / extent.key).open("rb") as file:
                file.seek(extent.start)
                data = file.read(extent.nbytes)
        jobs.append((data, math.prod(stop - start for start, stop in chunk.box) * itemsize))
    jobs.sort(key=lambda job: -job[1])  # the longest first, so that no thread ends alone
    buffer, at, tasks = touched(sum(nbytes for _, nbytes in jobs)), 0, []
    for data, nbytes in jobs:
        tasks.append((np.frombuffer(data, np.uint8), buffer[at : at + nbytes]))
        at += nbytes
    times = {}
    for name, decoder in _bindings().items():
        run = shared(decoder, tasks)
        run()
        begin = time.perf_counter()
        run()
        times[name] = time.perf_counter() - begin, run
    best = min(times, key=lambda name: times[name][0])
    job.notes.append(f"limit-decode by {best}, the fastest of {', '.join(times)}")
    return times[best][1]


def put(job: Job) -> Callable[[], Any]:
    """One `device_put` that copies: JAX on CPU aliases aligned memory, which costs nothing."""
    import jax

    nbytes = job.nbytes
    buffer = touched(nbytes + 128)
    start = -buffer.ctypes.data % 64 + 16
    host = buffer[start : start + nbytes]
    return lambda: jax.device_put(host)


def floor(job: Job) -> Callable[[], Any]:
    """Of a process from its start: JAX imported, one array placed."""
    import jax
    import numpy as np

    if not job.workload.fresh:
        raise NotImplementedError("measures processes from their start")
    return lambda: jax.device_put(np.zeros(8))


def _chunks(job: Job) -> list[tuple[Any, int]]:
    """The chunks of the leaves that the job wants, each with the bytes of a stored element."""
    import templax as tx

    wanted = named(job.template)
    catalog = tx.open(job.path)
    entries = [entry for entry in catalog.entries if entry.name in wanted]
    found = catalog.locate(entries)
    return [(chunk, e.dtype.itemsize) for e in entries for chunk in found[e.name]]


def _ranges(job: Job) -> list[tuple[Path, int, int]]:
    """File, start, stop of what must be read: chunks, joined where only a little is in between.

    An index that holds chunks itself counts as a whole. So do all files where templax is no help.
    """
    import templax as tx

    try:
        extents = [chunk.extent for chunk, _ in _chunks(job)]
    except tx.TemplaxError as error:
        job.notes.append(f"limit-pread reads whole files ({type(error).__name__})")
        return [(file, 0, file.stat().st_size) for file in files_under(job.path)]
    root = job.path
    sizes = {key: (root / key).stat().st_size for key in {extent.key for extent in extents}}
    spans = sorted(
        {
            (e.key, 0, sizes[e.key]) if e.inline is not None else (e.key, e.start, e.stop)
            for e in extents
        }
    )
    joined: list[tuple[str, int, int]] = []
    for key, start, stop in spans:
        if joined and joined[-1][0] == key and start - joined[-1][2] <= _GAP:
            key, start, stop = key, joined[-1][1], max(stop, joined[-1][2])
            joined.pop()
        joined.append((key, start, stop))
    return [(root / key, start, stop) for key, start, stop in joined]


def _bindings() -> dict[str, Callable[[Iterator[Any]], None]]:
    """Name → decodes (compressed, into) pairs."""
    import zstandard

    def by_zstandard(todo: Iterator[Any]) -> None:
        decompressor = zstandard.ZstdDecompressor()
        for data, into in todo:
            if decompressor.stream_reader(data).readinto(into) != len(into):
                raise EOFError(f"Expected {len(into)} decoded bytes, got fewer")

    found = {"zstandard": by_zstandard}
    try:
        with warnings.catch_warnings(record=True):  # it warns of its own checksums, filters or not
            from numcodecs.zstd import decompress
    except ImportError:
        return found

    def by_numcodecs(todo: Iterator[Any]) -> None:
        for data, into in todo:
            decompress(data, into)

    return {**found, "numcodecs": by_numcodecs}
