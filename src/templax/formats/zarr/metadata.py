"""Metadata of one zarr array: `.zarray` or `zarr.json` → `Array`.

Reads zarr 2 (zarr-specs, docs/v2/v2.0) and zarr 3 (docs/v3/core, codecs/sharding-indexed) as
TensorStore and zarr-python write them, with the codecs that `_codecs.decode` has decoders for.
An array that says anything else about its chunks still has a shape and a dtype;
`Array.unsupported` then says why it can't be read.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import numpy as np

from ..._codecs.decode import COMPRESSIONS, find_swap
from ..._core.boxes import (
    MAX_NBYTES,
    MAX_RANK,
    Box,
    Shape,
    fits_address_space,
    format_shape,
    full_box,
)
from ..._core.dtypes import DTYPES, NUMPY_NAMES
from ..._core.json_text import decode_json
from ...errors import Corrupted, Unsupported
from .codecs import UNREADABLE, Named, Sharding, parse_codecs

MAX_FILE = 1 << 20
"""Most bytes of an array's metadata file; a larger one is not read."""


def array_prefix(name: str, *, files: bool = False) -> str:
    r"""The prefix of an array's keys.

    As in TensorStore, there is no second slash at the end, and no leading slash for an empty name.

    Args:
        name: Name of the leaf.
        files: Whether the keys are file names, in which TensorStore treats a backslash as a slash.

    >>> array_prefix("a"), array_prefix("a/"), array_prefix("/"), array_prefix("")
    ('a/', 'a/', '', '')
    >>> array_prefix("a\\", files=True)
    'a/'
    """
    if files:
        name = name.replace("\\", "/")
    if name in ("", "/"):
        return ""
    return name if name.endswith("/") else f"{name}/"


_SMALL_CHUNK = 64 << 20

# Type strings of the zarr 2 spec, such as `<f4`. One-byte types have no byte order: `|i1`.
_TYPESTRS = {np.dtype(name).str: np.dtype(name) for name in NUMPY_NAMES.split()}


def typestr(dtype: np.dtype) -> str:
    """How zarr 2 spells a dtype. Dtypes that numpy lacks are spelled by name, as TensorStore does.

    >>> typestr(np.dtype("float32")), typestr(DTYPES["float8_e5m2"])
    ('<f4', 'float8_e5m2')
    """
    return dtype.str if dtype.str in _TYPESTRS else dtype.name


@dataclass(frozen=True)
class Array:
    """The metadata of one array.

    Attributes:
        shape: In elements.
        dtype: In little-endian byte order.
        chunk_shape: Shape of a grid cell. Cells at the edge are stored at full size.
        key_prefix: First part of a chunk's key, before the indices: "c" or "".
        separator: Separates the parts of a chunk's key.
        codecs: Decoders in the order in which they are applied.
        order: Order of the elements in a chunk.
        fill: Fill value as the file spells it; None if absent chunks have no value.
        sharding: Set if each value is a shard; `codecs` is then empty.
        unsupported: Why templax can't read the values, such as a codec; None if it can.
        placed: Whether the keys of the chunks are known all the same.
    """

    shape: Shape
    dtype: np.dtype
    chunk_shape: Shape
    key_prefix: str
    separator: str
    codecs: tuple[str, ...]
    order: Literal["C", "F"] = "C"
    fill: Any = field(default=None, compare=False)
    sharding: Sharding | None = None
    unsupported: str | None = None
    placed: bool = True

    @functools.cached_property
    def grid(self) -> Shape:
        """Number of chunks along each dimension."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.chunk_shape, strict=True))

    @functools.cached_property
    def sole(self) -> tuple[str, Box, int] | None:
        """Key, box and decoded bytes of the only chunk; None if there are several.

        The key is relative to the array's name.
        """
        if any(n != 1 for n in self.grid):
            return None
        nbytes = math.prod(self.chunk_shape) * self.dtype.itemsize
        return self.key((0,) * len(self.shape)), full_box(self.chunk_shape), nbytes

    def key(self, cell: Shape) -> str:
        """Key of a chunk, relative to the array's name."""
        parts = [self.key_prefix] if self.key_prefix else []
        # A 0-d array has one chunk: `0` in zarr 2, `c` in zarr 3.
        parts += map(str, cell)
        return self.separator.join(parts) or "0"


class _Zarr2(msgspec.Struct):
    zarr_format: int
    shape: list[int]
    chunks: list[int]
    dtype: Any
    order: str
    compressor: dict[str, Any] | None = None
    fill_value: Any = None
    filters: list[Any] | None = None
    dimension_separator: Literal[".", "/"] = "."


_ZARR2_KEYS = [f'"{key}"'.encode() for key in _Zarr2.__struct_fields__]


class _Zarr3(msgspec.Struct):
    zarr_format: int
    node_type: str
    shape: list[int]
    data_type: Any
    chunk_grid: Named
    chunk_key_encoding: Named
    codecs: list[Named]
    fill_value: Any = None
    storage_transformers: list[Any] = []


class _Regular(msgspec.Struct):
    chunk_shape: list[int]


class _KeyEncoding(msgspec.Struct):
    separator: Literal[".", "/"] | None = None


def parse_metadata(data: bytes | memoryview, metadata: str) -> Array:
    """Parses the metadata of an array.

    Args:
        data: Content of `.zarray` (zarr 2) or `zarr.json` (zarr 3).
        metadata: Name of the file: one of these two.

    Raises:
        Corrupted: The JSON is invalid, or its numbers can't be an array's.
        Unsupported: A version or dtype that templax does not read; the error names it.
    """
    if len(data) > MAX_FILE:
        raise Corrupted(f"Expected at most {MAX_FILE} bytes in `{metadata}`, got {len(data)}")
    try:
        text = bytes(data)
        if metadata != ".zarray":  # the attributes in it may be NaN
            return _parse_zarr3(msgspec.convert(decode_json(text), _Zarr3))
        if b"\\" in text or any(text.count(k) > 1 for k in _ZARR2_KEYS):
            decode_json(text)  # refuses a key that occurs twice; slower than all the rest
        return _parse_zarr2(msgspec.json.decode(data, type=_Zarr2))
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Corrupted(f"`{metadata}` is unreadable: {error}") from error


