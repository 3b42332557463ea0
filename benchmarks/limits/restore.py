"""Parts of a restore. Each is opened for a job, untimed, and returns the call that is timed.

Those named "fresh" write to memory that each call maps, as a library must that returns arrays. The
others write to memory that has been touched: page faults cost a library that allocates, but a
library might do without.
"""

from __future__ import annotations

import math
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import list_files
from ..jobs import Job
from ..workloads import name_leaves
from .threads import PIECE, allocate_fresh, allocate_touched, share_tasks

_MAX_GAP = 64 << 10
"""Up to so many unneeded bytes are read where this joins two ranges into one."""


def open_pread(job: Job) -> Callable[[], None]:
    """Reads the bytes that every restore needs, in pieces, with all threads."""
    pieces, nbytes = _list_pieces(job)
    buffer = memoryview(allocate_touched(nbytes))
    return lambda: _read_pieces(pieces, buffer)


def open_pread_fresh(job: Job) -> Callable[[], None]:
    """The same into memory that each call allocates, on huge pages where the system has them."""
    pieces, nbytes = _list_pieces(job)
    return lambda: _read_pieces(pieces, memoryview(allocate_fresh(nbytes)))


def _list_pieces(job: Job) -> tuple[list[tuple[int, int, int, int]], int]:
    """File descriptor, offset, place in memory and size of each piece; and the size of all."""
    pieces, at = list[tuple[int, int, int, int]](), 0
    for file, start, stop in _list_ranges(job):
        fd = os.open(file, os.O_RDONLY)
        for offset in range(start, stop, PIECE):
            nbytes = min(PIECE, stop - offset)
            pieces.append((fd, offset, at, nbytes))
            at += nbytes
    return pieces, at


def _read_pieces(pieces: list[tuple[int, int, int, int]], buffer: memoryview) -> None:
    def read(todo: Iterator[tuple[int, int, int, int]]) -> None:
        for fd, offset, at, nbytes in todo:
            if os.preadv(fd, [buffer[at : at + nbytes]], offset) != nbytes:
                raise EOFError(f"Expected {nbytes} bytes at {offset}, got fewer")

    share_tasks(read, pieces)()


def open_decode(job: Job) -> Callable[[], None]:
    """Decodes the zstd chunks that every restore needs, from memory, with the fastest binding."""
    import numpy as np

    encoded, nbytes = _list_encoded(job)
    buffer = allocate_touched(nbytes)
    tasks = []
    for chunk in encoded:
        data = np.frombuffer(chunk.read(memoryview(bytearray(chunk.stored))), np.uint8)
        tasks.append((data, buffer[chunk.at : chunk.at + chunk.nbytes]))
    return _choose_decoder(job, "limit-decode", lambda decoder: share_tasks(decoder, tasks))


def open_decode_fresh(job: Job) -> Callable[[], None]:
    """Reads each of those chunks, and decodes it to memory that each call maps anew."""
    import numpy as np

    encoded, nbytes = _list_encoded(job)
    longest = max(chunk.stored for chunk in encoded)
    own = threading.local()

    def read_each(todo: Iterator[_Encoded], buffer: Any) -> Iterator[Any]:
        if not hasattr(own, "memory"):
            own.memory = memoryview(allocate_touched(longest))
        for chunk in todo:
            data = chunk.read(own.memory[: chunk.stored])
            yield data, buffer[chunk.at : chunk.at + chunk.nbytes]

    def make(decoder: Callable[[Iterator[Any]], None]) -> Callable[[], None]:
        def run() -> None:
            buffer = np.frombuffer(allocate_fresh(nbytes), np.uint8)
            share_tasks(lambda todo: decoder(read_each(todo, buffer)), encoded)()

        return run

    return _choose_decoder(job, "limit-decode-fresh", make)


@dataclass(frozen=True)
class _Encoded:
    """A zstd chunk.

    Attributes:
        fd, start: Where it is stored.
        inline: Its bytes, if an index holds them.
        stored: Their number.
        at, nbytes: Where it is decoded to in memory that is as large as all together, and its size.
    """

    fd: int
    start: int
    inline: bytes | None
    stored: int
    at: int
    nbytes: int

    def read(self, into: memoryview) -> memoryview | bytes:
        if self.inline is not None:
            return self.inline
        if os.preadv(self.fd, [into], self.start) != self.stored:
            raise EOFError(f"Expected {self.stored} bytes at {self.start}, got fewer")
        return into


