"""Orbax's v1 `errors`."""

from __future__ import annotations

from ...unmapped import unmapped_attribute
from .layout import InvalidLayoutError

__all__ = ["InvalidLayoutError"]

__getattr__ = unmapped_attribute("experimental.v1.errors.")
