"""Reads a Flax state dict in msgpack, which is also the `checkpoint` file of Orbax before 0.6.

Written by `flax.serialization.msgpack_serialize`, which defines extension types 1 (ndarray),
2 (native complex) and 3 (numpy scalar).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from ..._catalog.entry import Chunk, Extent, Kind
from ..._core.boxes import (
    MAX_RANK,
    Shape,
    fits_address_space,
    format_shape,
    full_box,
    size_of,
    split_range,
)
from ..._core.dtypes import DTYPES
from ..._core.names import MAX_DEPTH, Path, join_path
from ...errors import CheckpointError, Corrupted, Unsupported
from .keys import scan_values
from .specs import Spec, is_spec, parse_spec

PLACEHOLDER = "PLACEHOLDER://"
"""What a string begins with that Orbax wrote in place of an array."""

CHUNKED = "__msgpack_chunked_array__"

MAX_PIECES = 1 << 17
"""Most pieces of split arrays, each counted once for each dimension of its array. Flax makes pieces
of 2**30 bytes, but they may have a single one, and each becomes a few boxes."""


class Piece(msgspec.Struct, frozen=True, gc=False):
    """The bytes of an array, or of one piece of it.

    Attributes:
        data: A view of the file's content, or what was made of it; None if only its place is kept.
        start, stop: Position of these bytes in the file; both 0 if they are not in it as such.
    """

    data: bytes | memoryview | None
    start: int = 0
    stop: int = 0

    @property
    def nbytes(self) -> int:
        return self.stop - self.start if self.data is None else len(self.data)

    def __reduce__(self) -> tuple[Any, ...]:
        data = None if self.data is None else bytes(self.data)  # views can't be pickled
        return Piece, (data, self.start, self.stop)


class Value(msgspec.Struct, frozen=True, gc=False):
    """An array or number stored in the file.

    Attributes:
        dtype, shape: Of the array; the shape of a number is `()`.
        kind: "array" or "scalar".
        pieces: Its bytes, in C order and little-endian. Flax splits an array of more than 2**30
            bytes into flat pieces; others have one.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    kind: Kind
    pieces: tuple[Piece, ...]


class Empty(msgspec.Struct, frozen=True, gc=False):
    """A node without leaves. `name` is what is recorded there: `None`, `Dict` or `List`."""

    name: str


Leaf = Value | Empty | Spec | str
"""A string that starts with `PLACEHOLDER` refers to an array stored beside the file."""


_MAX_REFUSALS = 64
"""Most errors that are kept: a file may have another reason every few bytes."""


def read_msgpack(
    data: memoryview, *, keep: bool = True, unread: dict[Path, Unsupported] | None = None
) -> dict[Path, Leaf]:
    """Reads every leaf of a state dict, in the order of the file.

    Flax stores a list as a map with the keys "0", "1", ...; such maps stay maps, because the names
    of leaves are the same either way. Lists in the msgpack itself stay lists. Raw bytes are an
    array of uint8.

    Args:
        data: The whole file. The bytes of arrays are not touched.
        keep: Whether arrays hold views of it. Otherwise they only have their place.
        unread: If given, leaves that templax does not read are added to it, each with the error
            that would be raised for it.

    Raises:
        Corrupted: The data is not msgpack, is nested too deeply, has a map that repeats a key, or
            has an array whose size contradicts its shape.
        Unsupported: A value or dtype that templax does not read.
    """
    problem, found = scan_values(data)
    if isinstance(problem, Unsupported):
        raise problem  # before the decoder makes an object of each value
    places, refused, broken = iter(found), dict[str, Unsupported](), list[CheckpointError]()

    def extension(code: int, payload: memoryview) -> Value | CheckpointError:
        _, stop = next(places, (0, 0))
        try:
            return _read_extension(code, payload, stop, keep)
        except Unsupported as error:
            if error.what not in refused and len(refused) >= _MAX_REFUSALS:
                error = Unsupported("templax does not read one of the msgpack extensions")
            return refused.setdefault(error.what, error)
        except CheckpointError as error:  # raised where its leaf is known; the first comes first
            broken.append(error)
            del broken[1:]
            return broken[0]

    try:
        tree = msgspec.msgpack.decode(data, ext_hook=extension)
    except (msgspec.DecodeError, ValueError, TypeError, RecursionError) as error:
        raise Corrupted(f"The msgpack is unreadable: {error}") from error
    if problem is not None:
        raise problem
    leaves: dict[Path, Leaf] = {}
    pieces = 0
    for path, leaf in _iter_leaves(tree, ()):
        if path in leaves or (unread is not None and path in unread):  # the keys 1 and "1"
            raise Corrupted("Expected one leaf, got two of this name", leaf=join_path(path))
        if isinstance(leaf, Unsupported):
            if unread is None:
                raise leaf.locate(leaf=join_path(path))
            unread[path] = leaf
            continue
        if isinstance(leaf, Value) and len(leaf.pieces) > 1:
            pieces += len(leaf.pieces) * len(leaf.shape)
            if pieces > MAX_PIECES:
                what = f"templax reads {MAX_PIECES} dimensions of pieces of arrays, got more"
                raise Unsupported(what, leaf=join_path(path))
        leaves[path] = leaf
    return leaves


