"""Renders JSON documents, as the commands print them for `--json`.

The fields are chosen in `json_listing.py` (`ls`, `steps`) and `json_reports.py` (`check`, `plan`,
`diff`, `verify`). Most are attributes of the results, under the same names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import msgspec

SCHEMA = 1
"""The version of all documents. It changes only when a field is removed or changes its meaning."""


def render_json(fields: Mapping[str, Any]) -> str:
    """A document as strict JSON.

    NaN and infinities become null. A value of a type that JSON lacks becomes its text.
    """
    document = msgspec.to_builtins({"schema": SCHEMA, **fields}, enc_hook=str)
    return json.dumps(_drop_nonfinite(document), indent=1, allow_nan=False)


def _drop_nonfinite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _drop_nonfinite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_drop_nonfinite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def select_fields(result: object, *names: str) -> dict[str, Any]:
    """The named attributes of a result."""
    return {name: getattr(result, name) for name in names}
