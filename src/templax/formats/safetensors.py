"""Opens a safetensors file as a catalog.

The format (huggingface/safetensors, README, "Format"): the length of the header as u64,
little-endian; a JSON header, name → dtype, shape and offsets; then the tensors, little-endian and
in C order, which tile the rest of the file without holes.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Iterator

import msgspec
import numpy as np

from .._catalog.catalog import Catalog
from .._catalog.entry import Chunk, Extent, LeafEntry
from .._catalog.regions import Region
from .._codecs.crc_combine import combine_crcs
from .._core.boxes import MAX_RANK, fits_address_space, format_number, format_shape, full_box
from .._core.dtypes import DTYPES
from .._core.gc_pause import pause_gc
from .._core.json_text import decode_json
from ..errors import Corrupted, Unsupported
from ..storage.signatures import SAFETENSORS, recognise_root
from ..storage.source import Source, root_size
from .safetensors_write import CODES, METADATA, SUMS, parse_sums

MAX_HEADER = 100_000_000
"""Most bytes of a header, as in the reference implementation."""

SHARDING = "DCP_SHARDING_INFO"
"""Key of the metadata in which torch.distributed.checkpoint says where shards begin."""

SHARD_NAME = re.compile(r"shard-([0-9]{5})-(.+\.safetensors)")
"""The name of a file that it saves: the number of the process from 1 on, and the rest."""

_PACKED = ("F4", "F6_E2M3", "F6_E3M2")
"""The other dtypes. Their elements share bytes, in an order that the format does not define."""

_DTYPES = {code: DTYPES[name] for code, name in CODES.items() if name in DTYPES}


class _Tensor(msgspec.Struct, gc=False):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class _Shard(msgspec.Struct):
    saved_offsets: list[int]


class Safetensors:
    """A file whose first bytes are a safetensors header."""

    name = "safetensors"

    def detect(self, source: Source) -> str | None:
        known = recognise_root(source)
        return "its header" if known == SAFETENSORS else None

    @pause_gc()
    def open(self, source: Source) -> Catalog:
        """Opens a file. Leaves are in the order of their data.

        Raises:
            Corrupted: The header is unreadable, or its tensors do not tile the file.
            Unsupported: A dtype that templax does not read, which the error names; or the tensors
                are shards of others.
        """
        entries, metadata, summed = _read_tensors(source)
        if SHARDING in metadata and _is_shard(source, metadata[SHARDING]):
            raise Unsupported(
                "templax reads no safetensors files with the shards of a distributed checkpoint",
                hint="load them with torch.distributed.checkpoint.HuggingFaceStorageReader",
            )
        return Catalog(
            url=source.url,
            format=self.name,
            evidence="its header",
            entries=entries,
            source=source,
            locator=_locate,
            metadata=metadata,
            fingerprints=functools.partial(_combine_sums, entries) if summed else None,
            regions=functools.partial(_describe_header, source),
        )


def _is_shard(source: Source, sharding: str) -> bool:
    """Whether a file that PyTorch saved is one of several with the shards of tensors.

    Args:
        source: The file.
        sharding: What its metadata says of where they begin.
    """
    named = SHARD_NAME.fullmatch(source.url.rpartition("/")[2])
    if named is not None:
        second = source.at("..").stat(f"shard-00002-{named[2]}")
        return int(named[1]) > 1 or second is not None
    try:
        saved = msgspec.json.decode(sharding, type=dict[str, _Shard])
    except msgspec.MsgspecError:
        return True
    return any(any(each.saved_offsets) for each in saved.values())


def _read_tensors(source: Source) -> tuple[tuple[LeafEntry, ...], dict[str, str], bool]:
    """The tensors of the file at the root of a source, its metadata, and whether it has checksums.

    Raises:
        Corrupted, Unsupported: See `Safetensors.open`.
    """
    size = root_size(source)
    tensors, metadata, sums, begin = _read_header(source, size)
    found: list[tuple[str, tuple[int, ...], np.dtype, int, int]] = []
    sizes: dict[tuple[int, ...], int] = {}  # of the shapes seen: most tensors share a few
    stop = begin
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        dtype = _DTYPES.get(tensor.dtype)
        if dtype is None:
            raise _unsupported_error(tensor.dtype, name)
        start, end = tensor.data_offsets
        shape = tensor.shape
        # The length of the file bounds the dimensions of an array that has elements, unless
        # there are so many that their product takes long to compute, or one is negative.
        count = sizes.get(shape)
        if count is None:
            count = math.prod(shape) if len(shape) <= MAX_RANK else 0
            if min(shape, default=0) >= 0:
                sizes[shape] = count
        nbytes = count * dtype.itemsize
        if shape not in sizes or (nbytes and end - start != nbytes):
            raise Corrupted(
                f"Expected {format_number(nbytes)} bytes for {dtype.name}{format_shape(shape)},"
                f" got {format_number(end - start)}",
                leaf=name,
            )
        if (not nbytes or len(shape) > 8) and not fits_address_space(shape, dtype.itemsize):
            what = f"templax reads no arrays of shape {format_shape(shape)}"
            raise Unsupported(what, leaf=name)
        if end - start != nbytes:
            raise Corrupted(f"Expected 0 bytes for {dtype.name}{shape}", leaf=name)
        if begin + start != stop:
            raise Corrupted(
                "Expected tensors without holes or overlaps, got one at byte"
                f" {format_number(begin + start)} after {stop}",
                leaf=name,
            )
        stop = begin + end
        found.append((name, shape, dtype, begin + start, stop))
    if stop != size:
        raise Corrupted(f"Expected a file of {stop} bytes, got {size}")
    if sums is None:
        summed: list[tuple[int, tuple[int, ...]]] = [(0, ())] * len(found)
    else:
        summed = parse_sums(sums, [stop - start for *_, start, stop in found])
    entries = [
        LeafEntry(name, tuple(name.split(".")), shape, dtype, handle=(start, stop, *summed_blocks))
        for (name, shape, dtype, start, stop), summed_blocks in zip(found, summed, strict=True)
    ]
    return tuple(entries), metadata, sums is not None


def _describe_header(source: Source) -> Iterator[Region]:
    """The bytes that hold no tensors."""
    stop = 8 + int.from_bytes(source.read("", 0, 8), "little")
    text = bytes(source.read("", 8, stop))
    padded = stop - len(text) + len(text.rstrip(b" "))
    yield Region("", 0, padded, "index", "header")
    yield Region("", padded, stop, "padding", "spaces after the header")


def _unsupported_error(code: str, name: str) -> Unsupported:
    what = f"templax does not read dtype `{code[:80]}`"
    if code in _PACKED:
        what += ": its elements share bytes, in an order that safetensors does not define"
    elif code in CODES:
        what += f": this version of ml_dtypes has no {CODES[code]}"
    return Unsupported(what, leaf=name)


def _read_header(
    source: Source, size: int
) -> tuple[dict[str, _Tensor], dict[str, str], str | None, int]:
    """The tensors and metadata of a file, its checksums or None, and where its data begins."""
    length = int.from_bytes(source.read("", 0, min(8, size)), "little")
    maximum = min(MAX_HEADER, size - 8)
    if not 2 <= length <= maximum:
        raise Corrupted(f"Expected a header of 2 to {maximum} bytes, got {length}", start=0, stop=8)
    try:
        text = source.read("", 8, 8 + length)
        fields = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        about = fields.pop(METADATA, None)
        kind = dict[str, str] | None
        metadata = None if about is None else msgspec.json.decode(about, type=kind)
        if about is not None:
            decode_json(about)  # refuses a key that occurs twice
        decode = msgspec.json.Decoder(_Tensor).decode
        tensors = {name: decode(raw) for name, raw in fields.items()}
        # Each tensor has ten quotes: around its name, the names of its three fields, and its dtype.
        # Any other number may mean that a key is repeated, which is slower to find.
        quotes = 10 * len(tensors) + (0 if about is None else 2 + bytes(about).count(b'"'))
        data = bytes(text)
        if data.count(b'"') != quotes or b"\\" in data:
            decode_json(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Corrupted(f"The header is unreadable: {error}", start=8, stop=8 + length) from error
    metadata, sums = metadata or {}, None
    if SUMS in metadata and data.rstrip().endswith(bytes(about or b"") + b"}"):
        sums = metadata.pop(SUMS)
    return tensors, metadata, sums, 8 + length


@pause_gc()
def _locate(
    entries: Iterable[LeafEntry], damages: list[Corrupted] | None = None
) -> dict[str, tuple[Chunk, ...]]:
    return {entry.name: _make_chunks(entry, *entry.handle) for entry in entries}


def _make_chunks(
    entry: LeafEntry, start: int, stop: int, block: int, sums: tuple[int, ...]
) -> tuple[Chunk, ...]:
    """The chunks of a tensor: one, or none if it is empty."""
    if start == stop:
        return ()
    checked = len(sums) > 0
    extent, box = Extent("", start, stop), full_box(entry.shape)
    return (Chunk(extent, box, checked=checked, sums=sums, block=block),)


def _combine_sums(entries: Iterable[LeafEntry]) -> dict[str, int]:
    """The crc32c of each tensor, from those of its blocks."""
    found: dict[str, int] = {}
    for entry in entries:
        start, stop, block, sums = entry.handle
        found[entry.name] = combine_crcs(sums, block, stop - start) if sums else 0
    return found
