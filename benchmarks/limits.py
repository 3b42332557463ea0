"""What no library can be faster than on this machine at this moment, measured like a library.

Each is one part of a restore or of a save, done with nothing around it. Those of a restore go into
memory that was touched before: first touch costs a library that allocates, and not one that can do
without. A copy that a save leaves to a thread behind it has to be in memory of its own.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import files_under
from .workloads import PyTree, named

if TYPE_CHECKING:
    from .libraries import Job
    from .savers import Save

_PIECE = 8 << 20
"""Bytes of one call: large enough that its call costs nothing, small enough to share out."""

_GAP = 64 << 10
"""Bytes that are read for nothing rather than with another call."""

_BEGIN_WRITING = 2
"""`SYNC_FILE_RANGE_WRITE` of Linux."""


def pread(job: Job) -> Callable[[], None]:
    """Reads the bytes that the restore can't do without, in pieces, with all threads."""
    extents = [(os.open(file, os.O_RDONLY), start, stop) for file, start, stop in _ranges(job)]
    buffer = memoryview(_touched(sum(stop - start for _, start, stop in extents)))
    pieces, at = [], 0
    for fd, start, stop in extents:
        for offset in range(start, stop, _PIECE):
            nbytes = min(_PIECE, stop - offset)
            pieces.append((fd, offset, buffer[at : at + nbytes]))
            at += nbytes

    def read(todo: Iterator[tuple[int, int, memoryview]]) -> None:
        for fd, offset, into in todo:
            if os.preadv(fd, [into], offset) != len(into):
                raise EOFError(f"Expected {len(into)} bytes at {offset}, got fewer")

    return _shared(read, pieces)


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
    buffer, at, tasks = _touched(sum(nbytes for _, nbytes in jobs)), 0, []
    for data, nbytes in jobs:
        tasks.append((np.frombuffer(data, np.uint8), buffer[at : at + nbytes]))
        at += nbytes
    times = {}
    for name, decoder in _bindings().items():
        run = _shared(decoder, tasks)
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
    buffer = _touched(nbytes + 128)
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


def copy(tree: PyTree) -> Save:
    """Copies every leaf to one block of fresh memory, in pieces, with all threads."""
    import numpy as np

    leaves = [np.asarray(leaf).reshape(-1).view(np.uint8) for leaf in named(tree).values()]
    pieces, nbytes = [], 0
    for leaf in leaves:
        for start in range(0, leaf.nbytes, _PIECE):
            pieces.append((nbytes + start, leaf[start : start + _PIECE]))
        nbytes += leaf.nbytes

    def save(path: Path) -> Callable[[], Any]:
        del path
        block = np.empty(nbytes, np.uint8)

        def copied(todo: Iterator[tuple[int, Any]]) -> None:
            for at, piece in todo:
                block[at : at + piece.nbytes] = piece

        _shared(copied, pieces)()
        return lambda: block  # held, or else the time would be that of freeing it, too

    return save


def write(tree: PyTree) -> Save:
    """Writes as many bytes to one file, in pieces, with all threads, and syncs it.

    The disk begins with each piece at once, as it does for whoever syncs while he writes.
    """
    buffer = memoryview(_touched(sum(leaf.nbytes for leaf in named(tree).values())))
    pieces = [(at, buffer[at : at + _PIECE]) for at in range(0, len(buffer), _PIECE)]
    begin = ctypes.CDLL(None).sync_file_range
    begin.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)

    def save(path: Path) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)

        def written(todo: Iterator[tuple[int, memoryview]]) -> None:
            for at, piece in todo:
                if os.pwrite(fd, piece, at) != len(piece):
                    raise EOFError(f"Expected {len(piece)} bytes written at {at}, got fewer")
                begin(fd, at, len(piece), _BEGIN_WRITING)

        _shared(written, pieces)()
        os.fsync(fd)
        os.close(fd)

    return save


def threads() -> int:
    """As many as templax takes by default."""
    return min(8, len(os.sched_getaffinity(0)))


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


def _touched(nbytes: int) -> Any:
    import numpy as np

    buffer = np.empty(nbytes, np.uint8)
    buffer.fill(1)
    return buffer


def _shared(work: Callable[[Iterator[Any]], None], tasks: list[Any]) -> Callable[[], None]:
    """All tasks by all threads, each of which takes the next when it is free."""

    def run() -> None:
        todo = iter(tasks)  # of a list: `next` on it is atomic
        for done in [_pool().submit(work, todo) for _ in range(threads())]:
            done.result()

    return run


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads())


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
