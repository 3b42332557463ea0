"""`templax.index`: where every byte of a checkpoint that templax wrote is, and its checksum.

One file from which a checkpoint is opened, beside Orbax's own, which say the same of where bytes
are and nothing of checksums. Byte by byte in `docs/format.md`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from ..._catalog.catalog import Catalog, record_damage
from ..._catalog.entry import Chunk, Extent, Kind, LeafEntry
from ..._catalog.written import NO_FILE
from ..._codecs.crc32c import crc32c
from ..._core.boxes import Shape, fits_address_space, full_box, size_of
from ..._core.chunk_grid import grid_shape, is_row_major, iter_cells
from ..._core.dtypes import DTYPES
from ..._core.gc_pause import pause_gc
from ..._core.names import join_path
from ...errors import CheckpointError, Corrupted, NotFound, Unsupported
from ...storage.signatures import pointer_instead, read_metadata
from ...storage.source import Source
from ..ocdbt.read import MANIFEST, confine_path, read_database
from ..zarr.chunks import check_length
from .sidecars import sharding_text

INDEX_FILE = "templax.index"

_MAGIC = b"\x8etemplax"

_VERSION = 1

_HEAD = 24

KINDS: tuple[Kind, ...] = ("array", "scalar", "string", "key")

_HINT = f"delete `{INDEX_FILE}` to read the checkpoint as Orbax does, without checksums"


class Index(msgspec.Struct, omit_defaults=True):
    """The body of the file, a msgpack map. Columns are little-endian and as long as `paths`, those
    of chunks as long as all `counts` together; chunks of a leaf are in C order of its grid.

    Attributes:
        files: Data files: path below the checkpoint, bytes.
        others: Every other file but the index and `commit_success.txt`: path → bytes, crc32c.
        paths: Key path of each leaf; ints are indices of lists and tuples.
        kinds: u8, numbers into `KINDS`.
        dtypes, dtype: Table of names as numpy and ml_dtypes have them ("str" of a string), and the
            number of each leaf's, u16.
        shapes, shape, chunk: Table of shapes; of each leaf, of each of its chunks: u32. Of a typed
            key those of its key data.
        codecs: u8: 0 raw, 1 zstd.
        counts: u32, chunks of each leaf.
        file, offset, nbytes, crc32c: Of each chunk: number of its file (u32), first byte (u64),
            bytes (u64) and their crc32c (u32). Of a raw chunk at the edge without the padding.
        fingerprint: u32: crc32c of each leaf's bytes in C order, whatever its chunks.
        texts: Strings, by name.
        impls: PRNG implementations of typed keys, by name.
        shardings, sharding: Table of shardings as Orbax serialises them, and the number of each
            leaf's (u32, `NO_FILE` for none).
        empties: Key paths without a leaf, and what is there: `None`, `Dict`, `List`, ...
    """

    files: list[tuple[str, int]]
    others: dict[str, tuple[int, int]]
    paths: list[tuple[str | int, ...]]
    kinds: bytes
    dtypes: list[str]
    dtype: bytes
    shapes: list[tuple[int, ...]]
    shape: bytes
    chunk: bytes
    codecs: bytes
    counts: bytes
    file: bytes
    offset: bytes
    nbytes: bytes
    crc32c: bytes
    fingerprint: bytes
    texts: dict[str, str] = {}
    impls: dict[str, str] = {}
    shardings: list[str] = []
    sharding: bytes = b""
    empties: list[tuple[tuple[str | int, ...], str]] = []


def file_crc(file: str, data: bytes | memoryview) -> int:
    """The checksum of one of the `others`: crc32c, of the manifest without its last four bytes.

    They are its own crc32c: that of a file with them is the same for every manifest.
    """
    return crc32c(data[:-4] if file == MANIFEST else data)


def encode_index(index: Index) -> bytes:
    """The content of the file: magic, version, length of the body, body, crc32c of all before."""
    body = msgspec.msgpack.encode(index)
    head = _MAGIC + _VERSION.to_bytes(8, "little") + len(body).to_bytes(8, "little")
    return b"".join([head, body, crc32c(body, crc32c(head)).to_bytes(4, "little")])


def decode_index(data: memoryview) -> Index:
    """The index in a file.

    Raises:
        Corrupted: It is cut, altered, or contradicts itself.
        Unsupported: A later version.
    """
    if len(data) < _HEAD + 4 or data[:8] != _MAGIC:
        raise Corrupted("Expected an index of templax, got other bytes", hint=_HINT)
    length = int.from_bytes(data[16:24], "little")
    if length != len(data) - _HEAD - 4:
        raise Corrupted(
            f"Expected an index of {length + _HEAD + 4} bytes, got {len(data)}", hint=_HINT
        )
    want, got = int.from_bytes(data[-4:], "little"), crc32c(data[:-4])
    if want != got:
        raise Corrupted(f"Expected crc32c `{want:08x}`, got `{got:08x}`", hint=_HINT)
    version = int.from_bytes(data[8:16], "little")
    if version != _VERSION:
        raise Unsupported(
            f"templax reads version {_VERSION} of its index, got {version}", hint=_HINT
        )
    try:
        return msgspec.msgpack.decode(data[_HEAD:-4], type=Index)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupted(f"The index is unreadable: {error}", hint=_HINT) from error


class _Columns:
    """An index with its columns as numbers, checked against each other and the files' sizes."""

    def __init__(self, index: Index):
        n = len(index.paths)
        self.index = index
        for path in (*(path for path, _ in index.files), *index.others):
            confine_path(path.encode())
        if not all(0 <= size < 2**63 for _, size in index.files):
            raise Corrupted("Expected sizes of files, got other numbers", hint=_HINT)
        self.kinds = _column(index.kinds, "u1", n)
        self.codecs = _column(index.codecs, "u1", n)
        self.dtypes = _column(index.dtype, "<u2", n, len(index.dtypes))
        self.shapes = _column(index.shape, "<u4", n, len(index.shapes))
        self.chunks = _column(index.chunk, "<u4", n, len(index.shapes))
        self.counts = _column(index.counts, "<u4", n)
        self.fingerprints = _column(index.fingerprint, "<u4", n)
        self.shardings = _column(index.sharding, "<u4", n) if index.sharding else [NO_FILE] * n
        total = sum(self.counts)
        if max(self.kinds, default=0) >= len(KINDS) or max(self.codecs, default=0) > 1:
            raise Corrupted("Expected known kinds and codecs, got others", hint=_HINT)
        self._chunks = [
            np.frombuffer(_sized(data, np.dtype(type).itemsize * total), type)
            for data, type in (
                (index.file, "<u4"),
                (index.offset, "<u8"),
                (index.nbytes, "<u8"),
                (index.crc32c, "<u4"),
            )
        ]
        file, offset, nbytes, _ = self._chunks
        sizes = np.array([size for _, size in index.files], np.uint64)
        if total:
            known = int(file.max()) < len(sizes)
            if (
                not known
                or not nbytes.all()
                or (offset > sizes[file]).any()
                or (nbytes > sizes[file] - offset).any()
            ):
                raise Corrupted("Expected chunks within the data files, got others", hint=_HINT)

    @functools.cached_property
    def chunk_rows(self) -> tuple[list[int], list[int], list[int], list[int]]:
        """Of each chunk: file, offset, bytes, crc32c."""
        file, offset, nbytes, crc = [column.tolist() for column in self._chunks]
        return file, offset, nbytes, crc

    @functools.cached_property
    def firsts(self) -> list[int]:
        """The number of each leaf's first chunk."""
        counts = np.array(self.counts, np.int64)
        return (np.cumsum(counts) - counts).tolist()


