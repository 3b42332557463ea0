"""Reads what precedes the tensors of a GGUF file: metadata, and what each tensor is.

The format (ggml-org/ggml, docs/gguf.md), little-endian: the magic `GGUF`, the version, the numbers
of tensors and of entries of metadata; these entries; for each tensor its name, dimensions (the
fastest first), type and offset; then, at the next multiple of the alignment, the tensors.
"""

from __future__ import annotations

import math
import struct
from typing import Any, NamedTuple

from ..._core.boxes import MAX_RANK, Shape
from ...errors import Corrupted, Unsupported
from ...storage.signatures import MAX_METADATA, read_head
from ...storage.source import Source
from .types import TYPES, TensorType

ALIGNMENT = "general.alignment"

_DEFAULT_ALIGNMENT = 32

_VERSIONS = (2, 3)

_WINDOW = 1 << 20
"""Bytes that are read first from a store that does not map files, and four times as many if the
header is longer: it has the whole vocabulary of a language model."""

_MAX_SHOWN = 64
"""Most items of a list that are kept; of a longer one, only the length and the type."""

_FORMATS = "BbHhIif?  Qqd"
"""`struct` format of each type of value by its number, apart from text and lists."""

_SCALARS = {i: struct.Struct(f"<{code}") for i, code in enumerate(_FORMATS) if code != " "}

_TEXT, _LIST = 8, 9

