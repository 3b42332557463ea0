"""Orbax's `path`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..unmapped import make_getattr

if TYPE_CHECKING:
    from . import step

__all__ = ["step"]

__getattr__ = make_getattr("path.", {"step": "path.step"})
