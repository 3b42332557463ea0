"""Orbax's v1 `errors`."""

from __future__ import annotations

from ...unmapped import make_getattr
from .layout import InvalidLayoutError

__all__ = ["InvalidLayoutError"]

__getattr__ = make_getattr("experimental.v1.errors.")
