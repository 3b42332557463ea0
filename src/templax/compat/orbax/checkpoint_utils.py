"""Orbax's `checkpoint_utils`."""

from __future__ import annotations

from .leaf_args import PLACEHOLDER, construct_restore_args
from .unmapped import unmapped_attribute

__all__ = ["PLACEHOLDER", "construct_restore_args"]

__getattr__ = unmapped_attribute("checkpoint_utils.")
