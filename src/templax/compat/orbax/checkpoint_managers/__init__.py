"""Orbax's `checkpoint_managers`: the policies of a manager, and the manager itself."""

from __future__ import annotations

from ..unmapped import make_getattr
from . import preservation_policy, save_decision_policy
from .policy_checkpoint_info import PolicyCheckpointInfo
from .preservation_policy import *  # noqa: F403  # the module says which
from .save_decision_policy import *  # noqa: F403

__all__ = ["PolicyCheckpointInfo", "preservation_policy", "save_decision_policy"]
__all__ += preservation_policy.__all__
__all__ += save_decision_policy.__all__

# The manager imports the policies.
__getattr__ = make_getattr(
    "checkpoint_managers.",
    {
        "AbstractCheckpointManager": "abstract_checkpoint_manager",
        "CheckpointManager": "checkpoint_manager",
        "CheckpointManagerOptions": "options",
    },
)
