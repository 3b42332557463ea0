"""Finds the chunks of a zarr array in a container, which maps keys to extents."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

import numpy as np

from ..._catalog.catalog import record_damage
from ..._catalog.entry import Chunk, Extent
from ..._codecs.blosc import NUMCODECS, make_missing_error
from ..._codecs.crc32c import crc32c
from ..._codecs.decode import COMPRESSIONS, DECODABLE, find_missing
from ..._codecs.npy_members import MAX_DEFLATE_RATIO
from ..._core.boxes import Box, Shape
from ...errors import CheckpointError, Corrupted, NotFound, Unsupported
from ...storage.signatures import diagnose_lfs_pointer
from ...storage.source import Source
from ..file_names import FILES
from .budget import WHOLE_RATIO, ChunkBudget
from .codecs import UNREADABLE, Sharding
from .metadata import Array, array_prefix

_EMPTY = 2**64 - 1

# A zstd block has at least 4 bytes and decodes to at most 128 KiB (RFC 8878, section 3.1.1.2).
_ZSTD_BLOCK, _ZSTD_BLOCK_DECODED = 4, 1 << 17


def locate_arrays(
    array: Array,
    name: str,
    objects: Mapping[str, Extent],
    source: Source,
    *,
    absent: Literal["error", "fill"],
    index: str | None = None,
    damages: list[Corrupted] | None = None,
    budget: ChunkBudget | None = None,
    prefix: str | None = None,
) -> tuple[Chunk, ...]:
    """The chunks of an array.

    Args:
        array: Its metadata.
        name: Name of the leaf.
        objects: Every key of the container.
        source: Source that the indexes of shards are read from.
        absent: Meaning of an absent chunk: "error" for lost data, "fill" for the fill value.
        index: File that lists `objects`; None if `objects` are files themselves.
        damages: See `Catalog.locate`.
        budget: Counts the chunks of all arrays of a call. Default: one for this array alone.
        prefix: What the array's keys begin with. Default: `array_prefix(name)`.

    Returns:
        Chunks that tile the array; none if it has no elements.

    Raises:
        Corrupted: A chunk is missing or has an impossible length, or a shard's index is altered.
        Unsupported: The array has a codec or option that templax does not read, and `damages` is
            None. Otherwise its chunks have codecs that `decode` does not know. Also if too
            many chunks are absent, or its shards have too many inner chunks.
    """
    if array.unsupported is not None and damages is None:
        raise Unsupported(array.unsupported, leaf=name)
    if not array.placed:
        return ()
    missing_codec = find_missing(_list_codecs(array))
    if missing_codec is not None:
        if damages is None:
            raise make_missing_error(missing_codec).locate(leaf=name)
        array = _make_unreadable(array)
    if prefix is None:
        prefix = array_prefix(name, files=index is None)
    if (sole := array.sole) is not None and array.sharding is None:
        key, box, nbytes = sole
        extent = objects.get(prefix + key)
        if extent is not None:  # fast path: the common case, an array of one chunk
            try:
                _check_chunk(extent, nbytes, array.codecs, budget)
            except CheckpointError as error:
                record_damage(_add_location(error, name, extent, source), damages, error)
                return ()
            return (make_chunk(extent, box, array, array),)
    if 0 in array.shape:
        return ()
    if array.fill is None:
        absent = "error"
    count = math.prod(array.grid)
    budget = budget or ChunkBudget(objects)
    present = budget.count_keys(prefix)
    if count > present:
        present -= sum(prefix + file in objects for file in FILES)
        if not present and absent == "fill":
            whole: Box = tuple((0, n) for n in array.shape)
            return _fill_boxes([whole], array, name, prefix, index, damages)
        if not budget.may_list_absent(count - present, lost=absent == "error"):
            # Don't iterate over a grid only because the metadata declares it: there can't be enough
            # chunks for it. Find one that is missing.
            if absent == "fill" and present and damages is None:
                raise Unsupported(
                    f"templax does not fill in {count - present} absent chunks of an array",
                    leaf=name,
                )
            cells: Iterator[Shape] = _iter_cells(array.grid)
            lost = next(key for key in (prefix + array.key(c) for c in cells) if key not in objects)
            record_damage(_missing_chunk_error(lost, name, index), damages)
            return ()
    chunks: list[Chunk] = []
    missing: list[Box] = []
    for cell in itertools.product(*map(range, array.grid)):
        key = prefix + array.key(cell)
        box = tuple((i * c, i * c + c) for i, c in zip(cell, array.chunk_shape, strict=True))
        extent = objects.get(key)
        if extent is not None:
            try:
                chunks += _resolve_value(extent, box, array, array, source, missing, budget)
            except NotFound as error:
                what = "Expected a data file, found none"
                record_damage(Corrupted(what, leaf=name, file=extent.key), damages, error)
            except CheckpointError as error:
                record_damage(_add_location(error, name, extent, source), damages, error)
        else:
            missing.append(box)
        if missing and absent == "error":
            record_damage(_missing_chunk_error(key, name, index), damages)
            missing.clear()
    return (*chunks, *_fill_boxes(missing, array, name, prefix, index, damages))


def _fill_boxes(
    missing: Sequence[Box],
    array: Array,
    name: str,
    prefix: str,
    index: str | None,
    damages: list[Corrupted] | None,
) -> tuple[Chunk, ...]:
    """Makes chunks of the fill value in place of those that are absent."""
    if not missing:
        return ()
    try:
        element = _encode_fill_value(array, name)
    except Corrupted as error:
        record_damage(error, damages, error.__cause__)
        return ()
    extent = Extent(index or prefix.rstrip("/"), 0, len(element), element)
    checked = index is not None  # the metadata with the fill value comes from the index
    return tuple([Chunk(extent, box, ("fill",), "C", checked) for box in missing])


def _add_location(
    error: CheckpointError, name: str, extent: Extent, source: Source
) -> CheckpointError:
    pointer = diagnose_lfs_pointer(source, extent.key) if extent.inline is None else None
    return pointer or error.locate(leaf=name, file=extent.key)


def _missing_chunk_error(key: str, name: str, index: str | None) -> Corrupted:
    if index is not None:
        return Corrupted(f"Expected chunk `{key}`, the index has none", leaf=name, file=index)
    return Corrupted("Expected a chunk, found none", leaf=name, file=key)


def _iter_cells(grid: Shape) -> Iterator[Shape]:
    """Like `itertools.product` over ranges, but lazy: that would store each range first."""
    if not grid:
        yield ()
        return
    for i in range(grid[0]):
        for rest in _iter_cells(grid[1:]):
            yield (i, *rest)


def _resolve_value(
    extent: Extent,
    box: Box,
    array: Array,
    how: Array | Sharding,
    source: Source,
    missing: list[Box],
    budget: ChunkBudget,
) -> Iterator[Chunk]:
    """The chunks in one value. Boxes of inner chunks that a shard lacks are added to `missing`.

    Args:
        extent: The value.
        box: What it holds.
        array: The array.
        how: What says how the value is encoded: the array, or the sharding of an inner chunk.
        source, missing, budget: See `locate_arrays`.
    """
    sharding = how.sharding
    if sharding is None:
        nbytes = math.prod(b - a for a, b in box) * array.dtype.itemsize
        _check_chunk(extent, nbytes, how.codecs, budget)
        yield make_chunk(extent, box, how, array)
        return
    corner = tuple(a for a, _ in box)
    grid = tuple((b - a) // c for (a, b), c in zip(box, sharding.chunk_shape, strict=True))
    index = _read_shard_index(extent, math.prod(grid), sharding, source, budget)
    if index is None:
        missing.append(box)
        return
    for cell, (offset, nbytes) in zip(itertools.product(*map(range, grid)), index, strict=True):
        inner = tuple(
            (a + i * c, a + i * c + c)
            for a, i, c in zip(corner, cell, sharding.chunk_shape, strict=True)
        )
        if any(start >= n for (start, _), n in zip(inner, array.shape, strict=True)):
            continue  # padding of a shard at the edge
        if offset == nbytes == _EMPTY:
            missing.append(inner)
            continue
        if offset + nbytes > extent.nbytes:
            raise Corrupted(
                f"Expected an inner chunk within the {extent.nbytes} bytes of its shard, "
                f"got {offset}-{offset + nbytes}"
            )
        part = Extent(extent.key, extent.start + offset, extent.start + offset + nbytes)
        if extent.inline is not None:
            part = Extent(extent.key, 0, nbytes, extent.inline[offset : offset + nbytes])
        yield from _resolve_value(part, inner, array, sharding, source, missing, budget)


def make_chunk(extent: Extent, box: Box, how: Array | Sharding, array: Array) -> Chunk:
    """The chunk in a value, or in a part of it, that is encoded as `how` says."""
    # An OCDBT node has a checksum, and so has a member of gzip or zlib.
    summed = array.unsupported is None and not {"crc32c", "gzip", "zlib"}.isdisjoint(how.codecs)
    return Chunk(extent, box, how.codecs, how.order, extent.inline is not None or summed)


def _list_codecs(how: Array | Sharding | None) -> Iterator[str]:
    """The codecs of an array's chunks, and of those in its shards."""
    while how is not None:
        yield from how.codecs
        how = how.sharding


