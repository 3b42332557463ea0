"""Orbax's v1 `training`: the checkpoints that a training job saves, one after another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ....unmapped import unmapped_attribute

if TYPE_CHECKING:
    from . import errors, preservation_policies, save_decision_policies
    from .checkpointer import Checkpointer
    from .step_metadata import CheckpointMetadata, RootMetadata

__all__ = [
    "CheckpointMetadata",
    "Checkpointer",
    "RootMetadata",
    "errors",
    "preservation_policies",
    "save_decision_policies",
]

_HERE = "experimental.v1.training"

_HOMES = {
    "CheckpointMetadata": f"{_HERE}.step_metadata",
    "Checkpointer": f"{_HERE}.checkpointer",
    "RootMetadata": f"{_HERE}.step_metadata",
    "errors": f"{_HERE}.errors",
    "preservation_policies": f"{_HERE}.preservation_policies",
    "save_decision_policies": f"{_HERE}.save_decision_policies",
}
"""Where each name is defined."""

__getattr__ = unmapped_attribute(f"{_HERE}.", _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