def _sized(data: bytes, nbytes: int) -> bytes:
    if len(data) != nbytes:
        raise Corrupted(f"Expected a column of {nbytes} bytes, got {len(data)}", hint=_HINT)
    return data


def _column(data: bytes, type: str, n: int, below: int | None = None) -> list[int]:
    numbers = np.frombuffer(_sized(data, n * np.dtype(type).itemsize), type)
    if below is not None and n and int(numbers.max()) >= below:
        raise Corrupted(f"Expected numbers below {below}, got {int(numbers.max())}", hint=_HINT)
    return numbers.tolist()


def open_index(source: Source, metadata: Mapping[str, Any], uncommitted: str | None) -> Catalog:
    """The catalog of an item directory that holds an index.

    Raises:
        Corrupted: The index is altered, or of another checkpoint than Orbax's manifest beside it.
        Unsupported: A later version of it, or a dtype that templax does not read.
    """
    try:
        columns = _Columns(decode_index(read_metadata(source, INDEX_FILE)))
        index = columns.index
        _check_belongs(source, index)
        with pause_gc():
            entries = tuple(_entries(columns))
    except CheckpointError as error:
        raise error.locate(file=INDEX_FILE) from error
    return Catalog(
        url=source.url,
        format="orbax",
        evidence=f"`{INDEX_FILE}`",
        entries=entries,
        source=source,
        locator=functools.partial(_locate, source, columns),
        metadata={**metadata, "use_ocdbt": True, "use_zarr3": False},
        empties={tuple(path): what for path, what in index.empties},
        audit=functools.partial(_audit, source, index),
        fingerprints=functools.partial(_fingerprints, columns, entries),
        uncommitted=uncommitted,
    )


