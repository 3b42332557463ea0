"""Opens an item through its `templax.index`, the file that templax adds to Orbax's own.

The index alone gives the leaves, the position of every chunk and its checksum. Orbax's files are
read only to check that they belong to the same save, and by `verify`. What reads them is imported
where it is used, so that a listing does without.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..._catalog.catalog import Catalog, record_damage
from ..._catalog.chunk_columns import ChunkColumns
from ..._catalog.entry import Chunk, Extent, LeafEntry
from ..._catalog.regions import Region
from ..._core.boxes import Shape, fits_address_space, format_shape, full_box, size_of
from ..._core.chunk_grid import cell_box, grid_shape, is_row_major, iter_cells
from ..._core.dtypes import DTYPES
from ..._core.gc_pause import pause_gc
from ..._core.names import join_paths
from ...errors import CheckpointError, Corrupted, NotFound, Unsupported
from ...storage.signatures import diagnose_lfs_pointer, read_metadata
from ...storage.source import Source
from ..file_names import FILES, INDEX_FILE, MANIFEST
from .checksum_index import (
    KINDS,
    REMOVAL_HINT,
    Columns,
    Index,
    decode_index,
    file_crc,
)
from .sidecars import sharding_text


def open_indexed_item(
    source: Source, metadata: Mapping[str, Any], uncommitted: str | None
) -> Catalog:
    """The catalog of an item directory that contains an index.

    Args:
        source: The item directory.
        metadata: Goes into `Catalog.metadata`.
        uncommitted: Goes into `Catalog.uncommitted`.

    Raises:
        Corrupted: The index is altered, or belongs to another checkpoint than Orbax's manifest.
        Unsupported: A later version of the index, or a dtype that templax does not read.
    """
    try:
        columns = Columns(decode_index(read_metadata(source, INDEX_FILE)))
        index = columns.index
        _check_belongs(source, index)
        with pause_gc():
            entries = tuple(_build_entries(columns))
    except CheckpointError as error:
        raise error.locate(file=INDEX_FILE) from error
    return Catalog(
        url=source.url,
        format="orbax",
        evidence=f"`{INDEX_FILE}`",
        entries=entries,
        source=source,
        locator=_Locator(source, columns),
        metadata={**metadata, "use_ocdbt": True, "use_zarr3": False},
        empties={tuple(path): what for path, what in index.empties},
        audit=functools.partial(_audit, source, index),
        fingerprints=functools.partial(_fingerprints_by_name, columns, entries),
        uncommitted=uncommitted,
        regions=functools.partial(_describe_files, source, index),
        chunk_shapes=functools.partial(_list_chunk_shapes, columns, entries),
    )


def _list_chunk_shapes(columns: Columns, entries: tuple[LeafEntry, ...]) -> dict[str, Shape]:
    shapes = columns.index.shapes
    rows = zip(entries, columns.chunks, strict=True)
    return {entry.name: shapes[chunk] for entry, chunk in rows if entry.kind != "string"}


def _fingerprints_by_name(columns: Columns, entries: tuple[LeafEntry, ...]) -> dict[str, int]:
    return {entry.name: crc for entry, crc in zip(entries, columns.fingerprints, strict=True)}


def _audit(source: Source, index: Index) -> Iterator[Corrupted]:
    """Damage outside the leaves: in Orbax's own files and database, or in data file lengths.

    Opening checks the index and the manifest only.
    """
    from ..ocdbt.read import read_database

    manifest_sound = True
    for file, (nbytes, crc) in index.others.items():
        try:
            _check_other(source, file, nbytes, crc)
        except Corrupted as error:
            manifest_sound = manifest_sound and file != MANIFEST
            yield error
    for file, nbytes in index.files:
        info = source.stat(file)
        if info is not None and info.size != nbytes:  # a missing file is reported with its leaves
            yield Corrupted(f"Expected a file of {nbytes} bytes, got {info.size}", file=file)
    if manifest_sound:  # a damaged manifest has been reported, and can't be followed
        try:
            read_database(source)
        except Corrupted as error:
            yield error


def _describe_files(source: Source, index: Index) -> Iterator[Region]:
    """The bytes that hold no values of leaves."""
    from ..ocdbt.read import read_database
    from ..ocdbt.regions import describe_database
    from .regions import describe_metadata

    files = [info.key for info in source.walk() if info.problem is None]
    yield Region(INDEX_FILE, 0, None, "index", "index of templax")
    yield from describe_metadata([*files, *index.others])
    if MANIFEST not in files:
        return
    yield from describe_database(source, files)
    for key, extent in read_database(source).items():
        if extent.inline is not None:
            continue
        if key.endswith(FILES):
            yield Region(extent.key, extent.start, extent.stop, "index", "metadata of arrays")
        else:  # the index of templax leaves out how chunks are completed
            what = "completes chunks at an edge"
            yield Region(extent.key, extent.start, extent.stop, "padding", what)


def _check_belongs(source: Source, index: Index) -> None:
    """Raises Corrupted if the index and the manifest beside it come from different saves.

    The manifest may be missing or damaged, because the index contains everything in it.
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
            hint=REMOVAL_HINT,
        )


