"""Orbax's v1 `training.errors`."""

from __future__ import annotations

from ......errors import NotFound
from ....run_steps import StepAlreadyExistsError
from ....unmapped import make_getattr

__all__ = ["StepAlreadyExistsError", "StepNotFoundError"]


class StepNotFoundError(NotFound):
    """The run has no step of this number, or no step at all."""


__getattr__ = make_getattr("experimental.v1.training.errors.")
