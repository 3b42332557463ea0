"""Mutations that keep the structure of a document: JSON, msgpack, several documents in one input.

The mutations of an engine change bytes, and most of their results are no longer JSON. These change
one to three values of a document and encode it again.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import msgspec

Mutator = Callable[[bytes, random.Random], bytes]

NUMBERS = (
    0, 1, 2, 3, 7, 31, 32, 33, 127, 128, 255, 256, 257, 4095, 4096, 65535, 65536, 1 << 20, 1 << 23,
    (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, 1 << 53, 1 << 60, 1 << 62,
    (1 << 63) - 1, 1 << 63, (1 << 64) - 2, (1 << 64) - 1, -1, -2, -(1 << 31), -(1 << 63),
)  # fmt: skip

FLOATS = (0.0, -0.0, 0.5, 1e300, -1e-300, float("nan"), float("inf"), float("-inf"))

STRINGS = (
    "", ".", "..", "/", "//", "a/", "../x", "a/../../x", "\\", "C:", "0", "00", "-1", "1e9", "c/0",
    "a.b", "a..b", " ", "\0", "\n", "\r", "\x0b", "\x1b[31mred", "\x85", "\u2028", "\u202e", "\x7f",
    "é", "漢", "\U0001f600", "error: all is lost", "UNCOMMITTED: no", "a\nerror: forged", "NaN",
    "Infinity", "0xff", "0x", "<f4", ">f4", "|O", "V8", "object", "float32", "bfloat16", "int4",
    "uint8", "bool", "complex64", "zstd", "gzip", "bytes", "crc32c", "sharding_indexed",
    "transpose", "F", "C", "default", "v2", "regular", "None", "Dict", "scalar", "string", "key",
    "skip", "PLACEHOLDER://a", "threefry2x32", "*", "[", "{x}", "%s", "a" * 300, "." * 300,
)  # fmt: skip

MAX_BYTES = 1 << 20
"""Maximum length of a mutation's output."""


