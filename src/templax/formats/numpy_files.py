"""Opens arrays in numpy's own formats: `.npy`, and archives of them (`.npz`).

See numpy's `lib.format`: a header that names dtype, order and shape, then the bytes. An archive is
a zip of such files, each stored as it is (`np.savez`) or deflated (`np.savez_compressed`). Pickled
objects are refused: nothing is ever loaded by `pickle`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from io import BytesIO
from typing import Literal, NamedTuple

import numpy as np

from .._catalog.catalog import Catalog
from .._catalog.entry import Chunk, Extent, LeafEntry
from .._codecs.deflate import InflateStream, read_npy_header
from .._core.boxes import MAX_RANK, Shape, fits_address_space, full_box
from .._core.dtypes import DTYPES
from .._core.gc_pause import pause_gc
from ..errors import CheckpointError, Corrupted, Unsupported
from ..storage.signatures import NPY, NPZ, read_head, recognise
from ..storage.source import Source
from .zip_members import Member, check_members, list_members

_HEAD = 1 << 12
"""Bytes that are read for the header of an array. Those that numpy writes have 64 to 256."""

_MAX_HEAD = (1 << 16) + 12
"""Most bytes of a magic, version, length and header."""


class ArrayHeader(NamedTuple):
    """What the header of an array says.

    Attributes:
        dtype: In little-endian byte order.
        shape: In elements.
        order: "C" or "F".
        nbytes: Size of the header, with all that goes before the values.
    """

    dtype: np.dtype
    shape: Shape
    order: Literal["C", "F"]
    nbytes: int


def parse_header(head: bytes) -> ArrayHeader:
    """Reads the header at the beginning of `head`.

    Raises:
        Corrupted: It is not one, or contradicts itself.
        Unsupported: The array holds Python objects, records or strings, is big-endian or has a
            dtype that templax does not read.
    """
    import tokenize

    file = BytesIO(head)
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise Unsupported(f"templax does not read version {version} of numpy's format")
        shape, fortran, dtype = read(file)
    except (ValueError, TypeError, SyntaxError, KeyError, MemoryError, RecursionError) as error:
        raise Corrupted(f"The header of the array is unreadable: {error}") from error
    except (tokenize.TokenError, OverflowError, EOFError) as error:
        raise Corrupted(f"The header of the array is unreadable: {error}") from error
    if dtype.hasobject:
        raise Unsupported("templax reads no pickled objects", hint="save arrays of numbers")
    if len(shape) > MAX_RANK or any(type(n) is not int or n < 0 for n in shape):
        raise Corrupted(f"Expected a shape of at most {MAX_RANK} sizes, got one of {len(shape)}")
    known = _read_dtype(dtype)
    if not fits_address_space(shape, known.itemsize):
        raise Unsupported("templax reads no array that exceeds the address space")
    order = "F" if fortran and len(shape) > 1 else "C"
    return ArrayHeader(known, shape, order, file.tell())


def _read_dtype(dtype: np.dtype) -> np.dtype:
    if dtype.kind == "V" and dtype.fields is None and dtype.subdtype is None:
        if dtype.itemsize == 2:
            return DTYPES["bfloat16"]  # numpy writes dtypes of ml_dtypes without their names
        if dtype.itemsize == 1:
            raise Unsupported(
                "numpy did not store which dtype of one byte this is",
                hint="save it as uint8, and view what is restored as its dtype",
            )
    known = DTYPES.get(dtype.name)
    if known is None:
        raise Unsupported(f"templax does not read dtype `{dtype.name[:80]}`")
    if dtype.byteorder == ">":
        raise Unsupported(f"templax reads no big-endian arrays, got `{dtype.str}`")
    return known


class NumpyArray:
    """A `.npy` file: one array, which is the whole tree."""

    name = "npy"

    def detect(self, source: Source) -> str | None:
        info = source.stat("")
        if info is None or info.is_dir:
            return None
        head = read_head(source, "", info.size, _HEAD)
        if recognise(head[:512], info.size) != NPY:
            return None
        try:
            header = parse_header(head)
        except Unsupported:
            return "its header"
        except CheckpointError:
            return None
        stop = header.nbytes + math.prod(header.shape) * header.dtype.itemsize
        return "its header" if stop == info.size else None  # otherwise Equinox's, or damaged

    def open(self, source: Source) -> Catalog:
        info = source.stat("")
        header = parse_header(read_head(source, "", 0 if info is None else info.size, _MAX_HEAD))
        stop = header.nbytes + math.prod(header.shape) * header.dtype.itemsize
        handle = (header.nbytes, stop, header.order, False)
        entry = LeafEntry("", (), header.shape, header.dtype, handle=handle)
        return Catalog(
            url=source.url,
            format=self.name,
            evidence="its header",
            entries=(entry,),
            source=source,
            locator=_locate,
        )


class NumpyArchive:
    """A `.npz` file: arrays by name. A name with a `.` is a path, as in safetensors."""

    name = "npz"

    def detect(self, source: Source) -> str | None:
        info = source.stat("")
        if info is None or info.is_dir:
            return None
        known = recognise(read_head(source, "", info.size), info.size)
        return "a zip of `.npy` files" if known == NPZ else None

    @pause_gc()
    def open(self, source: Source) -> Catalog:
        """Opens an archive. Leaves are in the order of its directory.

        Raises:
            Corrupted: The archive or a header is unreadable, or contradicts itself.
            Unsupported: A member is no array of numbers; the error names it.
        """
        members = list_members(source)
        return Catalog(
            url=source.url,
            format=self.name,
            evidence="a zip of `.npy` files",
            entries=tuple(_read_entry(source, member) for member in members),
            source=source,
            locator=_locate,
            audit=functools.partial(check_members, source, members),
        )


def _read_entry(source: Source, member: Member) -> LeafEntry:
    name = member.name.removesuffix(".npy")
    if name == member.name:
        raise Unsupported("templax reads only `.npy` members of an archive", leaf=name)
    try:
        if member.deflated:
            stored = source.read("", member.start, min(member.stop, member.start + _MAX_HEAD))
            header = parse_header(read_npy_header(InflateStream(stored)))
        else:
            stop = min(member.stop, member.start + _HEAD)
            head = bytes(source.read("", member.start, stop))
            if int.from_bytes(head[8:10], "little") + 12 > len(head):
                stop = min(member.stop, member.start + _MAX_HEAD)
                head = bytes(source.read("", member.start, stop))
            header = parse_header(head)
        nbytes = math.prod(header.shape) * header.dtype.itemsize
        if header.nbytes + nbytes != member.nbytes:
            raise Corrupted(
                f"Expected {member.nbytes - header.nbytes} bytes, got"
                f" {header.dtype.name}{header.shape}"
            )
    except CheckpointError as error:
        raise error.locate(leaf=name, start=member.start, stop=member.stop) from error
    start = member.start if member.deflated else member.start + header.nbytes
    handle = (start, member.stop, header.order, member.deflated)
    return LeafEntry(name, tuple(name.split(".")), header.shape, header.dtype, handle=handle)


@pause_gc()
def _locate(
    entries: Iterable[LeafEntry], damages: list[Corrupted] | None = None
) -> dict[str, tuple[Chunk, ...]]:
    located: dict[str, tuple[Chunk, ...]] = {}
    for entry in entries:
        start, stop, order, deflated = entry.handle
        codecs = ("npy-deflate",) if deflated else ()
        chunk = Chunk(Extent("", start, stop), full_box(entry.shape), codecs, order)
        located[entry.name] = (chunk,) if entry.nbytes else ()
    return located
