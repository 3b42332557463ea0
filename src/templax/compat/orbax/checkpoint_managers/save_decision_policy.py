"""Orbax's save-decision policies: at which steps a manager saves."""

from __future__ import annotations

import datetime
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ...._hosts.agreement import open_call
from .policy_checkpoint_info import PolicyCheckpointInfo

__all__ = [
    "AnySavePolicy",
    "ContinuousCheckpointingPolicy",
    "DecisionContext",
    "FixedIntervalPolicy",
    "InitialSavePolicy",
    "PreemptionCheckpointingPolicy",
    "SaveDecisionPolicy",
    "SpecificStepsPolicy",
]

Steps = Sequence[PolicyCheckpointInfo]


@dataclass(kw_only=True)
class DecisionContext:
    """What else a policy is told.

    Attributes:
        is_saving_in_progress: Whether a save is in progress in the background.
        reached_preemption: Whether JAX announces a preemption of the job at this step.
        multiprocessing_options: The `MultiprocessingOptions` of the manager.
        directory: The directory of the run. Orbax's own context lacks it.
    """

    is_saving_in_progress: bool
    reached_preemption: bool
    multiprocessing_options: Any
    directory: str = ""


@runtime_checkable
class SaveDecisionPolicy(Protocol):
    """The interface of all policies; your own needs no base class.

    All processes of a job must get the same answer.

    Example:
        >>> class Doubling:
        ...     def should_save(self, step, previous_steps, *, context):
        ...         return not previous_steps or step.step >= 2 * previous_steps[-1].step
    """

    def should_save(
        self, step: PolicyCheckpointInfo, previous_steps: Steps, *, context: DecisionContext
    ) -> bool:
        """Whether to save.

        Args:
            step: The step that may be saved; its time is now.
            previous_steps: The steps of the run, ascending.
            context: What else there is to know.
        """
        ...


@dataclass
class FixedIntervalPolicy:
    """Saves the multiples of a number.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> policies = ocp.checkpoint_managers
        >>> due = policies.AnySavePolicy(
        ...     [policies.FixedIntervalPolicy(1000), policies.PreemptionCheckpointingPolicy()]
        ... )
        >>> ocp.CheckpointManagerOptions(save_decision_policy=due).save_decision_policy is due
        True
    """

    interval: int

    def should_save(
        self, step: PolicyCheckpointInfo, previous_steps: Steps, *, context: DecisionContext
    ) -> bool:
        """See `SaveDecisionPolicy`."""
        return step.step % self.interval == 0


@dataclass
class SpecificStepsPolicy:
    """Saves the steps of these numbers."""

    steps: Container[int]

    def should_save(
        self, step: PolicyCheckpointInfo, previous_steps: Steps, *, context: DecisionContext
    ) -> bool:
        """See `SaveDecisionPolicy`."""
        return step.step in self.steps


@dataclass(kw_only=True)
class ContinuousCheckpointingPolicy:
    """Saves whenever no save is in progress.

    Process 0 decides for all processes of a job, which all must ask.

    Attributes:
        minimum_interval_secs: The least number of seconds between two saves; None for no limit.
    """

    minimum_interval_secs: float | None = None

    def should_save(
        self, step: PolicyCheckpointInfo, previous_steps: Steps, *, context: DecisionContext
    ) -> bool:
        """See `SaveDecisionPolicy`."""

        def decide() -> bytes:
            return b"save" if self._is_due(step, previous_steps, context) else b""

        run = context.directory
        with open_call("deciding whether to save", run, step=step.step, strict=False) as call:
            return bool(call.join(make_reply=decide))

    def _is_due(
        self, step: PolicyCheckpointInfo, previous_steps: Steps, context: DecisionContext
    ) -> bool:
        if context.is_saving_in_progress:
            return False
        if not previous_steps or self.minimum_interval_secs is None:
            return True
        least = datetime.timedelta(seconds=self.minimum_interval_secs)
        return step.time - previous_steps[-1].time >= least


class PreemptionCheckpointingPolicy:
    """Saves when JAX announces a preemption of the job."""

    def should_save(
        self, step: PolicyCheckpointInfo, previous_steps: Steps, *, context: DecisionContext
    ) -> bool:
        """See `SaveDecisionPolicy`."""
        return context.reached_preemption


class InitialSavePolicy:
    """Saves the first step of a run."""

    def should_save(
        self, step: PolicyCheckpointInfo, previous_steps: Steps, *, context: DecisionContext
    ) -> bool:
        """See `SaveDecisionPolicy`."""
        return not previous_steps


@dataclass
class AnySavePolicy:
    """Saves if any of its policies does, and asks none after that one."""

    policies: Sequence[SaveDecisionPolicy]

    def should_save(
        self, step: PolicyCheckpointInfo, previous_steps: Steps, *, context: DecisionContext
    ) -> bool:
        """See `SaveDecisionPolicy`."""
        return any(
            policy.should_save(step, previous_steps=previous_steps, context=context)
            for policy in self.policies
        )
