"""Orbax's v1 `training`: the checkpoints that a training job saves, one after another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ....unmapped import load_lazily

if TYPE_CHECKING:
    from ....checkpoint_managers import preservation_policy as preservation_policies
    from ....checkpoint_managers import save_decision_policy as save_decision_policies
    from . import errors as errors
    from .checkpointer import Checkpointer as Checkpointer
    from .step_metadata import CheckpointMetadata as CheckpointMetadata
    from .step_metadata import RootMetadata as RootMetadata

    __all__ = ["preservation_policies", "save_decision_policies"]

_HERE = "experimental.v1.training"

_MODULES = {
    f"{_HERE}.checkpointer": ("Checkpointer",),
    f"{_HERE}.errors": ("errors",),
    f"{_HERE}.step_metadata": ("CheckpointMetadata", "RootMetadata"),
    "checkpoint_managers.preservation_policy:": ("preservation_policies",),
    "checkpoint_managers.save_decision_policy:": ("save_decision_policies",),
}
"""Where each name is defined. The policies are those of a manager of the older API."""

__getattr__, __dir__ = load_lazily(f"{_HERE}.", _MODULES)
