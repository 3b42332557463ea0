"""Orbax's v1 `path.step`: how the directories of steps are named and found."""

from __future__ import annotations

from ....path.step import NameFormat, composite_name_format, standard_name_format
from ....unmapped import make_getattr

__all__ = ["NameFormat", "composite_name_format", "standard_name_format"]

__getattr__ = make_getattr("experimental.v1.path.step.")