def _parse_zarr2(meta: _Zarr2) -> Array:
    if meta.zarr_format != 2:
        raise Unsupported(f"templax reads zarr_format 2 in `.zarray`, got {meta.zarr_format}")
    text = str(meta.dtype)
    dtype = _TYPESTRS.get(text) or DTYPES.get(text) or _TYPESTRS.get(text.replace(">", "<", 1))
    if dtype is None:
        raise Unsupported(f"templax does not read dtype `{text[:80]}`")
    unsupported: list[str] = []
    if meta.order not in ("C", "F"):
        unsupported.append(f"templax reads arrays of order C and F, got `{meta.order[:80]}`")
    if meta.filters:
        unsupported.append(f"templax reads no zarr filters, got {_quote_codec(meta.filters[0])}")
    codecs: tuple[str, ...] = ()
    if meta.compressor is not None:
        name = meta.compressor.get("id")
        if isinstance(name, str) and name in COMPRESSIONS:
            codecs = (name,)
        else:
            unsupported.append(f"templax does not read codec {_quote_codec(meta.compressor)}")
    if text.startswith(">"):
        codecs += find_swap(dtype)
    return _validate(
        Array(
            tuple(meta.shape),
            dtype,
            _read_chunks(meta.chunks, meta.shape),
            "",
            meta.dimension_separator,
            (UNREADABLE,) if unsupported else codecs,
            "F" if meta.order == "F" and len(meta.shape) > 1 else "C",
            meta.fill_value,
            unsupported=next(iter(unsupported), None),
        )
    )


def _parse_zarr3(meta: _Zarr3) -> Array:
    if meta.zarr_format != 3 or meta.node_type != "array":
        raise Unsupported(
            f"templax reads arrays of zarr_format 3 in `zarr.json`, "
            f"got {meta.node_type[:80]} of {meta.zarr_format}"
        )
    dtype = DTYPES.get(str(meta.data_type))
    if dtype is None:
        raise Unsupported(f"templax does not read dtype `{str(meta.data_type)[:80]}`")
    grid_name, encoding_name = meta.chunk_grid.name, meta.chunk_key_encoding.name
    default = {"default": ("c", "/"), "v2": ("", ".")}.get(encoding_name)
    unplaced = None
    if meta.storage_transformers:
        unplaced = "templax reads no zarr storage transformers"
    elif grid_name != "regular":
        unplaced = f"templax does not read chunk grid `{grid_name[:80]}`"
    elif default is None:
        unplaced = f"templax does not read chunk key encoding `{encoding_name[:80]}`"
    if unplaced is not None or default is None:
        shape = tuple(meta.shape)
        chunk = tuple(max(n, 1) for n in shape)
        array = Array(shape, dtype, chunk, "", "/", (), unsupported=unplaced, placed=False)
        return _validate(array)
    grid = msgspec.convert(meta.chunk_grid.configuration, _Regular)
    encoding = msgspec.convert(meta.chunk_key_encoding.configuration, _KeyEncoding)
    unsupported: list[str] = []
    chunk_shape = _read_chunks(grid.chunk_shape, meta.shape)
    codecs, order, sharding = parse_codecs(meta.codecs, chunk_shape, dtype, unsupported)
    return _validate(
        Array(
            tuple(meta.shape),
            dtype,
            chunk_shape,
            default[0],
            encoding.separator or default[1],
            codecs,
            order,
            meta.fill_value,
            sharding,
            next(iter(unsupported), None),
        )
    )


def _read_chunks(chunks: Sequence[int], shape: Sequence[int]) -> Shape:
    """The shape of a chunk. zarr-python writes 0 along dimensions without elements."""
    if len(chunks) != len(shape):
        return tuple(chunks)
    return tuple(c or int(not n) for c, n in zip(chunks, shape, strict=True))


def _quote_codec(codec: Any) -> str:
    name = codec.get("id") if isinstance(codec, dict) else codec
    return f"`{str(name)[:80]}`"


def _validate(array: Array) -> Array:
    """Returns `array` if its numbers are possible.

    Raises:
        Corrupted: A shape or chunk that no array of addressable size has.
    """
    shape, chunk_shape = array.shape, array.chunk_shape
    if len(shape) > MAX_RANK:
        raise Corrupted(f"Expected at most {MAX_RANK} dimensions, got {len(shape)}")
    if any(not 0 <= n <= MAX_NBYTES for n in shape):
        raise Corrupted(f"Expected a shape of sizes in 0..2**63-1, got {format_shape(shape)}")
    if len(chunk_shape) != len(shape) or any(not 1 <= c <= MAX_NBYTES for c in chunk_shape):
        got = format_shape(chunk_shape)
        raise Corrupted(f"Expected chunks of {len(shape)} sizes of 1 or more, got {got}")
    if not fits_address_space(shape, array.dtype.itemsize):
        raise Corrupted(f"Expected an array of less than 2**63 bytes, got shape {shape}")
    nbytes = math.prod(shape) * array.dtype.itemsize
    chunk_nbytes = math.prod(chunk_shape) * array.dtype.itemsize
    if nbytes and chunk_nbytes > max(_SMALL_CHUNK, 4 * nbytes):
        raise Corrupted(f"Expected chunks in proportion to shape {shape}, got {chunk_shape}")
    return array