def _fingerprints(columns: _Columns, entries: tuple[LeafEntry, ...]) -> dict[str, int]:
    return {entry.name: crc for entry, crc in zip(entries, columns.fingerprints, strict=True)}


def _audit(source: Source, index: Index) -> Iterator[Corrupted]:
    """What is damaged of all that is not of a leaf: Orbax's files, its database, lengths of files.

    Opening looks at the index and the manifest only.
    """
    sound = True
    for file, (nbytes, crc) in index.others.items():
        try:
            _check_other(source, file, nbytes, crc)
        except Corrupted as error:
            sound = sound and file != MANIFEST
            yield error
    for file, nbytes in index.files:
        info = source.stat(file)
        if info is not None and info.size != nbytes:  # that leaves lack theirs is seen anyway
            yield Corrupted(f"Expected a file of {nbytes} bytes, got {info.size}", file=file)
    if sound:  # else it is listed already, and leads nowhere
        try:
            read_database(source)
        except Corrupted as error:
            yield error


def _check_belongs(source: Source, index: Index) -> None:
    """Refuses an index of another save than the manifest beside it, if that is sound.

    A manifest that is lost or damaged is not needed: the index says all that it does.
    """
    try:
        data = read_metadata(source, MANIFEST)
    except NotFound:
        return
    own = int.from_bytes(data[-4:], "little")
    if own == file_crc(MANIFEST, data) and own != index.others.get(MANIFEST, (0, own))[1]:
        raise Corrupted(
            f"Expected the index of the save beside it, got that of another, whose `{MANIFEST}`"
            f" had crc32c `{index.others[MANIFEST][1]:08x}`, not `{own:08x}`",
            hint=_HINT,
        )


def _check_other(source: Source, file: str, nbytes: int, crc: int) -> None:
    """Refuses a file that is not the one the index was written with."""
    try:
        data = read_metadata(source, file)
    except NotFound as error:
        raise Corrupted("Expected a file, found none", file=file) from error
    if len(data) != nbytes:
        raise Corrupted(f"Expected {nbytes} bytes, got {len(data)}", file=file)
    got = file_crc(file, data)
    if got != crc:
        raise Corrupted(
            f"Expected crc32c `{crc:08x}`, got `{got:08x}`",
            file=file,
            start=0,
            stop=nbytes,
        )


def _entries(columns: _Columns) -> Iterator[LeafEntry]:
    index = columns.index
    dtypes = [_dtype(name) for name in index.dtypes]
    texts = [_sharding(text) for text in index.shardings]
    rows = zip(
        index.paths,
        columns.kinds,
        columns.dtypes,
        columns.shapes,
        columns.chunks,
        columns.counts,
        columns.shardings,
        strict=True,
    )
    for number, row in enumerate(rows):
        path, kind, dtype_at, shape_at, chunk_at, count, sharding = row
        name, dtype, shape = join_path(path), dtypes[dtype_at], index.shapes[shape_at]
        if kind == 2:
            if name not in index.texts:
                raise Corrupted("Expected a string, found none", leaf=name)
            entry = LeafEntry(name, path, (), np.dtype(str), "string", value=index.texts[name])
        else:
            _check_grid(name, shape, index.shapes[chunk_at], dtype, count)
            impl = index.impls.get(name) if kind == 3 else None
            if kind == 3 and (impl is None or not shape or dtype != np.uint32):
                raise Corrupted("Expected key data of a typed key, got other values", leaf=name)
            saved = texts[sharding] if sharding < len(texts) else None
            entry = LeafEntry(name, path, shape, dtype, KINDS[kind], impl, None, saved, number)
        yield entry


def _sharding(text: str) -> str | None:
    try:
        return sharding_text(text)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None  # shown, never needed


@functools.lru_cache(maxsize=64)
def _dtype(name: str) -> np.dtype:
    if name == "str":
        return np.dtype(str)
    if name not in DTYPES:
        raise Unsupported(f"templax does not read dtype `{name[:80]}`")
    return DTYPES[name]


@functools.lru_cache(maxsize=4096)
def _grid_problem(shape: Shape, chunk: Shape, dtype: np.dtype, count: int) -> str | None:
    if min(shape, default=0) < 0 or min(chunk, default=1) < 1 or len(chunk) != len(shape):
        return f"Expected a shape and chunks of one, got {shape} and {chunk}"
    if not fits_address_space(shape, dtype.itemsize) or not fits_address_space(
        chunk, dtype.itemsize
    ):
        return f"Expected a shape that memory can hold, got {shape} in chunks of {chunk}"
    if count != math.prod(grid_shape(shape, chunk)):
        return f"Expected {math.prod(grid_shape(shape, chunk))} chunks, got {count}"
    return None


