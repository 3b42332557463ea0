"""Orbax's `logging`: what a manager tells a logger of each save and restore."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..unmapped import unmapped_attribute

if TYPE_CHECKING:
    from . import step_statistics
    from .loggers import AbstractLogger, CompositeLogger, StandardLogger

__all__ = ["AbstractLogger", "CompositeLogger", "StandardLogger", "step_statistics"]

_LOGGERS = ("AbstractLogger", "CompositeLogger", "StandardLogger")

_HOMES = dict.fromkeys(_LOGGERS, "logging.loggers")

__getattr__ = unmapped_attribute(
    "logging.", {**_HOMES, "step_statistics": "logging.step_statistics"}
)


def __dir__() -> list[str]:
    return sorted(__all__)
