"""`verify`: reads every byte of every leaf once and compares it with its checksum."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import msgspec

from .._catalog.catalog import Catalog
from .._catalog.checksums import BlockVerifier
from .._catalog.entry import Chunk, LeafEntry
from .._codecs.decode import FILL
from .._core.boxes import Box, box_around, full_box, intersect, shape_of
from .._core.gc_pause import pause_gc
from .._core.memory import Scratch
from .._core.progress import PROGRESS_S, Progress, check_progress
from .._core.workers import choose_threads
from .._plan.parts import (
    AHEAD_BYTES,
    CHECKED_BYTES,
    GAP_BYTES,
    LARGE_BYTES,
    SPLIT_BYTES,
    is_raw,
)
from .._restore.undecodable import can_decode
from .._views.view import select_stored
from ..errors import CheckpointError, Corrupted, NotFound, SourceError
from ..formats.registry import Checkpoint, open_checkpoint
from ..storage.request_group import RequestGroup
from ..storage.source import Source, find_cost
from .decode_chunk import decode_chunk
from .result import Verified


def verify(
    checkpoint: Checkpoint,
    *,
    threads: int | None = None,
    on_progress: Progress | None = None,
) -> Verified:
    """Reads every byte of a checkpoint once, and lists all damage. Of a view, what it is made of.

    It runs at the speed of the disk, with a few MiB of memory per thread (except for a compressed
    chunk that ends in a checksum of its own, which is held whole), without a template or JAX.

    Args:
        checkpoint: See `open`.
        threads: Workers. Default: the cores of this process, at most 8.
        on_progress: Called as `on_progress(done, total)` with the bytes read so far and the bytes
            in all, at most ten times a second, by the thread that called `verify`. An exception in
            it ends the verification.

    Returns:
        The result. Damage, including missing and truncated files, is listed there and not raised.

    Raises:
        CheckpointError: The checkpoint can't be opened at all; see `open`.
        SourceError: The storage failed, or the checkpoint changed meanwhile.
        UsageError: An argument is invalid.

    Example:
        >>> import os, tempfile
        >>> import jax.numpy as jnp, templax as tx
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> saved = tx.save(path, {"w": jnp.zeros((128, 64))})
        >>> verified = tx.verify(path)
        >>> verified.ok, verified.unchecked_bytes, verified.unchecked
        (True, 0, ())
    """
    begin = time.perf_counter()
    choose_threads(threads)
    check_progress(on_progress)
    with pause_gc():
        catalog = select_stored(open_checkpoint(checkpoint))
    threads = choose_threads(threads, remote=find_cost(catalog.source) is not None)
    survey = _Survey(catalog)
    survey.audit()
    _Workers(catalog.source, survey).run(threads, on_progress)
    entries = [entry for entry in catalog.entries if entry.kind != "string"]
    order = {entry.name: i for i, entry in enumerate(entries)}
    damages = sorted(
        survey.damages,
        key=lambda d: (-1 if d.leaf is None else order.get(d.leaf, -1), d.file or "", d.start or 0),
    )
    unchecked = {piece.entry.name for piece in survey.pieces if not piece.checked} | survey.unheld
    return Verified(
        catalog.url,
        len(entries),
        tuple(damages),
        survey.checked_bytes,
        survey.unchecked_bytes,
        tuple(name for name in order if name in unchecked),
        time.perf_counter() - begin,
        tuple(name for name in order if name in survey.filled),
        tuple(catalog.unread),
    )


class _Piece(msgspec.Struct, frozen=True, gc=False):
    """Stored bytes of a chunk that one thread checks; whole blocks if the chunk has `sums`.

    Attributes:
        entry: The leaf.
        chunk: The chunk.
        start, stop: Bytes of the object.
        checked: Whether a checksum covers them.
    """

    entry: LeafEntry
    chunk: Chunk
    start: int
    stop: int
    checked: bool


class _Survey:
    """The bytes that a checkpoint should have, compared with the sizes of its files.

    Attributes:
        damages: Damages found so far; threads append to it.
        pieces: Pieces of all leaves to read: those that files hold.
        checked_bytes, unchecked_bytes: See `Verified`.
        unheld: Names of leaves with unchecked bytes that an index holds.
        filled: Names of leaves with chunks that are absent, which means the fill value.
    """

    def __init__(self, catalog: Catalog):
        self._catalog = catalog
        self._sizes: dict[str, int | None] = {}
        self._lost: dict[tuple[str, str], list[_Piece]] = {}
        self.damages: list[Corrupted] = []
        self.pieces: list[_Piece] = []
        self.checked_bytes = self.unchecked_bytes = 0
        self.unheld: set[str] = set()
        self.filled: set[str] = set()
        unplaced: list[LeafEntry] = []
        for entry, chunks in self._locate_chunks():
            for chunk in chunks:
                self._add(entry, chunk)
                if chunk.codecs == FILL:
                    self.filled.add(entry.name)
            if not chunks and entry.nbytes:
                unplaced.append(entry)
        damaged = {damage.leaf for damage in self.damages}
        for entry in unplaced:  # stored in a way that templax can't follow
            if entry.name not in damaged:
                self.unheld.add(entry.name)
                self.unchecked_bytes += entry.nbytes
        self.damages += [self._missing_bytes(lost) for lost in self._lost.values()]

    def audit(self) -> None:
        """Adds the damages that the format finds outside the leaves."""
        if self._catalog.audit is not None:
            self.damages += self._catalog.audit()

    def _locate_chunks(self) -> Iterator[tuple[LeafEntry, Iterable[Chunk]]]:
        pending = [entry for entry in self._catalog.entries if entry.kind != "string"]
        while pending:
            mine: dict[str, LeafEntry] = {}
            others = [entry for entry in pending if mine.setdefault(entry.name, entry) is not entry]
            located = self._catalog.locate(mine.values(), self.damages)
            yield from ((entry, located[name]) for name, entry in mine.items())
            pending = others

    def _file_size(self, file: str) -> int | None:
        if file not in self._sizes:
            info = self._catalog.source.stat(file)
            self._sizes[file] = None if info is None or info.is_dir else info.size
        return self._sizes[file]

    def _add(self, entry: LeafEntry, chunk: Chunk) -> None:
        """Counts the bytes of a chunk, and cuts those that its file has into pieces."""
        extent = chunk.extent
        start, stop = extent.start, extent.stop
        if self._catalog.audits_values:
            self.checked_bytes += stop - start
            return
        checked = chunk.checked or bool(chunk.sums)
        if extent.inline is None:
            size = self._file_size(extent.key)
            if size is None or size < stop:
                lost = _Piece(entry, chunk, max(start, size or 0), stop, checked)
                self._lost.setdefault((entry.name, extent.key), []).append(lost)
                if size is None or size <= start or (chunk.codecs and not chunk.sums):
                    return
                stop = size
                if chunk.sums:  # a block that is cut can't be checked
                    stop = start + (size - start) // chunk.block * chunk.block
            step = max(SPLIT_BYTES // chunk.block, 1) * chunk.block if chunk.sums else SPLIT_BYTES
            if chunk.codecs and not chunk.sums:
                step = stop - start
            for at in range(start, stop, step or 1):
                self.pieces.append(_Piece(entry, chunk, at, min(at + step, stop), checked))
        elif not checked:
            self.unheld.add(entry.name)
        if checked:
            self.checked_bytes += stop - start
        else:
            self.unchecked_bytes += stop - start

    def _missing_bytes(self, lost: list[_Piece]) -> Corrupted:
        """The error for all bytes of a leaf that its file lacks."""
        start, stop = min(piece.start for piece in lost), max(piece.stop for piece in lost)
        size, file = self._file_size(lost[0].chunk.extent.key), self._catalog.source.url
        missing = size is None
        return Corrupted(
            "Expected a data file, found none"
            if missing
            else f"Expected at least {stop} bytes, the file has {size}",
            leaf=lost[0].entry.name,
            file=lost[0].chunk.extent.key or file,
            start=None if missing else start,
            stop=None if missing else stop,
            box=_find_box(lost[0], start, stop) if len(lost) == 1 else None,
        )


def _group_pieces(pieces: list[_Piece], most: int, gap: int) -> list[list[_Piece]]:
    """Groups pieces, in the order of their files, so that small neighbours are read together.

    Args:
        pieces: The pieces.
        most: Bytes of a group.
        gap: Bytes between two pieces that are read, too.
    """
    pieces.sort(key=lambda piece: (piece.chunk.extent.key, piece.start))
    groups: list[list[_Piece]] = []
    key, begin, stop = None, 0, 0
    for piece in pieces:
        near = piece.chunk.extent.key == key and piece.start - stop <= gap
        small = piece.stop - piece.start <= LARGE_BYTES
        if groups and near and small and piece.stop - begin <= most:
            groups[-1].append(piece)
            stop = max(stop, piece.stop)
        else:
            groups.append([piece])
            key, begin, stop = piece.chunk.extent.key, piece.start, piece.stop
    return groups


class _Workers:
    """Threads that take groups of pieces and check them, and the progress they make.

    A restore must fill batches in order; here order is free, so that a shared counter serves.
    """

    def __init__(self, source: Source, survey: _Survey):
        self._source, self._damages = source, survey.damages
        cost = find_cost(source)
        self._ahead = CHECKED_BYTES if cost is None else AHEAD_BYTES
        gap = GAP_BYTES if cost is None else cost.gap_bytes
        self._groups = _group_pieces(survey.pieces, self._ahead, gap)
        self._total = sum(piece.stop - piece.start for piece in survey.pieces)
        self._next, self._done = 0, 0
        self._stopped = False
        self._lock = threading.Lock()

    def run(self, threads: int, progress: Progress | None) -> None:
        """Checks all pieces; raises the first error that is not a damage."""
        requests = RequestGroup()
        with ThreadPoolExecutor(threads, "templax", requests.join) as pool:
            pending = {pool.submit(self._work) for _ in range(min(threads, len(self._groups)))}
            try:
                while pending:
                    timeout = None if progress is None else PROGRESS_S
                    done, pending = wait(pending, timeout, FIRST_EXCEPTION)
                    for future in done:
                        future.result()
                    if progress is not None and pending:
                        progress(self._done, self._total)
            finally:
                self._stopped = True
                requests.cancel()
        if progress is not None:
            progress(self._done, self._total)

    def _work(self) -> None:
        scratch = Scratch()
        while not self._stopped:
            with self._lock:
                number, self._next = self._next, self._next + 1
            if number >= len(self._groups):
                return
            for damage in self._check_group(self._groups[number], scratch):
                self._damages.append(damage)

    def _check_group(self, group: list[_Piece], scratch: Scratch) -> Iterator[Corrupted]:
        stored = _StoredBytes(self._source, group, scratch, self._ahead)
        for piece in group:
            stored.seek(piece)
            for error in _find_damages(piece, stored, scratch):
                yield _locate_error(piece, error, self._source)
            with self._lock:
                self._done += piece.stop - piece.start


class _StoredBytes:
    """The stored bytes of a group of pieces as a stream, one piece after another.

    Small pieces are read together with their neighbours.
    """

    def __init__(self, source: Source, group: list[_Piece], scratch: Scratch, ahead: int):
        self._source, self._scratch, self._ahead = source, scratch, ahead
        self._key = group[0].chunk.extent.key
        self._end = max(piece.stop for piece in group)
        self._held, self._first = memoryview(b""), 0
        self._at = self._stop = 0

    def seek(self, piece: _Piece) -> None:
        self._at, self._stop = piece.start, piece.stop

    @property
    def left(self) -> int:
        return self._stop - self._at

    def read(self, n: int, /) -> memoryview:
        """The next `n` bytes, fewer at the end. Valid until the next call.

        Raises:
            Corrupted: They can't be read. The next call continues behind them.
        """
        start, stop = self._at, min(self._at + n, self._stop)
        self._at = stop
        if start == stop:
            return memoryview(b"")
        if not self._first <= start < stop <= self._first + len(self._held):
            end = max(stop, min(start + self._ahead, self._end))
            try:
                self._held = self._read_file(start, end)
            except Corrupted:
                if end == stop:
                    raise
                # The damage may be beyond the bytes asked for.
                self._held = self._read_file(start, stop)
            self._first = start
        return self._held[start - self._first : stop - self._first]

    def _read_file(self, start: int, stop: int) -> memoryview:
        self._held = memoryview(b"")  # about to be overwritten
        try:
            into = self._scratch.bytes("stored", stop - start)
            return self._source.read(self._key, start, stop, into)
        except NotFound as error:  # deleted meanwhile
            what = "Expected a data file, found none"
            raise Corrupted(what, start=start, stop=stop) from error
        except SourceError as error:
            cause = error.__cause__
            if not isinstance(cause, OSError) or cause.errno != errno.EIO:
                raise
            raise Corrupted(str(error), start=start, stop=stop) from error


def _find_damages(
    piece: _Piece, stored: _StoredBytes, scratch: Scratch
) -> Iterator[CheckpointError]:
    """Yields an error for each damage in the bytes of a piece."""
    chunk = piece.chunk
    if chunk.codecs and not chunk.sums and can_decode(chunk):
        try:
            decode_chunk(piece.chunk, piece.entry.dtype.itemsize, stored, scratch)
        except CheckpointError as error:
            yield error
        return
    blocks = None
    while stored.left:
        start = piece.stop - stored.left
        try:
            data = stored.read(CHECKED_BYTES)
        except Corrupted as error:
            blocks = None  # the blocks that these bytes belong to can't be checked
            yield error
            continue
        if chunk.sums:
            blocks = BlockVerifier(chunk, start, piece.stop) if blocks is None else blocks
            yield from blocks.compare(data)


def _locate_error(piece: _Piece, error: CheckpointError, source: Source) -> Corrupted:
    """Adds to an error the leaf, the elements, the file and the bytes that it concerns."""
    entry, extent = piece.entry, piece.chunk.extent
    start = extent.start if error.start is None else error.start
    stop = extent.stop if error.stop is None else error.stop
    return Corrupted(
        error.what,
        leaf=entry.name,
        file=extent.key or source.url,
        start=start,
        stop=stop,
        hint=error.hint,
        box=_find_box(piece, start, stop),
    )


def _find_box(piece: _Piece, start: int, stop: int) -> Box | None:
    """The box of the leaf that stored bytes hold; None if they are only padding."""
    chunk, everything = piece.chunk, full_box(piece.entry.shape)
    box, origin, itemsize = chunk.box, chunk.extent.start, piece.entry.dtype.itemsize
    if is_raw(chunk) and chunk.origin is None and stop > start:
        shape = shape_of(box)
        inner = box_around((start - origin) // itemsize, -((origin - stop) // itemsize), shape)
        box = tuple((a + b, a + c) for (a, _), (b, c) in zip(box, inner, strict=True))
    return intersect(box, everything)
