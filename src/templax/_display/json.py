"""Results as JSON."""

from __future__ import annotations

from typing import Any

from .._audit.result import Verified


def verification_json(verified: Verified) -> dict[str, Any]:
    """What `templax verify --json` prints."""
    return {
        "schema": 1,
        "ok": verified.ok,
        "url": verified.url,
        "leaves": verified.leaves,
        "damages": [
            {
                "what": damage.what,
                "leaf": damage.leaf,
                "box": damage.box,
                "file": damage.file,
                "start": damage.start,
                "stop": damage.stop,
                "hint": damage.hint,
            }
            for damage in verified.damages
        ],
        "checked_bytes": verified.checked_bytes,
        "unchecked_bytes": verified.unchecked_bytes,
        "unchecked": list(verified.unchecked),
        "seconds": verified.seconds,
    }
