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

from ..._codecs.decode import CODECS, COMPRESSIONS, SWAPS
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

FILES = (".zarray", "zarr.json")

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


_MAX_NESTING = 4

_MAX_CODECS = 8

UNREADABLE = "unreadable"
"""Stands for the codecs of an array that templax can't decode. There is no decoder of that name."""

_SMALL_CHUNK = 64 << 20

# Type strings of the zarr 2 spec, such as `<f4`. One-byte types have no byte order: `|i1`.
_TYPESTRS = {np.dtype(name).str: np.dtype(name) for name in NUMPY_NAMES.split()}


def typestr(dtype: np.dtype) -> str:
    """How zarr 2 spells a dtype. Dtypes that numpy lacks are spelled by name, as TensorStore does.

    >>> typestr(np.dtype("float32")), typestr(DTYPES["float8_e5m2"])
    ('<f4', 'float8_e5m2')
    """
    return dtype.str if dtype.str in _TYPESTRS else dtype.name


@dataclass(frozen=True, slots=True)
class Sharding:
    """How values are divided if each is a shard: inner chunks and an index of them.

    Attributes:
        chunk_shape: Shape of an inner chunk.
        codecs: Decoders of an inner chunk.
        order: Order of the elements in an inner chunk.
        sharding: Set if the inner chunks are shards themselves.
        index_at_end: Whether the index is at the end of the shard, not at its start.
        checked: Whether a crc32c follows the index.
    """

    chunk_shape: Shape
    codecs: tuple[str, ...]
    order: Literal["C", "F"]
    sharding: Sharding | None
    index_at_end: bool
    checked: bool


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


class _Named(msgspec.Struct):
    name: str
    configuration: dict[str, Any] = {}


class _Zarr3(msgspec.Struct):
    zarr_format: int
    node_type: str
    shape: list[int]
    data_type: Any
    chunk_grid: _Named
    chunk_key_encoding: _Named
    codecs: list[_Named]
    fill_value: Any = None
    storage_transformers: list[Any] = []


class _Transpose(msgspec.Struct):
    order: list[int] | Literal["C", "F"]


class _Regular(msgspec.Struct):
    chunk_shape: list[int]


