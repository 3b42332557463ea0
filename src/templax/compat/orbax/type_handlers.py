"""Orbax's `type_handlers`: how leaves are saved and restored."""

from __future__ import annotations

from .leaf_args import ArrayRestoreArgs, RestoreArgs, SaveArgs
from .unmapped import unmapped_attribute

__all__ = ["ArrayRestoreArgs", "RestoreArgs", "SaveArgs"]

__getattr__ = unmapped_attribute("type_handlers.")
