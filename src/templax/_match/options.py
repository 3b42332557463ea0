"""How two trees are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .._core.dtypes import Cast
from .._core.names import Rename


@dataclass(frozen=True, slots=True)
class MatchOptions:
    """How two trees are compared; as `restore` takes them."""

    at: str = ""
    rename: Rename | None = None
    missing: Literal["error", "keep"] = "error"
    extra: Literal["error", "ignore"] = "error"
    cast: Cast = "float"