class _Sharded(msgspec.Struct):
    chunk_shape: list[int]
    codecs: list[_Named]
    index_codecs: list[_Named]
    index_location: Literal["start", "end"] = "end"


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
        if metadata != ".zarray" or b"\\" in text or any(text.count(k) > 1 for k in _ZARR2_KEYS):
            decode_json(text)  # refuses a key that occurs twice; slower than all the rest
        if metadata == ".zarray":
            return _parse_zarr2(msgspec.json.decode(data, type=_Zarr2))
        return _parse_zarr3(msgspec.json.decode(data, type=_Zarr3))
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
        codecs += _find_swap(dtype)
    return _validate(
        Array(
            tuple(meta.shape),
            dtype,
            tuple(meta.chunks),
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
    codecs, order, sharding = _parse_codecs(
        meta.codecs, tuple(grid.chunk_shape), dtype, _MAX_NESTING, unsupported
    )
    return _validate(
        Array(
            tuple(meta.shape),
            dtype,
            tuple(grid.chunk_shape),
            default[0],
            encoding.separator or default[1],
            codecs,
            order,
            meta.fill_value,
            sharding,
            next(iter(unsupported), None),
        )
    )


_Parsed = tuple[tuple[str, ...], Literal["C", "F"], Sharding | None]
"""The decoders of a chunk, the order of its elements, and its sharding if it is a shard."""

_UNREADABLE: _Parsed = (UNREADABLE,), "C", None


def _parse_codecs(
    listed: list[_Named],
    chunk_shape: Shape,
    dtype: np.dtype,
    nesting: int,
    unsupported: list[str],
) -> _Parsed:
    """How to decode a chunk.

    Args:
        listed: Its encoders, in the order in which they were applied.
        unsupported: What templax can't decode is added here.
    """
    n = next((i for i, codec in enumerate(listed) if codec.name != "transpose"), len(listed))
    order = _parse_transposes(listed[:n], len(chunk_shape))
    if n == len(listed):
        raise Corrupted("Expected a codec that makes bytes of an array, got none")
    first, *rest = listed[n:]
    if first.name == "sharding_indexed":
        if rest or n:
            name = listed[0].name if n else rest[0].name
            unsupported.append(f"templax does not read codec `{name[:80]}` around shards")
            return _UNREADABLE
        if not nesting:
            unsupported.append(
                f"templax reads shards in shards {_MAX_NESTING} deep, got deeper ones"
            )
            return _UNREADABLE
        return _parse_sharding(first, chunk_shape, dtype, nesting, unsupported)
    decoders = tuple(codec.name.removeprefix("numcodecs.") for codec in reversed(rest))
    problem = _find_bytes_problem(first, dtype) or _find_decoder_problem(decoders)
    if order is None:
        problem = problem or "templax reads transposed chunks whose axes are in reverse order"
    if problem is not None or order is None:
        unsupported.append(str(problem))
        return _UNREADABLE
    big = first.configuration.get("endian") == "big"
    return decoders + (_find_swap(dtype) if big else ()), order, None


def _parse_transposes(codecs: list[_Named], rank: int) -> Literal["C", "F"] | None:
    """The order of the elements in a chunk that was transposed; None if it is another one."""
    axes = list(range(rank))
    for codec in codecs[:_MAX_CODECS]:
        order = msgspec.convert(codec.configuration, _Transpose).order
        if isinstance(order, str):
            order = list(range(rank)) if order == "C" else list(range(rank))[::-1]
        if sorted(order) != list(range(rank)):
            raise Corrupted(f"Expected a permutation of {rank} axes, got {str(order)[:80]}")
        axes = [axes[i] for i in order]
    if axes == list(range(rank)):
        return "C"
    return "F" if axes == list(range(rank))[::-1] else None


def _find_swap(dtype: np.dtype) -> tuple[str, ...]:
    """The decoders of big-endian elements: none for those of one byte."""
    width = dtype.itemsize // (2 if dtype.kind == "c" else 1)
    return tuple(name for name in SWAPS if name.endswith(f"-{width}"))


def _find_decoder_problem(decoders: Sequence[str]) -> str | None:
    """Why templax can't apply these decoders; None if it can."""
    unknown = [name for name in decoders if name not in CODECS]
    if unknown:
        return f"templax does not read codec `{unknown[-1][:80]}`"
    compressions = [name for name in decoders if name in COMPRESSIONS]
    if len(compressions) > 1:
        names = ", ".join(f"`{name}`" for name in dict.fromkeys(compressions))
        return f"templax reads chunks compressed once, got several codecs {names}"
    if len(decoders) > _MAX_CODECS:
        return f"templax reads chunks of {_MAX_CODECS} codecs at most, got {len(decoders)}"
    return None


def _find_bytes_problem(codec: _Named, dtype: np.dtype) -> str | None:
    """Why templax can't reverse the codec that makes bytes of an array; None if it can."""
    if codec.name != "bytes":
        return f"templax does not read codec `{codec.name[:80]}`"
    endian = codec.configuration.get("endian", "little")
    if endian not in ("little", "big") and dtype.itemsize > 1:
        return f"templax does not read codec `bytes` with {str(endian)[:80]!r}"
    return None


def _parse_sharding(
    codec: _Named, shard: Shape, dtype: np.dtype, nesting: int, unsupported: list[str]
) -> _Parsed:
    meta = msgspec.convert(codec.configuration, _Sharded)
    inner_shape = tuple(meta.chunk_shape)
    if len(inner_shape) != len(shard) or any(c < 1 for c in inner_shape):
        got = format_shape(inner_shape)
        raise Corrupted(f"Expected inner chunks of {len(shard)} dimensions, got {got}")
    if any(s % c for s, c in zip(shard, inner_shape, strict=True)):
        got = format_shape(inner_shape)
        raise Corrupted(
            f"Expected inner chunks that divide shards {format_shape(shard)}, got {got}"
        )
    names = [c.name for c in meta.index_codecs]
    if names not in (["bytes"], ["bytes", "crc32c"]):
        problem = (
            f"templax does not read shard indexes with codecs {[name[:80] for name in names[:8]]}"
        )
    else:
        problem = _find_bytes_problem(meta.index_codecs[0], np.dtype(np.uint64))
        if meta.index_codecs[0].configuration.get("endian") == "big":
            problem = "templax does not read big-endian shard indexes"
    if problem is not None:
        unsupported.append(problem)
        return _UNREADABLE
    codecs, order, inner = _parse_codecs(meta.codecs, inner_shape, dtype, nesting - 1, unsupported)
    at_end = meta.index_location == "end"
    return (), "C", Sharding(inner_shape, codecs, order, inner, at_end, len(names) == 2)


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