_How = TypeVar("_How", Array, Sharding)


def _make_unreadable(how: _How) -> _How:
    """The same with a codec that has no decoder, in place of one that is not installed."""
    sharding = None if how.sharding is None else _make_unreadable(how.sharding)
    return replace(how, codecs=() if sharding else (UNREADABLE,), sharding=sharding)


def _read_shard_index(
    extent: Extent, count: int, sharding: Sharding, source: Source, budget: ChunkBudget
) -> list[tuple[int, int]] | None:
    """Offset and length of each inner chunk of a shard, in C order; None if all are absent."""
    length = 16 * count + 4 * sharding.checked
    if length > extent.nbytes:
        raise Corrupted(
            f"Expected a shard with an index of {length} bytes, got {extent.nbytes} bytes"
        )
    budget.add_shard(extent, count)
    start = extent.nbytes - length if sharding.index_at_end else 0
    if extent.inline is not None:
        data = memoryview(extent.inline)[start : start + length]
    else:
        data = source.read(extent.key, extent.start + start, extent.start + start + length)
    if sharding.checked:
        want, got = int.from_bytes(data[-4:], "little"), crc32c(data[:-4])
        if want != got:
            raise Corrupted(
                f"Expected crc32c `{want:08x}` of a shard's index, got `{got:08x}`",
                start=extent.start + start,
                stop=extent.start + start + length,
            )
    numbers = np.frombuffer(data, "<u8", 2 * count).reshape(-1, 2)
    if (numbers == _EMPTY).all():
        return None
    return [(int(offset), int(nbytes)) for offset, nbytes in numbers.tolist()]


