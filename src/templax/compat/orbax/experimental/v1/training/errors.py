"""Orbax's v1 `training.errors`."""

from __future__ import annotations

from ......errors import NotFound
from ....run_steps import StepAlreadyExistsError
from ....unmapped import unmapped_attribute

__all__ = ["StepAlreadyExistsError", "StepNotFoundError"]


class StepNotFoundError(NotFound):
    """There is no such step, or none at all."""


__getattr__ = unmapped_attribute("experimental.v1.training.errors.")