_NAMES = (
    *("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "bool"),
    *("string", "list", "uint64", "int64", "float64"),
)

_LENGTH, _KIND = struct.Struct("<Q"), struct.Struct("<I")


class Tensor(NamedTuple):
    """What the header says of a tensor.

    Attributes:
        name: Its name.
        shape: In numpy's order, the last dimension fastest: the reverse of that of the file.
        type: How its elements are stored.
        start, stop: Its bytes in the file.
    """

    name: str
    shape: Shape
    type: TensorType
    start: int
    stop: int


class Header(NamedTuple):
    """The header of a file.

    Attributes:
        metadata: Key → number, text, or list. A long list is described instead, because that of
            the tokens of a language model has a hundred thousand.
        tensors: The tensors, in the order of the file.
        nbytes: Its size, without the padding before the first tensor.
        alignment: Zeros fill the file up to a multiple of it after the header and each tensor.
    """

    metadata: dict[str, Any]
    tensors: list[Tensor]
    nbytes: int
    alignment: int


class _Truncated(Corrupted):
    """The bytes end before the header does."""


def read_header(source: Source, size: int) -> Header:
    """Reads the header of the file at the root of a source.

    Args:
        source: The file.
        size: Its size in bytes.

    Raises:
        Corrupted: The header is unreadable, names a key or a tensor twice, or has tensors that
            overlap, are not aligned, or lie outside of the file.
        Unsupported: A version, byte order or type that templax does not read.
    """
    data = source.view("", 0, size) if source.maps and size else None
    window = _WINDOW
    while True:
        head = memoryview(read_head(source, "", size, window)) if data is None else data
        try:
            return _Parser(head, size).parse()
        except _Truncated as error:
            if len(head) == size:
                raise Corrupted(error.what, start=error.start) from None
            if window >= MAX_METADATA:
                raise Corrupted(f"Expected a header of at most {MAX_METADATA} bytes") from error
            window *= 4


class _Parser:
    """Reads a header from the beginning of a file of `size` bytes."""

    def __init__(self, data: memoryview, size: int):
        self._data, self._size, self._at = data, size, 0

    def parse(self) -> Header:
        if bytes(self._take(4)) != b"GGUF":
            raise Corrupted("Expected the magic `GGUF`", start=0, stop=4)
        version = self._number(_KIND)
        if not version & 0xFFFF:
            raise Unsupported("templax reads no big-endian GGUF files")
        if version not in _VERSIONS:
            raise Unsupported(f"templax reads GGUF of versions 2 and 3, got version {version}")
        count, entries = self._number(_LENGTH), self._number(_LENGTH)
        self._require(entries, 13)  # a key, a type and a value take as many bytes at least
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = self._text()
            if key in metadata:
                raise Corrupted(f"Expected each key of the metadata once, got {key[:80]!r} again")
            metadata[key] = self._value(self._number(_KIND))
        self._require(count, 24)
        tensors = [self._tensor() for _ in range(count)]
        alignment = metadata.get(ALIGNMENT, _DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise Corrupted(f"Expected an alignment that is a power of two, got {alignment!r:.80}")
        begin = self._at + -self._at % alignment
        placed = _place_tensors(tensors, begin, alignment, self._size)
        return Header(metadata, placed, self._at, alignment)

    def _take(self, nbytes: int) -> memoryview:
        start, self._at = self._at, self._at + nbytes
        if self._at > len(self._data):
            raise _Truncated(f"Expected {nbytes} bytes of the header, the file ends", start=start)
        return self._data[start : self._at]

    def _number(self, layout: struct.Struct) -> Any:
        return layout.unpack(self._take(layout.size))[0]

    def _require(self, count: int, nbytes: int) -> None:
        """Checks that so many items of at least `nbytes` fit into the rest of the file."""
        left = self._size - self._at
        if count * nbytes > left:
            raise Corrupted(
                f"Expected at most {left // nbytes} items in {left} bytes, got {count}",
                start=self._at,
            )

    def _text(self) -> str:
        at = self._at
        try:
            return str(self._take(self._number(_LENGTH)), "utf-8")
        except UnicodeDecodeError as error:
            raise Corrupted(f"Expected text, got other bytes ({error.reason})", start=at) from error

    def _value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self._text()
        if kind == _LIST:
            return self._list()
        layout = _SCALARS.get(kind)
        if layout is None:
            raise Unsupported(f"templax reads no GGUF metadata of type {kind}")
        return self._number(layout)

    def _list(self) -> Any:
        kind, count = self._number(_KIND), self._number(_LENGTH)
        layout = _SCALARS.get(kind)
        if layout is None and kind != _TEXT:
            name = "lists" if kind == _LIST else f"type {kind}"
            raise Unsupported(f"templax reads no GGUF metadata that is a list of {name}")
        self._require(count, 8 if layout is None else layout.size)
        if count <= _MAX_SHOWN:
            return [self._value(kind) for _ in range(count)]
        if layout is not None:
            self._take(count * layout.size)
        else:
            self._skip_texts(count)
        return f"a list of {count} of type {_NAMES[kind]}"

    def _skip_texts(self, count: int) -> None:
        data, at, read = self._data, self._at, _LENGTH.unpack_from
        try:
            for _ in range(count):
                at += 8 + read(data, at)[0]
        except (struct.error, OverflowError):
            at = len(data) + 1
        self._at = at
        self._take(0)

    def _tensor(self) -> Tensor:
        """A tensor, whose bytes begin at an offset from the data that is not known yet."""
        name, rank = self._text(), self._number(_KIND)
        if rank > MAX_RANK:
            raise Corrupted(f"Expected at most {MAX_RANK} dimensions, got {rank}", leaf=name)
        sizes = struct.unpack(f"<{rank}Q", self._take(8 * rank))
        number, offset = self._number(_KIND), self._number(_LENGTH)
        stored = TYPES.get(number)
        if stored is None:
            raise Unsupported(f"templax reads no GGUF tensors of type {number}", leaf=name)
        row = sizes[0] if sizes else 1
        if row % stored.elements:
            raise Corrupted(
                f"Expected rows of whole blocks of {stored.elements} elements of {stored.name},"
                f" got {row}",
                leaf=name,
            )
        nbytes = math.prod(sizes) // stored.elements * stored.nbytes
        return Tensor(name, sizes[::-1], stored, offset, offset + nbytes)


def _place_tensors(tensors: list[Tensor], begin: int, alignment: int, size: int) -> list[Tensor]:
    """The tensors, with their bytes in the file: the data begins at `begin`."""
    names = set[str]()
    end = begin
    for tensor in sorted(tensors, key=lambda t: (t.start, t.stop)):
        if tensor.name in names:
            raise Corrupted("Expected one tensor of a name, got two", leaf=tensor.name)
        names.add(tensor.name)
        if tensor.start % alignment:
            raise Corrupted(
                f"Expected a tensor at a multiple of {alignment}, got {tensor.start}",
                leaf=tensor.name,
            )
        start, stop = begin + tensor.start, begin + tensor.stop
        if start < end and start < stop:
            raise Corrupted(
                f"Expected tensors that do not overlap, got one at byte {start} before {end}",
                leaf=tensor.name,
            )
        if stop > size:
            raise Corrupted(
                f"Expected a file of at least {stop} bytes, got {size}", leaf=tensor.name
            )
        end = max(end, stop)
    return [t._replace(start=begin + t.start, stop=begin + t.stop) for t in tensors]
