"""Orbax's `logging`: what a manager tells a logger of each save and restore."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..unmapped import load_lazily

if TYPE_CHECKING:
    from . import step_statistics as step_statistics
    from .loggers import AbstractLogger as AbstractLogger
    from .loggers import CompositeLogger as CompositeLogger
    from .loggers import StandardLogger as StandardLogger

_MODULES = {
    "logging.loggers": ("AbstractLogger", "CompositeLogger", "StandardLogger"),
    "logging.step_statistics": ("step_statistics",),
}
"""Where each name is defined."""

__getattr__, __dir__ = load_lazily("logging.", _MODULES)
