"""JAX. Orbax's `msgpack_utils`: trees as msgpack, as Flax writes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import jax
import msgspec
import numpy as np

import templax as tx

from ..._core.arguments import PyTree
from ..._core.dtypes import DTYPES
from ...formats.flax.msgpack import CHUNKED
from .unmapped import make_getattr

__all__ = ["MAX_CHUNK_SIZE", "msgpack_restore", "msgpack_serialize"]

MAX_CHUNK_SIZE = 2**30
"""Bytes of an array above which it is cut, as a value of msgpack has at most 2**32 - 1."""

_ARRAY, _COMPLEX, _NUMBER, _TUPLE = 1, 2, 3, 4
"""The extensions of Flax."""


def msgpack_serialize(pytree: PyTree, in_place: bool = False) -> bytes:
    """Encodes a tree of dicts, lists, tuples, arrays, numbers, strings and None as msgpack.

    Args:
        pytree: The tree.
        in_place: No effect: the tree is never changed.

    Raises:
        UsageError: A value is of another type.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> data = ocp.msgpack_utils.msgpack_serialize({"a": (1, 2.5)})
        >>> ocp.msgpack_utils.msgpack_restore(data)
        {'a': (1, 2.5)}
    """
    return msgspec.msgpack.encode(_encode(pytree))


def _encode(value: Any) -> Any:
    kind = type(value)
    if kind in (str, bytes, int, float, bool, type(None)):
        return value
    if isinstance(value, Mapping):
        return {key: _encode(each) for key, each in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, tuple):
        inner = msgspec.msgpack.encode([_encode(each) for each in cast("tuple[Any, ...]", value)])
        return msgspec.msgpack.Ext(_TUPLE, inner)
    if kind is list:
        return [_encode(each) for each in value]
    if isinstance(value, np.generic):
        return msgspec.msgpack.Ext(_NUMBER, _encode_array(np.asarray(value)))
    if isinstance(value, complex):
        return msgspec.msgpack.Ext(_COMPLEX, msgspec.msgpack.encode((value.real, value.imag)))
    if isinstance(value, (np.ndarray, jax.Array)):
        return _cut_array(np.asarray(value))
    raise tx.UsageError(f"Expected arrays, numbers, strings and containers, got {value!r}")


def _encode_array(array: np.ndarray) -> bytes:
    if array.dtype.name not in DTYPES:
        raise tx.UsageError(f"Expected an array of numbers, got one of {array.dtype}")
    return msgspec.msgpack.encode((array.shape, array.dtype.name, array.tobytes()))


def _cut_array(array: np.ndarray) -> Any:
    if array.nbytes <= MAX_CHUNK_SIZE:
        return msgspec.msgpack.Ext(_ARRAY, _encode_array(array))
    flat, length = array.reshape(-1), max(1, MAX_CHUNK_SIZE // array.itemsize)
    parts = [flat[at : at + length] for at in range(0, flat.size, length)]
    return {
        CHUNKED: True,
        "shape": {str(axis): n for axis, n in enumerate(array.shape)},
        "chunks": {
            str(number): msgspec.msgpack.Ext(_ARRAY, _encode_array(part))
            for number, part in enumerate(parts)
        },
    }


def msgpack_restore(encoded_pytree: bytes) -> PyTree:
    """Decodes a tree that `msgpack_serialize`, Orbax or Flax encoded.

    Raises:
        UsageError: The bytes are not such a tree.
    """
    try:
        return _join_arrays(msgspec.msgpack.decode(encoded_pytree, ext_hook=_decode))
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
        raise tx.UsageError(f"Expected a tree that Flax or Orbax encoded: {error}") from error


def _decode(code: int, data: memoryview) -> Any:
    if code == _TUPLE:
        return tuple(msgspec.msgpack.decode(data, type=list[Any], ext_hook=_decode))
    if code == _COMPLEX:
        return complex(*msgspec.msgpack.decode(data, type=tuple[float, float]))
    if code in (_ARRAY, _NUMBER):
        kind = tuple[list[int], str, bytes]
        shape, name, values = msgspec.msgpack.decode(data, type=kind, strict=False)
        array = np.frombuffer(values, DTYPES[name]).reshape(shape)
        return array if code == _ARRAY else array[()]
    raise ValueError(f"an extension of code {code}")


def _join_arrays(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    node = cast("dict[Any, Any]", tree)
    if CHUNKED not in node:
        return {key: _join_arrays(value) for key, value in node.items()}
    shape, chunks = (
        [node[what][str(i)] for i in range(len(node[what]))] for what in ("shape", "chunks")
    )
    whole = np.concatenate(chunks)
    if whole.size != math.prod(shape):
        raise ValueError(f"an array of shape {tuple(shape)} in {whole.size} elements")
    return whole.reshape(shape)


__getattr__ = make_getattr("msgpack_utils.")
