"""Encodes values that callers pass as JSON, and decodes JSON files, which must not repeat a key."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from .text import is_unicode

MAX_LEVELS = 256
"""Maximum nesting depth of a value. Python's `json` recurses and fails at about 1,000 frames, and
the program that reads the value may already have used most of them."""

_MAX_FILE_LEVELS = MAX_LEVELS + 4
"""Maximum nesting depth of a file, which has such values a few levels down."""

MAX_JSON = 1 << 26
"""Maximum size of a value's JSON text, in bytes. It keeps the file with a checkpoint's metadata and
metrics far below `MAX_METADATA`, the most that a restore reads."""

_MAX_INTEGER = 10**4299
"""Integers must be smaller: Python parses at most 4,300 digits, and a reader may count the sign."""


def encode_json(value: Any, default: Callable[[Any], Any] | None = None) -> str:
    """Encodes `value` as JSON text that loses nothing.

    NaN and infinities are written as Python writes and reads them.

    Args:
        value: Anything that `json.dumps` takes.
        default: See `json.dumps`.

    Raises:
        ValueError: Two keys of a dict are the same in JSON, such as `1` and `"1"`; a string is not
            valid Unicode; an integer has 4,300 or more digits; or `value` has more than
            `MAX_LEVELS` levels or `MAX_JSON` bytes.
        TypeError, ValueError, RecursionError: See `json.dumps`.
    """
    text = json.dumps(value, default=default)
    _check_value(value, 0)
    if len(text) > MAX_JSON:  # `json.dumps` writes ASCII: one byte per character
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
    """Decodes JSON text. Like Python's `json`, it accepts `NaN` and `Infinity`.

    Raises:
        ValueError: It is not JSON, an object repeats a key, so that one of the values would be
            lost, or it is nested too deeply.
        RecursionError: It has so many levels that Python can't decode it.

    >>> decode_json(b'{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ValueError: the key 'a' occurs twice
    """
    value = json.loads(bytes(text), object_pairs_hook=_make_object)
    _check_levels(value)
    return value


def _check_levels(value: Any) -> None:
    level = [value]
    for _ in range(_MAX_FILE_LEVELS + 1):
        containers = [value for value in level if isinstance(value, (dict, list))]
        if not containers:
            return
        level = [
            inner
            for value in containers
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
    raise ValueError(f"it has more than {_MAX_FILE_LEVELS} levels")


def check_repeated_keys(text: bytes | memoryview, counts: Mapping[str, int]) -> None:
    """Checks that no object repeats a key, without decoding a large sound text a second time.

    Args:
        text: JSON text that has been decoded without an error.
        counts: How often each key must occur in it. If the counts agree, none of these keys is
            repeated, nor is any key whose value has to contain one of them.

    Raises:
        ValueError: A key occurs twice.
    """
    data = bytes(text)
    escaped = b"\\" in data and b"\\u" in data  # a single byte is found much faster
    if escaped or not all(_occurs(data, key.encode(), n) for key, n in counts.items()):
        decode_json(data)


def _occurs(data: bytes, key: bytes, n: int) -> bool:
    """Whether JSON text has a key `n` times."""
    if data.count(b'"%s"' % key) == n:
        return True
    return len(re.findall(rb'"%s"\s*:' % re.escape(key), data)) == n  # without strings as values


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (repeated, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {repeated[:80]!r} occurs twice")
    return found