def mutate_tree(tree: Any, rng: random.Random) -> Any:
    """A copy of a document with one to three values changed."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = _list_places(tree)
        parent, key = rng.choice(places)
        if parent is None:
            tree = _change(tree, tree, rng, places)
        elif isinstance(parent, dict):
            _change_entry(parent, key, tree, rng, places)
        else:
            _change_item(parent, key, tree, rng, places)
    return tree


def _list_places(tree: Any) -> list[tuple[Any, Any]]:
    """Where each value is: the dict or list that holds it, and its key there."""
    places: list[tuple[Any, Any]] = [(None, None)]
    pending = [tree] if isinstance(tree, (dict, list)) else []
    while pending and len(places) < 5000:
        node = pending.pop()
        found = node.items() if isinstance(node, dict) else enumerate(node)
        for key, child in found:
            places.append((node, key))
            if isinstance(child, (dict, list)):
                pending.append(child)
    return places


def _change_entry(parent: dict, key: Any, tree: Any, rng: random.Random, places: Any) -> None:
    what = rng.random()
    if what < 0.12:
        del parent[key]
    elif what < 0.24:
        parent[_pick_key(rng, places)] = parent.pop(key)
    elif what < 0.32:
        parent[_pick_key(rng, places)] = _copy(parent[key])
    else:
        parent[key] = _change(parent[key], tree, rng, places)


def _change_item(parent: list, at: int, tree: Any, rng: random.Random, places: Any) -> None:
    what = rng.random()
    if what < 0.1:
        del parent[at]
    elif what < 0.25:
        parent[at:at] = [_copy(parent[at]) for _ in range(rng.choice((1, 1, 2, 40)))]
    elif what < 0.32:
        other = rng.randrange(len(parent))
        parent[at], parent[other] = parent[other], parent[at]
    else:
        parent[at] = _change(parent[at], tree, rng, places)


def _change(value: Any, tree: Any, rng: random.Random, places: Any) -> Any:
    what = rng.random()
    if what < 0.15:  # a value from elsewhere in the document
        parent, key = rng.choice(places)
        try:
            return _copy(tree if parent is None else parent[key])
        except (KeyError, IndexError):
            return value
    if what < 0.25:
        return _pick_value(rng)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        if rng.random() < 0.5:
            return value + rng.choice((-1, 1, -8, 8, value, -2 * value))
        return rng.choice(NUMBERS)
    if isinstance(value, float):
        return rng.choice(FLOATS)
    if isinstance(value, str):
        return mutate_text(value, rng)
    if isinstance(value, bytes):
        return mutate_bytes(value, rng)
    if isinstance(value, msgspec.msgpack.Ext):
        code = rng.choice((value.code, value.code, value.code, 1, 2, 3, -1))
        return msgspec.msgpack.Ext(code, mutate_msgpack(bytes(value.data), rng))
    if isinstance(value, list) and rng.random() < 0.5:
        return value * rng.choice((0, 2, 2, 33)) if len(value) < 1000 else []
    if rng.random() < 0.2:  # nested deeper
        for _ in range(rng.choice((1, 2, 40, 300))):
            value = [value] if rng.random() < 0.5 else {"a": value}
        return value
    return _pick_value(rng)


def _pick_value(rng: random.Random) -> Any:
    kind = rng.randrange(7)
    if kind == 0:
        return rng.choice(FLOATS)
    if kind in (1, 2):
        return rng.choice(NUMBERS)
    if kind in (3, 4):
        return rng.choice(STRINGS)
    return rng.choice((None, True, False, [], {}, [0], {"": 0}))


def _pick_key(rng: random.Random, places: Any) -> Any:
    if rng.random() < 0.5:
        key = rng.choice(places)[1]
        if isinstance(key, str):
            return key
    return rng.choice(STRINGS)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_copy(child) for child in value]
    return value


def mutate_text(text: str, rng: random.Random) -> str:
    """A text with a part changed, or another one."""
    if rng.random() < 0.4:
        return rng.choice(STRINGS)
    at = rng.randrange(len(text) + 1)
    piece = rng.choice(STRINGS) if rng.random() < 0.6 else chr(rng.choice((0, 27, 46, 47, 48, 97)))
    return text[:at] + piece + text[at + rng.randrange(3) :]


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bytes with one place changed: a bit, a number, or a range that is lost, doubled or moved."""
    if not data:
        return bytes([rng.randrange(256)])
    at = rng.randrange(len(data))
    what = rng.randrange(7)
    if what == 0:
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if what == 1:
        return data[:at] + bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFF))]) + data[at + 1 :]
    if what == 2:
        width = rng.choice((2, 4, 8))
        number = (rng.choice(NUMBERS) % (1 << 8 * width)).to_bytes(width, "little")
        return data[:at] + number + data[at + width :]
    stop = min(len(data), at + rng.choice((1, 2, 4, 8, 64)))
    if what == 3:
        return data[:at] + data[stop:]
    if what == 4:
        return data[:stop] + data[at:]
    if what == 5:
        to = rng.randrange(len(data))
        return data[:to] + data[at:stop] + data[to:]
    return data[:at]


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Several JSON documents, joined by NUL, with one of them changed."""
    parts = data.split(b"\0")
    at = rng.randrange(len(parts))
    try:
        tree = mutate_tree(json.loads(parts[at]), rng)
        text = json.dumps(tree, ensure_ascii=rng.random() < 0.5, separators=(",", ":"))
        parts[at] = text.encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        parts[at] = mutate_bytes(parts[at], rng)
    return b"\0".join(parts)[:MAX_BYTES]


def mutate_msgpack(data: bytes, rng: random.Random) -> bytes:
    """A msgpack document with some values changed. In an extension, the content is changed."""
    try:
        return msgspec.msgpack.encode(mutate_tree(msgspec.msgpack.decode(data), rng))[:MAX_BYTES]
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError):
        return mutate_bytes(data, rng)
