"""Small files beside the arrays of an item: shardings and PRNG implementations of leaves."""

from __future__ import annotations

import binascii
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import msgspec

from ..._core.json_text import check_repeated_keys, decode_json
from ...errors import CheckpointError, Corrupted
from ...storage.signatures import read_metadata
from ...storage.source import Source

SHARDING = "_sharding"

ARRAY_METADATAS = "array_metadatas/"

_MAX_TEXT = 500

_STANDARD = str.maketrans("-_", "+/")
"""Turns URL-safe base64 into standard base64: the keys of `_sharding` are in either."""

_T = TypeVar("_T")


class _ArrayMetadata(msgspec.Struct):
    param_name: str
    write_shape: Any = None
    ext_metadata: dict[str, Any] | None = None


class _Listed(msgspec.Struct):
    array_metadata: _ArrayMetadata


class _ArrayMetadatas(msgspec.Struct):
    array_metadatas: list[_Listed]


class Sidecars(msgspec.Struct, frozen=True):
    """Facts about leaves from files beside their arrays.

    Attributes:
        shardings: Leaf name → sharding, as text for a person.
        key_impls: Leaf name → PRNG implementation of a typed key.
    """

    shardings: Mapping[str, str]
    key_impls: Mapping[str, str]


def read_sidecars(source: Source, present: set[str]) -> Sidecars:
    """Reads the sidecar files of an item. Damaged ones are ignored: no value depends on them.

    Args:
        source: The item directory.
        present: Names of its children; directories end in `/`.
    """
    shardings: dict[str, str] = {}
    impls: dict[str, str] = {}
    if SHARDING in present:
        for leaf, text in iter_sharding_texts(source):
            try:
                shardings[leaf] = sharding_text(text)
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
    if ARRAY_METADATAS in present:
        for array in _iter_array_metadatas(source):
            impl = (array.ext_metadata or {}).get("random_key_impl")
            if isinstance(impl, str):
                impls[array.param_name] = impl
    return Sidecars(shardings, impls)


def iter_sharding_texts(source: Source) -> Iterator[tuple[str, str]]:
    """Yields the name of each leaf in the file `_sharding`, and its sharding as Orbax writes it.

    A damaged file has none, and the names that can't be decoded are left out.

    Args:
        source: The item directory.
    """
    for name, text in _read_json_or(source, SHARDING, dict[str, Any], {}).items():
        with suppress(ValueError, TypeError):
            encoded = name.translate(_STANDARD) if "-" in name or "_" in name else name
            yield binascii.a2b_base64(encoded, strict_mode=True).decode(), text


def read_write_shapes(source: Source) -> dict[str, tuple[int, ...]]:
    """Leaf name → the shape of the parts that a process wrote, where Orbax has noted it.

    Args:
        source: The item directory.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for array in _iter_array_metadatas(source):
        if isinstance(array.write_shape, list):
            shapes[array.param_name] = tuple(array.write_shape)
    return shapes


def _iter_array_metadatas(source: Source) -> Iterator[_ArrayMetadata]:
    for info in source.children(ARRAY_METADATAS):
        if not info.is_dir:
            found = _read_json_or(source, info.key, _ArrayMetadatas, _ArrayMetadatas([]))
            yield from [listed.array_metadata for listed in found.array_metadatas]


@functools.lru_cache(maxsize=256)  # the leaves of a checkpoint share a few
def sharding_text(text: str) -> str:
    """A short description, such as `P('x', None) over x=8`, of a sharding that Orbax serialised.

    Any number of leaves may share one, so a long one is truncated.

    Raises:
        ValueError, KeyError, TypeError: The text is not a serialised sharding.
    """
    described = _describe_sharding(json.loads(text))
    return described if len(described) <= _MAX_TEXT else f"{described[: _MAX_TEXT - 3]}..."


def _describe_sharding(saved: Any) -> str:
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


def _read_json_or(source: Source, file: str, type: type[_T], otherwise: _T) -> _T:
    try:
        return read_json(source, file, type, lambda _: {})
    except CheckpointError:
        return otherwise


def read_json(
    source: Source,
    file: str,
    type: type[_T],
    count_keys: Callable[[_T], Mapping[str, int]] | None = None,
) -> _T:
    """Reads a JSON file as `type`.

    Args:
        source: Where it is.
        file: Its path.
        type: What it has to contain.
        count_keys: For large files, a function from the content to the `counts` of
            `check_repeated_keys`. If they are empty, only files with Unicode escapes are checked.

    Raises:
        NotFound: It does not exist.
        Corrupted: It is not JSON, is not of that type, or has an object that repeats a key.
    """
    data = read_metadata(source, file)
    try:
        try:
            found = msgspec.json.decode(data, type=type)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            # Custom metadata may contain `NaN`, which Python writes although it is not JSON. Python
            # also writes lone surrogates, which can't be encoded.
            value = decode_json(data)
            json.dumps(value, ensure_ascii=False).encode()
            return msgspec.convert(value, type)
        if count_keys is None:
            decode_json(data)
        else:
            check_repeated_keys(data, count_keys(found))
        return found
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise Corrupted(f"The JSON is unreadable: {error}", file=file) from error
