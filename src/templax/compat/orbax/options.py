"""Orbax's option objects, as far as they say more than how fast it is to be."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import templax as tx

from ..._runs.retention import rank_steps

__all__ = ["AsyncOptions", "CheckpointManagerOptions", "FileOptions", "MultiprocessingOptions"]


class Tuning:
    """Options that change no result: accepted, without effect."""

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
        post_finalization_callback: Called once a save is committed, by the thread that saved.
        Others: No effect.
    """

    timeout_secs: int | None = None
    barrier_sync_fn: Any = None
    post_finalization_callback: Callable[[], None] | None = None
    create_directories_asynchronously: bool = True


@dataclass(frozen=True, slots=True)
class Facts:
    """What decides whether a step stays.

    Attributes:
        metrics: What it was saved with; None if with none.
        saved: When, in Unix seconds.
    """

    metrics: Any
    saved: float


@dataclass
class CheckpointManagerOptions:
    """Which steps a manager saves, which it keeps, and what they are called.

    Attributes:
        save_interval_steps, save_on_steps: A step is saved if its number is a multiple of the one,
            or one of the others; the first always.
        should_save_fn: Decides instead: `(step, latest step or None) -> bool`.
        max_to_keep: So many of the latest stay, or of the best if there is `best_fn`; None: all.
        keep_period: Multiples of it stay, too.
        keep_time_interval: And so does a step that was saved at least so long after the last that
            stays for this reason.
        best_fn, best_mode: What of a step's metrics is compared, and whether "max" or "min" is
            best. Only then are metrics saved.
        keep_checkpoints_without_metrics: With `best_fn`, steps without metrics stay.
        step_prefix, step_format_fixed_length: `prefix_` before the number, and its digits.
        cleanup_tmp_directories: Removes what dead saves left.
        read_only: Nothing is saved or deleted.
        enable_async_checkpointing: Whether `save` returns before the step is written.
        save_root_metadata, prevent_write_metrics: Whether the manager's metadata is saved; and
            whether metrics are not.
        async_options: `AsyncOptions`.
        Others: No effect, or `NotImplementedError`.

    Example:
        >>> CheckpointManagerOptions(max_to_keep=3, keep_period=1000).best_mode
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
                raise unmapped(name, native)
        if self.best_mode not in ("min", "max"):
            raise tx.UsageError(f'Expected best_mode="min" or "max", got {self.best_mode!r}')
        if self.max_to_keep is not None and self.max_to_keep < 0:
            raise tx.UsageError(f"Expected max_to_keep=None or 0 or more, got {self.max_to_keep}")

    @property
    def tracks_metrics(self) -> bool:
        """Whether metrics are saved."""
        return self.best_fn is not None and not self.prevent_write_metrics

    def is_due(self, step: int, latest: int | None) -> bool:
        """Whether a step is to be saved after the latest one."""
        if self.should_save_fn is not None:
            return bool(self.should_save_fn(step, latest))
        listed = self.save_on_steps is not None and step in self.save_on_steps
        return latest is None or listed or step % self.save_interval_steps == 0

    def ranked(self, metrics: Mapping[int, Any]) -> list[int]:
        """The steps with metrics, the best first; of equal ones the later."""
        assert self.best_fn is not None
        values = {s: {"": float(self.best_fn(m))} for s, m in metrics.items() if m is not None}
        return rank_steps(values, "", self.best_mode)

    def stays(self, steps: Mapping[int, Facts]) -> set[int]:
        """The steps that are kept.

        Args:
            steps: Ascending, the one just saved last.
        """
        order, n = list(steps), self.max_to_keep
        if n is None or len(order) <= n:
            return set(order)
        stays: set[int] = set()
        if self.best_fn is None:
            stays |= set(order[len(order) - n :])
        elif n > 0:
            metrics = {step: facts.metrics for step, facts in steps.items()}
            stays |= set(self.ranked(metrics)[:n])
            if self.keep_checkpoints_without_metrics:
                stays |= {step for step in order if metrics[step] is None}
        if self.keep_period is not None:
            stays |= {step for step in order if step % self.keep_period == 0}
        if self.keep_time_interval is not None:
            interval, last = self.keep_time_interval.total_seconds(), None
            for step in order:
                if last is None or steps[step].saved - last >= interval:
                    stays.add(step)
                    last = steps[step].saved
        return stays


_UNMAPPED = {
    "step_name_format": "step_prefix=, step_format_fixed_length=",
    "save_decision_policy": "save_interval_steps=, save_on_steps= or should_save_fn=",
    "preservation_policy": "max_to_keep=, keep_period=, best_fn=; or templax.Manager(path, keep=)",
    "todelete_subdir": "leave it out: a step is gone at once, its files soon after",
    "todelete_full_path": "leave it out: a step is gone at once, its files soon after",
}


def unmapped(argument: str, native: str) -> NotImplementedError:
    """The error about something that has another way."""
    return NotImplementedError(f"templax.compat.orbax does not map `{argument}`; hint: {native}")
