"""Orbax's `experimental`, which holds its v1 API."""

from __future__ import annotations

from ..unmapped import make_getattr
from . import v1

__all__ = ["v1"]

__getattr__ = make_getattr("experimental.")
