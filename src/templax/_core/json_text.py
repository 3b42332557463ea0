"""JSON text of values that callers pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from .limits import MAX_DEPTH
from .text import is_unicode

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
            Unicode; an integer has 4,300 digits; or `value` has more than `MAX_DEPTH` levels or
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
        if depth == MAX_DEPTH:
            raise ValueError(f"it has more than {MAX_DEPTH} levels")
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
