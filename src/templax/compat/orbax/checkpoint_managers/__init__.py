"""Orbax's `checkpoint_managers`: the policies of a manager, and the manager itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..unmapped import unmapped_attribute

if TYPE_CHECKING:
    from ..abstract_checkpoint_manager import AbstractCheckpointManager
    from . import policy_checkpoint_info, preservation_policy, save_decision_policy
    from .policy_checkpoint_info import PolicyCheckpointInfo
    from .preservation_policy import (
        AnyPreservationPolicy,
        BestN,
        CustomSteps,
        EveryNSeconds,
        EveryNSteps,
        EveryNStepsClosest,
        LatestDuration,
        LatestN,
        PreservationContext,
        PreservationPolicy,
        PreserveAll,
    )
    from .save_decision_policy import (
        AnySavePolicy,
        ContinuousCheckpointingPolicy,
        DecisionContext,
        FixedIntervalPolicy,
        InitialSavePolicy,
        PreemptionCheckpointingPolicy,
        SaveDecisionPolicy,
        SpecificStepsPolicy,
    )

__all__ = [
    "AbstractCheckpointManager",
    "AnyPreservationPolicy",
    "AnySavePolicy",
    "BestN",
    "ContinuousCheckpointingPolicy",
    "CustomSteps",
    "DecisionContext",
    "EveryNSeconds",
    "EveryNSteps",
    "EveryNStepsClosest",
    "FixedIntervalPolicy",
    "InitialSavePolicy",
    "LatestDuration",
    "LatestN",
    "PolicyCheckpointInfo",
    "PreemptionCheckpointingPolicy",
    "PreservationContext",
    "PreservationPolicy",
    "PreserveAll",
    "SaveDecisionPolicy",
    "SpecificStepsPolicy",
    "policy_checkpoint_info",
    "preservation_policy",
    "save_decision_policy",
]

_HERE = "checkpoint_managers"

_MODULES = {
    "abstract_checkpoint_manager": ("AbstractCheckpointManager",),
    "checkpoint_manager": ("CheckpointManager",),
    f"{_HERE}.policy_checkpoint_info": ("policy_checkpoint_info", "PolicyCheckpointInfo"),
    f"{_HERE}.preservation_policy": (
        "AnyPreservationPolicy",
        "BestN",
        "CustomSteps",
        "EveryNSeconds",
        "EveryNSteps",
        "EveryNStepsClosest",
        "LatestDuration",
        "LatestN",
        "PreservationContext",
        "PreservationPolicy",
        "PreserveAll",
        "preservation_policy",
    ),
    f"{_HERE}.save_decision_policy": (
        "AnySavePolicy",
        "ContinuousCheckpointingPolicy",
        "DecisionContext",
        "FixedIntervalPolicy",
        "InitialSavePolicy",
        "PreemptionCheckpointingPolicy",
        "SaveDecisionPolicy",
        "SpecificStepsPolicy",
        "save_decision_policy",
    ),
    "options": ("CheckpointManagerOptions",),
}
"""Where each name is defined. The manager, which imports the policies, is not in `__all__`."""

_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__getattr__ = unmapped_attribute("checkpoint_managers.", _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
