"""What an item of Orbax says of its leaves besides their values."""

from __future__ import annotations

import binascii
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from ...errors import CheckpointError, Corrupted
from ...storage.signatures import read_metadata
from ...storage.source import Source

_SHARDING = "_sharding"

_ARRAY_METADATAS = "array_metadatas/"

_T = TypeVar("_T")


class _ArrayMetadata(msgspec.Struct):
    param_name: str
    ext_metadata: dict[str, Any] | None = None


class _Listed(msgspec.Struct):
    array_metadata: _ArrayMetadata


class _ArrayMetadatas(msgspec.Struct):
    array_metadatas: list[_Listed]


@dataclass(frozen=True, slots=True)
class Notes:
    """What an item may say of its leaves besides their arrays; by name."""

    shardings: Mapping[str, str]
    key_impls: Mapping[str, str]


def read_notes(source: Source, present: set[str]) -> Notes:
    """Sharding and PRNG implementation of leaves. Damage is never fatal: values don't need them."""
    shardings: dict[str, str] = {}
    impls: dict[str, str] = {}
    if _SHARDING in present:
        for name, text in _quietly(source, _SHARDING, dict[str, Any], {}).items():
            try:
                shardings[binascii.a2b_base64(name, strict_mode=True).decode()] = sharding_text(
                    text
                )
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
    if _ARRAY_METADATAS in present:
        for info in source.children(_ARRAY_METADATAS):
            if not info.is_dir:
                found = _quietly(source, info.key, _ArrayMetadatas, _ArrayMetadatas([]))
                for listed in found.array_metadatas:
                    array = listed.array_metadata
                    impl = (array.ext_metadata or {}).get("random_key_impl")
                    if isinstance(impl, str):
                        impls[array.param_name] = impl
    return Notes(shardings, impls)


@functools.lru_cache(maxsize=256)  # most leaves of a checkpoint share a few
def sharding_text(text: str) -> str:
    """A sharding as Orbax serialises it, as a person writes it.

    Raises:
        ValueError, KeyError, TypeError: It is none.
    """
    saved = json.loads(text)
    kind = saved["sharding_type"]
    if kind == "SingleDeviceSharding":
        return f"single device {saved['device_str']}"
    if kind != "NamedSharding":
        return str(kind)
    spec = ", ".join(_axes_text(entry) for entry in saved["partition_spec"])
    axes = zip(saved["axis_names"], saved["shape"], strict=True)
    return f"P({spec}) over {', '.join(f'{name}={size}' for name, size in axes)}"


def _axes_text(entry: Any) -> str:
    return repr(tuple(entry) if isinstance(entry, list) else entry)


def _quietly(source: Source, file: str, type: type[_T], otherwise: _T) -> _T:
    try:
        return read_json(source, file, type)
    except CheckpointError:
        return otherwise


def read_json(source: Source, file: str, type: type[_T]) -> _T:
    """A JSON file, decoded as `type`."""
    data = read_metadata(source, file)
    try:
        try:
            return msgspec.json.decode(data, type=type)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            # Python writes `NaN`, which is no JSON: custom metadata may hold one.
            return msgspec.convert(json.loads(bytes(data)), type)
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise Corrupted(f"The JSON is unreadable: {error}", file=file) from error
