"""Results as JSON: what the commands print under `--json`.

docs/reference/cli.md documents the fields. They are the attributes of the results, by their names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import msgspec

SCHEMA = 1
"""Version of every document; it changes only when a field is removed or changes its meaning."""


def render_json(fields: Mapping[str, Any]) -> str:
    """A document as strict JSON: NaN and infinities are null, foreign values their text."""
    document = msgspec.to_builtins({"schema": SCHEMA, **fields}, enc_hook=str)
    return json.dumps(_drop_nonfinite(document), indent=1)


def _drop_nonfinite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _drop_nonfinite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_drop_nonfinite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def select_fields(result: object, *names: str) -> dict[str, Any]:
    """Attributes of a result by their names."""
    return {name: getattr(result, name) for name in names}