def _read_extension(code: int, payload: memoryview, stop: int, keep: bool) -> Value:
    """The array or number in an extension, whose payload ends at `stop` in the file."""
    if code == 2:
        real, imaginary = _decode_payload(payload, _COMPLEX)
        value = memoryview(np.complex128(complex(real, imaginary)).tobytes())
        return Value(np.dtype(np.complex128), (), "scalar", (Piece(value),))
    if code not in (1, 3):
        raise Unsupported(f"templax does not read msgpack extension {code}")
    shape, name, data = _decode_payload(payload, _ARRAY)
    dtype = DTYPES.get(name)
    if dtype is None:
        raise Unsupported(f"templax does not read dtype `{name[:80]}`")
    nbytes = len(data)
    if not _has_nbytes(shape, dtype, nbytes):
        raise Corrupted(f"Expected the bytes of {name}{format_shape(shape)}, got {nbytes}")
    piece = Piece(data if keep else None, stop - nbytes, stop)  # the bytes are the last of the list
    return Value(dtype, shape, "scalar" if code == 3 and not shape else "array", (piece,))


def _has_nbytes(shape: Shape, dtype: np.dtype, nbytes: int) -> bool:
    """Whether an array has `nbytes`. The rank is checked first, so that the product stays small."""
    found = math.prod(shape) * dtype.itemsize if len(shape) <= MAX_RANK else -1
    if found == nbytes and min(shape, default=1) > 0:
        return True
    return found == nbytes and fits_address_space(shape, dtype.itemsize)


_ARRAY = msgspec.msgpack.Decoder(tuple[tuple[int, ...], str, memoryview])

_COMPLEX = msgspec.msgpack.Decoder(tuple[float, float])


def _decode_payload(payload: memoryview, decoder: msgspec.msgpack.Decoder[Any]) -> Any:
    try:
        return decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupted(f"A msgpack extension is unreadable: {error}") from error


def _iter_leaves(tree: Any, path: Path) -> Iterator[tuple[Path, Leaf | Unsupported]]:
    """The leaves of a tree, and the errors for those that templax does not read."""
    if len(path) > MAX_DEPTH:
        raise Corrupted(f"Expected a tree at most {MAX_DEPTH} deep, got a deeper one")
    if isinstance(tree, dict):
        if CHUNKED in tree:
            yield path, _join_pieces(tree, path)
        elif is_spec(tree):
            yield path, parse_spec(tree, path)
        elif not tree:
            yield path, Empty("Dict")
        else:
            for key, child in tree.items():
                if isinstance(key, CheckpointError):
                    raise key
                if not isinstance(key, (str, int)):
                    raise Unsupported(
                        f"templax reads msgpack maps with keys of text, got {type(key).__name__}",
                        leaf=join_path(path),
                    )
                below = (*path, str(key))
                if isinstance(child, Value) and len(path) < MAX_DEPTH:
                    yield below, child  # the common case, without a generator of its own
                else:
                    yield from _iter_leaves(child, below)
    elif isinstance(tree, list):
        if not tree:
            yield path, Empty("List")
        for i, child in enumerate(tree):
            yield from _iter_leaves(child, (*path, i))
    elif tree is None:
        yield path, Empty("None")
    elif isinstance(tree, Unsupported):
        yield path, tree
    elif isinstance(tree, CheckpointError):
        raise tree.locate(leaf=join_path(path))
    elif isinstance(tree, (Value, str)):
        yield path, tree
    elif isinstance(tree, (bool, int, float)):
        yield path, _make_scalar(tree)
    elif isinstance(tree, bytes):
        yield path, Value(DTYPES["uint8"], (len(tree),), "array", (Piece(memoryview(tree)),))
    else:
        what = f"templax does not read msgpack values of type `{type(tree).__name__}`"
        yield path, Unsupported(what)


