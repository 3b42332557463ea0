"""How the chunks of an array are encoded: the list of codecs in `zarr.json` → decoders.

Codecs are those of zarr 3 (zarr-specs, docs/v3/codecs), and those of numcodecs that zarr-python
calls `numcodecs.<name>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np

from ..._codecs.decode import CODECS, COMPRESSIONS, find_swap
from ..._core.boxes import Shape, format_shape
from ...errors import Corrupted

_MAX_NESTING = 4

_MAX_CODECS = 8

UNREADABLE = "unreadable"
"""Stands for the codecs of an array that templax can't decode. There is no decoder of that name."""


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


class Named(msgspec.Struct):
    """A codec, chunk grid or other option by its name."""

    name: str
    configuration: dict[str, Any] = {}


class _Transpose(msgspec.Struct):
    order: list[int] | Literal["C", "F"]


class _Sharded(msgspec.Struct):
    chunk_shape: list[int]
    codecs: list[Named]
    index_codecs: list[Named]
    index_location: Literal["start", "end"] = "end"


_Parsed = tuple[tuple[str, ...], Literal["C", "F"], Sharding | None]
"""The decoders of a chunk, the order of its elements, and its sharding if it is a shard."""

_UNREADABLE: _Parsed = (UNREADABLE,), "C", None


def parse_codecs(
    listed: list[Named],
    chunk_shape: Shape,
    dtype: np.dtype,
    unsupported: list[str],
    nesting: int = _MAX_NESTING,
) -> _Parsed:
    """How to decode a chunk.

    Args:
        listed: Its encoders, in the order in which they were applied.
        chunk_shape: Shape of the chunk.
        dtype: Of its elements.
        unsupported: What templax can't decode is added here.
        nesting: How many levels of shards it may have.

    Raises:
        Corrupted: The codecs contradict themselves.
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
        return _parse_sharding(first, chunk_shape, dtype, unsupported, nesting)
    decoders = tuple(codec.name.removeprefix("numcodecs.") for codec in reversed(rest))
    problem = _find_bytes_problem(first, dtype) or _find_decoder_problem(decoders)
    if order is None:
        problem = problem or "templax reads transposed chunks whose axes are in reverse order"
    if problem is not None or order is None:
        unsupported.append(str(problem))
        return _UNREADABLE
    big = first.configuration.get("endian") == "big"
    return decoders + (find_swap(dtype) if big else ()), order, None


def _parse_transposes(codecs: list[Named], rank: int) -> Literal["C", "F"] | None:
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


def _find_bytes_problem(codec: Named, dtype: np.dtype) -> str | None:
    """Why templax can't reverse the codec that makes bytes of an array; None if it can."""
    if codec.name != "bytes":
        return f"templax does not read codec `{codec.name[:80]}`"
    endian = codec.configuration.get("endian", "little")
    if endian not in ("little", "big") and dtype.itemsize > 1:
        return f"templax does not read codec `bytes` with {str(endian)[:80]!r}"
    return None


def _parse_sharding(
    codec: Named, shard: Shape, dtype: np.dtype, unsupported: list[str], nesting: int
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
    codecs, order, inner = parse_codecs(meta.codecs, inner_shape, dtype, unsupported, nesting - 1)
    at_end = meta.index_location == "end"
    return (), "C", Sharding(inner_shape, codecs, order, inner, at_end, len(names) == 2)
