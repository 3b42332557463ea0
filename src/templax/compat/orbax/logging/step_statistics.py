"""The entries that a logger gets. Times are in Unix seconds, durations in seconds."""

from __future__ import annotations

from dataclasses import dataclass

from ..unmapped import make_getattr

__all__ = ["RestoreStepStatistics", "SaveStepStatistics"]


@dataclass
class SaveStepStatistics:
    """A save by a manager.

    Attributes:
        step: The step number.
        event_type: "save".
        directory: The directory of the run.
        reached_preemption: Whether a preemption of the job was announced at this step.
        preemption_received_at: The time at which the manager heard of it, or None.
        synchronous: Whether the call returned only when the step was committed.
        wait_for_prev_start_time, wait_for_prev_duration_secs: The wait for the previous save.
        time_between_consecutive_saves_sec: The time since the previous save ended, or None.
        checkpointer_blocking_start_time, checkpointer_blocking_duration_secs: The part of the save
            for which the call did not return.
        get_old_steps_start_time, get_old_steps_duration_secs: The choice of the steps to delete.
        checkpoint_manager_blocking_start_time, checkpoint_manager_blocking_duration_secs: The whole
            call.
    """

    step: int | None = None
    event_type: str | None = "save"
    directory: str | None = None
    reached_preemption: bool | None = False
    preemption_received_at: float | None = None
    synchronous: bool | None = False
    wait_for_prev_start_time: float | None = None
    wait_for_prev_duration_secs: float | None = None
    time_between_consecutive_saves_sec: float | None = None
    checkpointer_blocking_start_time: float | None = None
    checkpointer_blocking_duration_secs: float | None = None
    get_old_steps_start_time: float | None = None
    get_old_steps_duration_secs: float | None = None
    checkpoint_manager_blocking_start_time: float | None = None
    checkpoint_manager_blocking_duration_secs: float | None = None


@dataclass
class RestoreStepStatistics:
    """A restore by a manager.

    Attributes:
        step: The step number.
        event_type: "restore".
        directory: The directory of the run.
        checkpointer_start_time, checkpointer_duration_secs: The restore itself.
        checkpoint_manager_start_time, checkpoint_manager_duration_secs: The whole call.
    """

    step: int | None = None
    event_type: str | None = "restore"
    directory: str | None = None
    checkpointer_start_time: float | None = None
    checkpointer_duration_secs: float | None = None
    checkpoint_manager_start_time: float | None = None
    checkpoint_manager_duration_secs: float | None = None


__getattr__ = make_getattr("logging.step_statistics.")
