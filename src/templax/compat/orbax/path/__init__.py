"""Orbax's `path`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..unmapped import unmapped_attribute

if TYPE_CHECKING:
    from . import step

__all__ = ["step"]

__getattr__ = unmapped_attribute("path.", {"step": "path.step"})
