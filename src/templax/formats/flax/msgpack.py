"""The `checkpoint` file of Orbax before 0.6: a Flax state dict in msgpack.

Written by `flax.serialization.msgpack_serialize`, which defines extension types 1 (ndarray),
2 (native complex) and 3 (numpy scalar).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from ..._catalog.entry import Kind
from ..._core.dtypes import DTYPES
from ..._core.names import Path, join_path
from ...errors import Corrupted, Unsupported

PLACEHOLDER = "PLACEHOLDER://"

_MAX_DEPTH = 256

_MAX_RANK = 32

_CHUNKED = "__msgpack_chunked_array__"


@dataclass(frozen=True, slots=True)
class Value:
    """An array or number that the file itself holds.

    Attributes:
        start, stop: Its bytes in the file, C order, little-endian.
        data: The same bytes: a view of the file's, or of pieces put together.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    kind: Kind
    data: memoryview
    start: int = 0
    stop: int = 0


@dataclass(frozen=True, slots=True)
class Empty:
    """What is recorded where there is no leaf: `None`, `Dict` or `List`."""

    name: str


Leaf = Value | Empty | str
"""A string that starts with `PLACEHOLDER` names an array beside the file."""


def read_msgpack(data: memoryview) -> dict[Path, Leaf]:
    """Every leaf of a state dict, in the order of the file.

    Lists are read as they are; the maps "0", "1", ... that Flax itself makes of them stay maps,
    which gives leaves the same names.

    Args:
        data: The whole file. Values are views of it.

    Raises:
        Corrupted: No msgpack, nested too deep, or an array whose size contradicts its shape.
        Unsupported: A value or dtype that templax does not read.
    """
    base = _address(data)

    def extension(code: int, payload: memoryview) -> Value:
        return _extension(code, payload, base)

    try:
        tree = msgspec.msgpack.decode(data, ext_hook=extension)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupted(f"The msgpack is unreadable: {error}") from error
    return dict(_leaves(tree, ()))


def _address(data: memoryview) -> int:
    return np.frombuffer(data, np.uint8).ctypes.data if len(data) else 0


def _extension(code: int, payload: memoryview, base: int) -> Value:
    if code == 2:
        real, imaginary = _decode(payload, tuple[float, float])
        value = memoryview(np.complex128(complex(real, imaginary)).tobytes())
        return Value(np.dtype(np.complex128), (), "scalar", value, _address(payload) - base)
    if code not in (1, 3):
        raise Unsupported(f"templax does not read msgpack extension {code}")
    shape, name, data = _decode(payload, tuple[list[int], str, memoryview])
    dtype = DTYPES.get(name)
    if dtype is None:
        raise Unsupported(f"templax does not read dtype `{name[:80]}`")
    if not _holds(shape, dtype, len(data)):
        raise Corrupted(f"Expected the bytes of {name}{shape[:_MAX_RANK]}, got {len(data)}")
    start = _address(data) - base if len(data) else 0
    kind: Kind = "scalar" if code == 3 else "array"
    return Value(dtype, tuple(shape), kind, data, start, start + len(data))


def _holds(shape: Sequence[int], dtype: np.dtype, nbytes: int) -> bool:
    """Whether an array is of `nbytes`. The rank is checked first: products must stay small."""
    if len(shape) > _MAX_RANK or any(n < 0 for n in shape):
        return False
    return math.prod(shape) * dtype.itemsize == nbytes


def _decode(payload: memoryview, type: Any) -> Any:
    try:
        return msgspec.msgpack.decode(payload, type=type)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupted(f"A msgpack extension is unreadable: {error}") from error


def _leaves(tree: Any, path: Path) -> Iterator[tuple[Path, Leaf]]:
    if len(path) > _MAX_DEPTH:
        raise Corrupted(f"Expected a tree at most {_MAX_DEPTH} deep, got a deeper one")
    if isinstance(tree, dict):
        if _CHUNKED in tree:
            yield path, _joined(tree, path)
        elif not tree:
            yield path, Empty("Dict")
        else:
            for key, child in tree.items():
                yield from _leaves(child, (*path, str(key)))
    elif isinstance(tree, list):
        if not tree:
            yield path, Empty("List")
        for i, child in enumerate(tree):
            yield from _leaves(child, (*path, i))
    elif tree is None:
        yield path, Empty("None")
    elif isinstance(tree, (Value, str)):
        yield path, tree
    elif isinstance(tree, (bool, int, float)):
        yield path, _scalar(tree)
    else:
        raise Unsupported(
            f"templax does not read msgpack values of type `{type(tree).__name__}`",
            leaf=join_path(path),
        )


def _scalar(number: bool | int | float) -> Value:
    # At most 64 bits: msgpack has no larger ones.
    value = np.asarray(number)
    return Value(value.dtype, (), "scalar", memoryview(value.tobytes()))


def _joined(tree: dict[Any, Any], path: Path) -> Value:
    """An array that Flax split into flat pieces because it is larger than 2**30 bytes."""
    try:
        chunked = msgspec.convert(tree, _Chunked)
    except msgspec.ValidationError as error:
        raise Corrupted(f"Expected an array in chunks: {error}", leaf=join_path(path)) from error
    pieces = _numbered(chunked.chunks, path)
    shape = tuple(_numbered(chunked.shape, path))
    if not pieces or any(not isinstance(piece, Value) for piece in pieces):
        raise Corrupted("Expected chunks that are arrays, got others", leaf=join_path(path))
    dtype = pieces[0].dtype
    if any(piece.dtype != dtype for piece in pieces):
        raise Corrupted("Expected chunks of one dtype, got several", leaf=join_path(path))
    nbytes = sum(len(piece.data) for piece in pieces)
    if not _holds(shape, dtype, nbytes):
        raise Corrupted(
            f"Expected the bytes of {dtype.name}{list(shape[:_MAX_RANK])}, got {nbytes}",
            leaf=join_path(path),
        )
    data = memoryview(b"".join(piece.data for piece in pieces))
    return Value(dtype, shape, "array", data, pieces[0].start, pieces[-1].stop)


class _Chunked(msgspec.Struct):
    shape: dict[str, int]
    chunks: dict[str, Any]


def _numbered(items: dict[str, Any], path: Path) -> list[Any]:
    """Values of a map "0", "1", ... in that order."""
    try:
        return [items[str(i)] for i in range(len(items))]
    except KeyError as error:
        raise Corrupted(
            f"Expected item {error} of a chunked array, found none", leaf=join_path(path)
        ) from error