def _make_scalar(number: bool | int | float) -> Value:
    # At most 64 bits: msgpack has no larger numbers.
    value = np.asarray(number)
    return Value(value.dtype, (), "scalar", (Piece(memoryview(value.tobytes())),))


def _join_pieces(tree: dict[Any, Any], path: Path) -> Value | Unsupported:
    """Joins an array that Flax split into flat pieces because it exceeds 2**30 bytes."""
    try:
        chunked = msgspec.convert(tree, _Chunked)
    except msgspec.ValidationError as error:
        raise Corrupted(f"Expected an array in chunks: {error}", leaf=join_path(path)) from error
    arrays = _in_numeric_order(chunked.chunks, path)
    broken = next((array for array in arrays if isinstance(array, CheckpointError)), None)
    if isinstance(broken, Unsupported):
        return broken
    if broken is not None:
        raise broken.locate(leaf=join_path(path))
    shape = tuple(_in_numeric_order(chunked.shape, path))
    if not arrays or any(not isinstance(array, Value) for array in arrays):
        raise Corrupted("Expected chunks that are arrays, got others", leaf=join_path(path))
    dtype = arrays[0].dtype
    if any(array.dtype != dtype for array in arrays):
        raise Corrupted("Expected chunks of one dtype, got several", leaf=join_path(path))
    pieces = tuple(piece for array in arrays for piece in array.pieces)
    nbytes = sum(piece.nbytes for piece in pieces)
    if not _has_nbytes(shape, dtype, nbytes):
        raise Corrupted(
            f"Expected the bytes of {dtype.name}{format_shape(shape)}, got {nbytes}",
            leaf=join_path(path),
        )
    return Value(dtype, shape, "array", pieces)


class _Chunked(msgspec.Struct, forbid_unknown_fields=True):
    marker: bool = msgspec.field(name=CHUNKED)
    shape: dict[str, int]
    chunks: dict[str, Any]


def _in_numeric_order(items: dict[str, Any], path: Path) -> list[Any]:
    """The values of a map with the keys "0", "1", ..., in that order."""
    try:
        return [items[str(i)] for i in range(len(items))]
    except KeyError as error:
        raise Corrupted(
            f"Expected item {error} of a chunked array, found none", leaf=join_path(path)
        ) from error


def locate_value(value: Value, key: str, *, inline: bool) -> tuple[Chunk, ...]:
    """The chunks of a value.

    Args:
        value: The value.
        key: The file that was read.
        inline: Whether chunks hold the bytes that were read, rather than their place in the file.
    """
    itemsize = value.dtype.itemsize
    if len(value.pieces) == 1:
        (piece,) = value.pieces
        extent = Extent(key, piece.start, piece.stop, _take_inline(piece, 0, piece.nbytes, inline))
        return (Chunk(extent, full_box(value.shape)),) if piece.nbytes else ()
    chunks: list[Chunk] = []
    first = 0
    for piece in value.pieces:
        last, at = first + piece.nbytes // itemsize, 0
        for box in split_range(first, last, value.shape) if last > first else ():
            nbytes = size_of(box) * itemsize
            data = _take_inline(piece, at, at + nbytes, inline)
            start = piece.start + at if piece.stop else 0
            stop = start + nbytes if piece.stop else 0
            chunks.append(Chunk(Extent(key, start, stop, data), box))
            at += nbytes
        first = last
    return tuple(chunks)


def _take_inline(piece: Piece, start: int, stop: int, inline: bool) -> bytes | memoryview | None:
    return piece.data[start:stop] if piece.data is not None and (inline or not piece.stop) else None