def _check_other(source: Source, file: str, nbytes: int, crc: int) -> None:
    """Raises Corrupted unless a file is the one that the index was written with."""
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


def _build_entries(columns: Columns) -> Iterator[LeafEntry]:
    index = columns.index
    dtypes = [_parse_dtype(name) for name in index.dtypes]
    texts = [_describe_sharding(text) for text in index.shardings]
    shapes, sound = index.shapes, set[tuple[int, ...]]()
    rows = zip(
        join_paths(index.paths),
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
        name, path, kind, dtype_at, shape_at, chunk_at, count, sharding = row
        if kind == 2:
            if name not in index.texts:
                raise Corrupted("Expected a string, found none", leaf=name)
            entry = LeafEntry(name, path, (), np.dtype(str), "string", value=index.texts[name])
        else:
            dtype, shape = dtypes[dtype_at], shapes[shape_at]
            grid = (dtype_at, shape_at, chunk_at, count)
            if grid not in sound:  # the layers of a model share a few
                _check_grid(name, shape, shapes[chunk_at], dtype, count)
                sound.add(grid)
            impl = index.impls.get(name) if kind == 3 else None
            if kind == 3 and (impl is None or not shape or dtype != np.uint32):
                raise Corrupted("Expected key data of a typed key, got other values", leaf=name)
            saved = texts[sharding] if sharding < len(texts) else None
            entry = LeafEntry(name, path, shape, dtype, KINDS[kind], impl, None, saved, number)
        yield entry


def _describe_sharding(text: str) -> str | None:
    try:
        return sharding_text(text)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None  # informational only


@functools.lru_cache(maxsize=64)
def _parse_dtype(name: str) -> np.dtype:
    if name == "str":
        return np.dtype(str)
    if name not in DTYPES:
        raise Unsupported(f"templax does not read dtype `{name[:80]}`")
    return DTYPES[name]


@functools.lru_cache(maxsize=4096)
def _grid_problem(shape: Shape, chunk: Shape, dtype: np.dtype, count: int) -> str | None:
    shown = format_shape(shape), format_shape(chunk)
    if min(shape, default=0) < 0 or min(chunk, default=1) < 1 or len(chunk) != len(shape):
        return f"Expected a shape and a shape of chunks, got {shown[0]} and {shown[1]}"
    if not fits_address_space(shape, dtype.itemsize) or not fits_address_space(
        chunk, dtype.itemsize
    ):
        return f"Expected a shape that memory can hold, got {shown[0]} in chunks of {shown[1]}"
    if count != math.prod(grid_shape(shape, chunk)):
        return f"Expected {math.prod(grid_shape(shape, chunk))} chunks, got {count}"
    return None


def _check_grid(name: str, shape: Shape, chunk: Shape, dtype: np.dtype, count: int) -> None:
    problem = _grid_problem(shape, chunk, dtype, count)
    if problem is not None:
        raise Corrupted(problem, leaf=name, hint=REMOVAL_HINT)


class _Locator:
    """The locator of the catalog.

    A raw leaf that is one contiguous range of a file becomes a single chunk, however many it was
    saved in. Each data file is checked for existence and length once per call.

    Args:
        source: The item.
        columns: Its index.
    """

    def __init__(self, source: Source, columns: Columns):
        self._source, self._columns = source, columns

    def __call__(
        self, entries: Iterable[LeafEntry], damages: list[Corrupted] | None = None
    ) -> dict[str, tuple[Chunk, ...]]:
        return _locate(self._source, self._columns, entries, damages)

    @pause_gc()
    def locate_columns(self, entries: Iterable[LeafEntry]) -> dict[str, Sequence[Chunk]]:
        """See `_catalog.chunk_columns`."""
        columns, index = self._columns, self._columns.index
        names = [path for path, _ in index.files]
        checked = np.zeros(len(names), bool)
        located: dict[str, Sequence[Chunk]] = {}
        for entry in entries:
            i: int | None = entry.handle
            chunks: Sequence[Chunk] = ()
            if i is not None and columns.counts[i]:
                rows = slice(columns.first_chunk[i], columns.first_chunk[i] + columns.counts[i])
                chunks = _make_columns(columns, names, entry, i, rows)
                numbers = np.unique(columns.chunk_arrays[0][rows])
                for number in numbers[~checked[numbers]].tolist():
                    _check_data_file(self._source, entry.name, *index.files[number])
                checked[numbers] = True
            located[entry.name] = chunks
        return located


def _make_columns(
    columns: Columns, names: Sequence[str], entry: LeafEntry, i: int, rows: slice
) -> Sequence[Chunk]:
    """The chunks of the `i`th leaf as columns, unless they are few or become one."""
    file, offset, nbytes, crc = [column[rows] for column in columns.chunk_arrays]
    shape, chunk = entry.shape, columns.index.shapes[columns.chunks[i]]
    codecs = ("zstd",) if columns.codecs[i] else ()
    merged = not codecs and is_row_major(shape, chunk)
    if len(file) == 1 or (merged and _are_contiguous(file, offset, nbytes, entry)):
        return _locate_chunks(columns, entry, i, None)
    from ..zarr.chunks import check_length

    itemsize, grid = entry.dtype.itemsize, grid_shape(shape, chunk)

    def make(at: int) -> Chunk:
        cell = tuple(map(int, np.unravel_index(at, grid)))
        box = cell_box(cell, shape, chunk)
        if codecs:  # a compressed chunk includes the padding
            box = tuple((i * c, i * c + c) for i, c in zip(cell, chunk, strict=True))
        start, size = int(offset[at]), int(nbytes[at])
        extent = Extent(names[int(file[at])], start, start + size)
        return Chunk(extent, box, codecs, "C", True, (int(crc[at]),), size)

    # Whether a length is possible depends on that of the box. If all of those are equal, and the
    # least and the greatest length are possible, so are the others.
    inner = all(n % c == 0 for n, c in zip(shape, chunk, strict=True))
    extremes = {int(nbytes.argmin()), int(nbytes.argmax())} if codecs or inner else range(len(file))
    try:
        for at in extremes:
            made = make(at)
            check_length(made.extent, size_of(made.box) * itemsize, codecs)
    except CheckpointError:
        return _locate_chunks(columns, entry, i, None)  # raises it for the first one
    layout = "indexed", shape, chunk, entry.dtype, codecs
    return ChunkColumns(names, file, offset, offset + nbytes, layout, make)


@pause_gc()
def _locate(
    source: Source,
    columns: Columns,
    entries: Iterable[LeafEntry],
    damages: list[Corrupted] | None,
) -> dict[str, tuple[Chunk, ...]]:
    """The chunks of leaves; see `_Locator`."""
    counts, codecs, first_chunk = columns.counts, columns.codecs, columns.first_chunk
    file, offset, nbytes, crc = columns.chunk_rows
    paths = [path for path, _ in columns.index.files]
    checked = [damages is not None] * len(paths)
    located: dict[str, tuple[Chunk, ...]] = {}
    for entry in entries:
        i: int | None = entry.handle
        if i is None or not counts[i]:
            located[entry.name] = ()
            continue
        first, count = first_chunk[i], counts[i]
        number, start, n = file[first], offset[first], nbytes[first]
        if count == 1 and not codecs[i] and n == _leaf_nbytes(entry.shape, entry.dtype):
            # Fast path: the common case, one raw chunk.
            extent = Extent(paths[number], start, start + n)
            chunk = Chunk(extent, full_box(entry.shape), (), "C", True, (crc[first],), n)
            located[entry.name] = (chunk,)
        else:
            located[entry.name] = _locate_chunks(columns, entry, i, damages)
        for at in (number,) if count == 1 else {*file[first : first + count]}:
            if not checked[at]:
                _check_data_file(source, entry.name, *columns.index.files[at])
                checked[at] = True
    return located


@functools.lru_cache(maxsize=4096)
def _leaf_nbytes(shape: Shape, dtype: np.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def _locate_chunks(
    columns: Columns, entry: LeafEntry, i: int, damages: list[Corrupted] | None
) -> tuple[Chunk, ...]:
    """The chunks of the `i`th leaf."""
    file, offset, nbytes, crc = columns.chunk_rows
    index, first = columns.index, columns.first_chunk[i]
    rows = range(first, first + columns.counts[i])
    shape, chunk = entry.shape, index.shapes[columns.chunks[i]]
    codecs = ("zstd",) if columns.codecs[i] else ()
    if not codecs and is_row_major(shape, chunk):
        total = _leaf_nbytes(shape, entry.dtype)
        here = slice(rows.start, rows.stop)
        files, offsets, sizes, _ = columns.chunk_arrays
        if _are_contiguous(files[here], offsets[here], sizes[here], entry):
            extent = Extent(index.files[file[first]][0], offset[first], offset[first] + total)
            sums = tuple(crc[rows.start : rows.stop])
            return (Chunk(extent, full_box(shape), (), "C", True, sums, nbytes[first]),)
    from ..zarr.chunks import check_length

    chunks: list[Chunk] = []
    for row, (cell, box) in zip(rows, iter_cells(shape, chunk), strict=True):
        if codecs:  # a compressed chunk includes the padding
            box = tuple((i * c, i * c + c) for i, c in zip(cell, chunk, strict=True))
        extent = Extent(index.files[file[row]][0], offset[row], offset[row] + nbytes[row])
        try:
            check_length(extent, size_of(box) * entry.dtype.itemsize, codecs)
        except CheckpointError as error:
            record_damage(error.locate(leaf=entry.name), damages, error)
            continue
        chunks.append(Chunk(extent, box, codecs, "C", True, (crc[row],), nbytes[row]))
    return tuple(chunks)


def _are_contiguous(
    file: np.ndarray, offset: np.ndarray, nbytes: np.ndarray, entry: LeafEntry
) -> bool:
    """Whether chunks form one range of a whole leaf, with all but the last of equal length."""
    if (file != file[0]).any() or (nbytes[:-1] != nbytes[0]).any():
        return False
    stop = int(offset[-1]) + int(nbytes[-1])
    within = (offset[1:] == offset[:-1] + nbytes[:-1]).all()
    return bool(within) and stop - int(offset[0]) == _leaf_nbytes(entry.shape, entry.dtype)


def _check_data_file(source: Source, leaf: str, file: str, nbytes: int) -> None:
    info = source.stat(file)
    if info is None or info.is_dir:
        raise Corrupted("Expected a data file, found none", leaf=leaf, file=file)
    if info.size != nbytes:
        raise diagnose_lfs_pointer(source, file) or Corrupted(
            f"Expected a file of {nbytes} bytes, got {info.size}", leaf=leaf, file=file
        )
