"""The options of a match."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .._core.dtypes import Cast
from .._core.names import Rename, choose_by_pattern

MissingChoice = Literal["error", "keep"] | int
"""What to do about a missing leaf. An int is the position of the supplier, counted from 1."""

ExtraChoice = Literal["error", "ignore"]
"""What to do about a leaf of the checkpoint that the template lacks."""


@dataclass(frozen=True, slots=True)
class MatchOptions:
    """How a checkpoint is compared with a template. See `restore` for each option.

    `missing` and `extra` are one choice for all leaves, or choices by pattern.
    """

    at: str = ""
    rename: Rename | None = None
    missing: MissingChoice | Mapping[str, MissingChoice] = "error"
    extra: ExtraChoice | Mapping[str, ExtraChoice] = "error"
    cast: Cast = "float"

    def choose_for_missing(self, name: str) -> MissingChoice:
        """What to do if the checkpoint lacks the leaf `name` of the template."""
        if isinstance(self.missing, Mapping):
            return choose_by_pattern(name, self.missing) or "error"
        return self.missing

    def choose_for_extra(self, name: str) -> ExtraChoice:
        """What to do about the leaf `name` of the checkpoint, which the template lacks."""
        if isinstance(self.extra, Mapping):
            return choose_by_pattern(name, self.extra) or "error"
        return self.extra
