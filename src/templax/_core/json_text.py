"""JSON text: of values that callers pass, and of files in which a key must not occur twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any


def encode_json(value: Any, default: Callable[[Any], Any] | None = None) -> str:
    """JSON text that says all that `value` does.

    Args:
        value: Anything that `json.dumps` takes.
        default: See `json.dumps`.

    Raises:
        ValueError: Two keys of a dict are one in JSON, such as `1` and `"1"`.
        TypeError, ValueError, RecursionError: See `json.dumps`.
    """
    text = json.dumps(value, default=default)
    _check_keys(value)
    return text


def _check_keys(value: Any) -> None:
    if isinstance(value, dict):
        keys: dict[str, Any] = {}
        for key, inner in value.items():
            name = key if isinstance(key, str) else json.dumps(key)
            if name in keys:
                raise ValueError(f"the keys {keys[name]!r} and {key!r} are one in JSON")
            keys[name] = key
            _check_keys(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _check_keys(inner)


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
    if b"\\u" in data or any(data.count(b'"%s"' % key.encode()) != n for key, n in counts.items()):
        decode_json(data)


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (repeated, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {repeated[:80]!r} occurs twice")
    return found
