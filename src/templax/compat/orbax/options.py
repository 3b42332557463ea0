"""Orbax's option objects: those that affect results, and those that only tune."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import templax as tx

from ..._runs.retention import rank_steps
from .unmapped import unmapped_argument, unmapped_attribute

__all__ = ["AsyncOptions", "CheckpointManagerOptions", "FileOptions", "MultiprocessingOptions"]


class Tuning:
    """Options that do not affect results: accepted, without effect."""

    def __init__(self, **options: Any) -> None:
        del options


class FileOptions(Tuning):
    """`ocp.options.FileOptions`."""


class MultiprocessingOptions(Tuning):
    """`ocp.options.MultiprocessingOptions`: all processes of the job save, process 0 commits."""


@dataclass(frozen=True)
class AsyncOptions:
    """`ocp.AsyncOptions`.

    Attributes:
        post_finalization_callback: Called once a save is committed, in the thread that saved.
        timeout_secs, barrier_sync_fn, create_directories_asynchronously: No effect.
    """

    timeout_secs: int | None = None
    barrier_sync_fn: Any = None
    post_finalization_callback: Callable[[], None] | None = None
    create_directories_asynchronously: bool = True


@dataclass(frozen=True, slots=True)
class StepFacts:
    """The facts that decide whether a step stays.

    Attributes:
        metrics: The metrics that the step was saved with, or None.
        saved: The time of the save in Unix seconds.
    """

    metrics: Any
    saved: float


@dataclass
class CheckpointManagerOptions:
    """Which steps a manager saves, which it keeps, and how they are named.

    Attributes:
        save_interval_steps: Steps whose number is a multiple of this are saved. The first step is
            always saved.
        save_on_steps: Further steps to save.
        should_save_fn: Decides instead of these two: `(step, latest step or None) -> bool`.
        max_to_keep: How many of the latest steps stay, or of the best ones if `best_fn` is given.
            None keeps all.
        keep_period: Multiples of it stay as well.
        keep_time_interval: A step also stays if it was saved at least this long after the previous
            step that stays for this reason.
        best_fn: Computes the number to compare from a step's metrics. Metrics are saved only if it
            is given.
        best_mode: Whether "max" or "min" is best.
        keep_checkpoints_without_metrics: With `best_fn`, steps without metrics stay.
        step_prefix: Step directories are named `<step_prefix>_<number>`.
        step_format_fixed_length: The number is padded with zeros to this many digits.
        cleanup_tmp_directories: Removes what killed saves left behind.
        read_only: Nothing is saved or deleted.
        enable_async_checkpointing: Whether `save` returns before the step is written.
        save_root_metadata: Whether the manager's own metadata is saved.
        prevent_write_metrics: Whether metrics are left out of the steps.
        async_options: An `AsyncOptions`.

    The remaining options have no effect, or raise `NotImplementedError` if they are set.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> ocp.CheckpointManagerOptions(max_to_keep=3, keep_period=1000).best_mode
        'max'
    """

    save_interval_steps: int = 1
    max_to_keep: int | None = None
    keep_time_interval: datetime.timedelta | None = None
    keep_period: int | None = None
    best_fn: Callable[[Any], float] | None = None
    best_mode: Literal["min", "max"] = "max"
    keep_checkpoints_without_metrics: bool = True
    step_prefix: str | None = None
    step_format_fixed_length: int | None = None
    step_name_format: Any = None
    create: bool = True
    cleanup_tmp_directories: bool = False
    save_on_steps: Container[int] | None = None
    single_host_load_and_broadcast: bool = False
    todelete_subdir: str | None = None
    todelete_full_path: str | None = None
    enable_background_delete: bool = False
    num_deletion_threads: int | None = None
    read_only: bool = False
    enable_async_checkpointing: bool = True
    async_options: AsyncOptions | None = None
    multiprocessing_options: Any = None
    should_save_fn: Callable[[int, int | None], bool] | None = None
    file_options: Any = None
    atomicity_options: Any = None
    save_root_metadata: bool = True
    temporary_path_class: Any = None
    save_decision_policy: Any = None
    preservation_policy: Any = None
    prevent_write_metrics: bool = False
    enable_should_save_is_saving_in_progress_check: bool = True
    enable_per_process_directory_creation: bool = False
    lightweight_initialize: bool = False

    def __post_init__(self) -> None:
        for name, native in _UNMAPPED.items():
            if getattr(self, name) is not None:
                raise unmapped_argument(name, native)
        if self.best_mode not in ("min", "max"):
            raise tx.UsageError(f'Expected best_mode="min" or "max", got {self.best_mode!r}')
        if self.max_to_keep is not None and self.max_to_keep < 0:
            raise tx.UsageError(f"Expected max_to_keep=None or 0 or more, got {self.max_to_keep}")

    @property
    def tracks_metrics(self) -> bool:
        """Whether metrics are saved with the steps."""
        return self.best_fn is not None and not self.prevent_write_metrics

    def is_due(self, step: int, latest: int | None) -> bool:
        """Whether a step should be saved, given the latest one."""
        if self.should_save_fn is not None:
            return bool(self.should_save_fn(step, latest))
        listed = self.save_on_steps is not None and step in self.save_on_steps
        return latest is None or listed or step % self.save_interval_steps == 0

    def rank_by_metrics(self, metrics: Mapping[int, Any]) -> list[int]:
        """The steps that have metrics, best first; the later one first if several tie."""
        assert self.best_fn is not None
        values = {s: {"": float(self.best_fn(m))} for s, m in metrics.items() if m is not None}
        return rank_steps(values, "", self.best_mode)

    def select_kept(self, steps: Mapping[int, StepFacts]) -> set[int]:
        """The steps that stay.

        Args:
            steps: The steps in ascending order, followed by the one just saved.
        """
        order, n = list(steps), self.max_to_keep
        if n is None or len(order) <= n:
            return set(order)
        kept: set[int] = set()
        if self.best_fn is None:
            kept |= set(order[len(order) - n :])
        elif n > 0:
            metrics = {step: facts.metrics for step, facts in steps.items()}
            kept |= set(self.rank_by_metrics(metrics)[:n])
            if self.keep_checkpoints_without_metrics:
                kept |= {step for step in order if metrics[step] is None}
        if self.keep_period is not None:
            kept |= {step for step in order if step % self.keep_period == 0}
        if self.keep_time_interval is not None:
            interval, last = self.keep_time_interval.total_seconds(), None
            for step in order:
                if last is None or steps[step].saved - last >= interval:
                    kept.add(step)
                    last = steps[step].saved
        return kept


_UNMAPPED = {
    "step_name_format": "step_prefix=, step_format_fixed_length=",
    "save_decision_policy": "save_interval_steps=, save_on_steps= or should_save_fn=",
    "preservation_policy": "max_to_keep=, keep_period=, best_fn=; or templax.Manager(path, keep=)",
    "todelete_subdir": "leave it out: a step is gone at once, its files soon after",
    "todelete_full_path": "leave it out: a step is gone at once, its files soon after",
}


__getattr__ = unmapped_attribute("options.")
