"""The options of a match."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .._core.dtypes import Cast
from .._core.names import Rename


@dataclass(frozen=True, slots=True)
class MatchOptions:
    """How a checkpoint is compared with a template. See `restore` for each option."""

    at: str = ""
    rename: Rename | None = None
    missing: Literal["error", "keep"] = "error"
    extra: Literal["error", "ignore"] = "error"
    cast: Cast = "float"