def _check_chunk(
    extent: Extent, nbytes: int, codecs: tuple[str, ...], budget: ChunkBudget | None
) -> None:
    check_length(extent, nbytes, codecs)
    if not NUMCODECS.isdisjoint(codecs):
        (budget or ChunkBudget({})).add_whole(extent, nbytes)


def check_length(extent: Extent, nbytes: int, codecs: tuple[str, ...]) -> None:
    """Raises Corrupted for stored bytes that can't decode to `nbytes`.

    Called before anything is allocated for them. Of unknown codecs, nothing is known.
    """
    if not DECODABLE.issuperset(codecs):
        return
    fixed = nbytes + 4 * codecs.count("crc32c")
    if COMPRESSIONS.keys().isdisjoint(codecs):
        if extent.nbytes == fixed:
            return
        what = f"Expected a chunk of {fixed} bytes, got {extent.nbytes}"
    elif nbytes > _max_decoded_bytes(extent.nbytes, codecs):
        what = (
            f"Expected a chunk of {nbytes} bytes, got {extent.nbytes} that can't decode to as many"
        )
    elif extent.nbytes > 2 * fixed + (1 << 16):
        what = f"Expected {nbytes} bytes compressed, got {extent.nbytes}"
    else:
        return
    inline = extent.inline is not None
    raise Corrupted(
        what,
        file=extent.key,
        start=None if inline else extent.start,
        stop=None if inline else extent.stop,
    )


def _max_decoded_bytes(stored: int, codecs: tuple[str, ...]) -> int:
    """The most bytes that a compressed chunk can decode to."""
    if "gzip" in codecs or "zlib" in codecs:
        return (stored + 1) * MAX_DEFLATE_RATIO
    if "lz4" in codecs:
        return (stored + 1) * WHOLE_RATIO
    return (stored // _ZSTD_BLOCK + 1) * _ZSTD_BLOCK_DECODED


def _encode_fill_value(array: Array, name: str) -> bytes:
    """The bytes of one element of the fill value."""
    try:
        return _encode_element(array.fill, array.dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise Corrupted(
            f"Expected a fill_value of dtype `{array.dtype.name}`, got {str(array.fill)[:80]!r}",
            leaf=name,
        ) from error


def _encode_element(fill: Any, dtype: np.dtype) -> bytes:
    if isinstance(fill, list):
        real, imaginary = fill
        part = np.dtype(f"f{dtype.itemsize // 2}")
        if dtype.kind != "c":
            raise ValueError("a pair for a dtype that is not complex")
        return _encode_element(real, part) + _encode_element(imaginary, part)
    if isinstance(fill, str):
        if fill.startswith("0x"):  # the bits of the element, most significant first
            return int(fill, 16).to_bytes(dtype.itemsize, "little")
        if fill not in ("NaN", "Infinity", "-Infinity"):
            raise ValueError("not a number")
        return np.asarray(float(fill)).astype(dtype).tobytes()
    if not isinstance(fill, (bool, int, float)):
        raise TypeError("not a number")
    with np.errstate(over="ignore"):
        element = np.asarray(fill).astype(dtype)
    if "float" not in dtype.name and "complex" not in dtype.name and int(element) != fill:
        raise ValueError("out of range")
    return element.tobytes()