def _check_grid(name: str, shape: Shape, chunk: Shape, dtype: np.dtype, count: int) -> None:
    problem = _grid_problem(shape, chunk, dtype, count)
    if problem is not None:
        raise Corrupted(problem, leaf=name, hint=_HINT)


@pause_gc()
def _locate(
    source: Source,
    columns: _Columns,
    entries: Iterable[LeafEntry],
    damages: list[Corrupted] | None = None,
) -> dict[str, tuple[Chunk, ...]]:
    """The locator of a catalog: a raw leaf is one chunk, if it is one range of a file."""
    counts, codecs, firsts = columns.counts, columns.codecs, columns.firsts
    file, offset, nbytes, crc = columns.chunk_rows
    paths = [path for path, _ in columns.index.files]
    checked = [damages is not None] * len(paths)
    located: dict[str, tuple[Chunk, ...]] = {}
    for entry in entries:
        i: int | None = entry.handle
        chunks: tuple[Chunk, ...] = ()
        if i is not None and counts[i]:
            first = firsts[i]
            number, start, n = file[first], offset[first], nbytes[first]
            if counts[i] == 1 and not codecs[i] and n == _nbytes(entry.shape, entry.dtype):
                extent = Extent(paths[number], start, start + n)  # as nearly all are
                chunks = (Chunk(extent, full_box(entry.shape), (), "C", True, (crc[first],), n),)
            else:
                chunks = _chunks(columns, entry, i, damages)
            numbers = (number,) if counts[i] == 1 else {*file[first : first + counts[i]]}
            for number in numbers:
                if not checked[number]:
                    _check_file(source, entry.name, *columns.index.files[number])
                    checked[number] = True
        located[entry.name] = chunks
    return located


@functools.lru_cache(maxsize=4096)
def _nbytes(shape: Shape, dtype: np.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def _chunks(
    columns: _Columns, entry: LeafEntry, i: int, damages: list[Corrupted] | None
) -> tuple[Chunk, ...]:
    """The chunks of the `i`th leaf."""
    file, offset, nbytes, crc = columns.chunk_rows
    index, first = columns.index, columns.firsts[i]
    rows = range(first, first + columns.counts[i])
    shape, chunk = entry.shape, index.shapes[columns.chunks[i]]
    codecs = ("zstd",) if columns.codecs[i] else ()
    if not codecs and is_row_major(shape, chunk):
        total = _nbytes(shape, entry.dtype)
        if _back_to_back(rows, file, offset, nbytes, total):
            extent = Extent(index.files[file[first]][0], offset[first], offset[first] + total)
            sums = tuple(crc[rows.start : rows.stop])
            return (Chunk(extent, full_box(shape), (), "C", True, sums, nbytes[first]),)
    chunks: list[Chunk] = []
    for row, (cell, box) in zip(rows, iter_cells(shape, chunk), strict=True):
        if codecs:  # compressed with the padding
            box = tuple((i * c, i * c + c) for i, c in zip(cell, chunk, strict=True))
        extent = Extent(index.files[file[row]][0], offset[row], offset[row] + nbytes[row])
        try:
            check_length(extent, size_of(box) * entry.dtype.itemsize, codecs)
        except CheckpointError as error:
            record_damage(error.locate(leaf=entry.name), damages, error)
            continue
        chunks.append(Chunk(extent, box, codecs, "C", True, (crc[row],), nbytes[row]))
    return tuple(chunks)


def _back_to_back(
    rows: range, file: Sequence[int], offset: Sequence[int], nbytes: Sequence[int], total: int
) -> bool:
    """Whether chunks are one range of `total` bytes, and all but the last of one length."""
    block, at, first = nbytes[rows[0]], offset[rows[0]], file[rows[0]]
    for row in rows:
        if file[row] != first or offset[row] != at or (nbytes[row] != block and row != rows[-1]):
            return False
        at += nbytes[row]
    return at - offset[rows[0]] == total


def _check_file(source: Source, leaf: str, file: str, nbytes: int) -> None:
    info = source.stat(file)
    if info is None or info.is_dir:
        raise Corrupted("Expected a data file, found none", leaf=leaf, file=file)
    if info.size != nbytes:
        raise pointer_instead(source, file) or Corrupted(
            f"Expected a file of {nbytes} bytes, got {info.size}", leaf=leaf, file=file
        )