def _list_encoded(job: Job) -> tuple[list[_Encoded], int]:
    """The chunks, largest first so that the threads end together; and what they decode to."""
    chunks: list[tuple[int, Any]] = []
    for chunk, itemsize in _list_chunks(job):
        if chunk.codecs != ("zstd",):
            raise NotImplementedError(f"nothing to decode: codecs {list(chunk.codecs)}")
        nbytes = math.prod(stop - start for start, stop in chunk.box) * itemsize
        chunks.append((nbytes, chunk.extent))
    chunks.sort(key=lambda chunk: -chunk[0])
    files = {key: os.open(job.path / key, os.O_RDONLY) for key in {e.key for _, e in chunks}}
    found, at = list[_Encoded](), 0
    for nbytes, extent in chunks:
        fd = files[extent.key]
        found.append(_Encoded(fd, extent.start, extent.inline, extent.nbytes, at, nbytes))
        at += nbytes
    return found, at


def _choose_decoder(
    job: Job, limit: str, make: Callable[[Callable[[Iterator[Any]], None]], Callable[[], None]]
) -> Callable[[], None]:
    """The call with the decoder that is fastest in a trial."""
    times = {}
    for name, decoder in _find_decoders().items():
        run = make(decoder)
        run()
        begin = time.perf_counter()
        run()
        times[name] = time.perf_counter() - begin, run
    best = min(times, key=lambda name: times[name][0])
    job.notes.append(f"{limit} by {best}, the fastest of {', '.join(times)}")
    return times[best][1]


def open_put(job: Job) -> Callable[[], Any]:
    """One `device_put` of as many bytes, unaligned so that it copies.

    JAX on CPU aliases aligned memory, which takes no time.
    """
    import jax

    nbytes = job.nbytes
    buffer = allocate_touched(nbytes + 128)
    start = -buffer.ctypes.data % 64 + 16
    host = buffer[start : start + nbytes]
    return lambda: jax.device_put(host)


def open_floor(job: Job) -> Callable[[], Any]:
    """Imports JAX and places one array: the least that a whole process can do."""
    import jax
    import numpy as np

    if not job.workload.fresh:
        raise NotImplementedError("measures whole processes only")
    return lambda: jax.device_put(np.zeros(8))


def _list_chunks(job: Job) -> list[tuple[Any, int]]:
    """The chunks of the leaves that the job asks for, each with its stored itemsize."""
    import templax as tx

    wanted = name_leaves(job.template)
    catalog = tx.open(job.path)
    # A file whose leaves are positions is restored whole.
    entries = [e for e in catalog.entries if catalog.positional or e.name in wanted]
    found = catalog.locate(entries)
    return [(chunk, e.dtype.itemsize) for e in entries for chunk in found[e.name]]


def _list_ranges(job: Job) -> list[tuple[Path, int, int]]:
    """File, start and stop of each range to read; chunks close to each other are one range.

    An index that holds chunks counts as a whole. So does every file that templax can't open.
    """
    import templax as tx

    try:
        extents = [chunk.extent for chunk, _ in _list_chunks(job)]
    except tx.TemplaxError as error:
        job.notes.append(f"limit-pread reads whole files ({type(error).__name__})")
        return [(file, 0, file.stat().st_size) for file in list_files(job.path)]
    root = job.path  # for a checkpoint of one file the keys are empty, so that this is the file
    sizes = {key: (root / key).stat().st_size for key in {extent.key for extent in extents}}
    spans = sorted(
        {
            (e.key, 0, sizes[e.key]) if e.inline is not None else (e.key, e.start, e.stop)
            for e in extents
        }
    )
    joined: list[tuple[str, int, int]] = []
    for key, start, stop in spans:
        if joined and joined[-1][0] == key and start - joined[-1][2] <= _MAX_GAP:
            key, start, stop = key, joined[-1][1], max(stop, joined[-1][2])
            joined.pop()
        joined.append((key, start, stop))
    return [(root / key, start, stop) for key, start, stop in joined]


def _find_decoders() -> dict[str, Callable[[Iterator[Any]], None]]:
    """Name → a function that decodes (compressed, into) pairs."""
    import zstandard

    def decode_with_zstandard(todo: Iterator[Any]) -> None:
        decompressor = zstandard.ZstdDecompressor()
        for data, into in todo:
            if decompressor.stream_reader(data).readinto(into) != len(into):
                raise EOFError(f"Expected {len(into)} decoded bytes, got fewer")

    decoders = {"zstandard": decode_with_zstandard}
    try:
        # On import it warns about its own checksums, whatever the filters say.
        with warnings.catch_warnings(record=True):
            from numcodecs.zstd import decompress
    except ImportError:
        return decoders

    def decode_with_numcodecs(todo: Iterator[Any]) -> None:
        for data, into in todo:
            decompress(data, into)

    return {**decoders, "numcodecs": decode_with_numcodecs}
