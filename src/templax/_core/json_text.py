"""JSON text: of values that callers pass, and of files in which a key must not occur twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from .text import is_unicode

MAX_LEVELS = 256
"""Most levels of a value: Python's JSON module recurses, and fails at about 1,000 frames, of which
a program may have used most when it reads the value again."""

MAX_JSON = 1 << 26
"""Most bytes of a value's JSON text. The file that holds metadata and metrics of a checkpoint is
then far smaller than what a restore reads, `MAX_METADATA`."""

_MAX_INTEGER = 10**4299
"""Integers are below it: readers, Python's own included, take at most 4,300 digits and signs."""


def encode_json(value: Any, default: Callable[[Any], Any] | None = None) -> str:
    """JSON text from which every reader gets all that `value` says.

    NaN and infinities are written as Python writes and reads them.

    Args:
        value: Anything that `json.dumps` takes.
        default: See `json.dumps`.

    Raises:
        ValueError: Two keys of a dict are one in JSON, such as `1` and `"1"`; a string is not valid
            Unicode; an integer has 4,300 digits; or `value` has more than `MAX_LEVELS` levels or
            `MAX_JSON` bytes.
        TypeError, ValueError, RecursionError: See `json.dumps`.
    """
    text = json.dumps(value, default=default)
    _check_value(value, 0)
    if len(text) > MAX_JSON:  # ASCII, as Python writes it
        raise ValueError(f"it would take {len(text):,} bytes, more than {MAX_JSON:,}")
    return text


def _check_value(value: Any, depth: int) -> None:
    if isinstance(value, str):
        if not is_unicode(value):
            raise ValueError(f"the string {value[:80]!r} is not valid Unicode")
    elif isinstance(value, int):
        if abs(value) >= _MAX_INTEGER:
            raise ValueError("it has an integer of 4,300 digits")
    elif isinstance(value, (dict, list, tuple)):
        if depth == MAX_LEVELS:
            raise ValueError(f"it has more than {MAX_LEVELS} levels")
        if isinstance(value, dict):
            _check_keys(value)
        for inner in value.values() if isinstance(value, dict) else value:
            _check_value(inner, depth + 1)


def _check_keys(value: dict[Any, Any]) -> None:
    keys: dict[str, Any] = {}
    for key in value:
        name = key if isinstance(key, str) else json.dumps(key)
        if name in keys:
            raise ValueError(f"the keys {keys[name]!r} and {key!r} are one in JSON")
        if not is_unicode(name):
            raise ValueError(f"the key {name[:80]!r} is not valid Unicode")
        keys[name] = key


def decode_json(text: bytes | memoryview) -> Any:
    """The value of JSON text. As Python does, it takes `NaN` and `Infinity` as numbers.

    Raises:
        ValueError: It is not JSON, or an object has a key twice: one of its values would be lost.
        RecursionError: It is nested too deep.

    >>> decode_json(b'{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ValueError: the key 'a' occurs twice
    """
    return json.loads(bytes(text), object_pairs_hook=_make_object)


def check_repeated_keys(text: bytes | memoryview, counts: Mapping[str, int]) -> None:
    """Checks that no object has a key twice, without decoding a large text again if it is sound.

    Args:
        text: JSON text that has been decoded without an error.
        counts: How often each key must occur in it. If it does, no object has one of these twice,
            nor an object that has to contain them.

    Raises:
        ValueError: A key occurs twice.
    """
    data = bytes(text)
    if b"\\u" in data or any(_count_key(data, key.encode()) != n for key, n in counts.items()):
        decode_json(data)


def _count_key(data: bytes, key: bytes) -> int:
    """How often a key occurs in JSON text as writers lay it out; a value of that name is none."""
    return data.count(b'"%s":' % key) + data.count(b'"%s" :' % key)


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (repeated, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {repeated[:80]!r} occurs twice")
    return found
