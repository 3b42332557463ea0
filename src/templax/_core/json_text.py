"""JSON text of values that callers pass."""

from __future__ import annotations

import json
from collections.abc import Callable
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
