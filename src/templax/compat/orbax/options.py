"""Orbax's option objects: those that affect results, and those that only tune."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

import templax as tx

from .unmapped import make_getattr, make_unmapped_error

if TYPE_CHECKING:
    from .checkpoint_managers.preservation_policy import PreservationPolicy
    from .checkpoint_managers.save_decision_policy import SaveDecisionPolicy
    from .path.step import Metadata, NameFormat

__all__ = [
    "AsyncOptions",
    "AtomicityMode",
    "AtomicityOptions",
    "CheckpointManagerOptions",
    "FileOptions",
    "MemoryLimitOptions",
    "MultiprocessingOptions",
]

_log = logging.getLogger("templax")


@dataclass(frozen=True)
class FileOptions:
    """`ocp.options.FileOptions`.

    Attributes:
        path_permission_mode: No effect: files get the permissions of the process.
    """

    path_permission_mode: int | None = None


@dataclass(frozen=True)
class MemoryLimitOptions:
    """`ocp.options.MemoryLimitOptions`.

    Attributes:
        max_transfer_concurrent_gb: No effect: a save of templax holds `memory=` bytes at most.
    """

    max_transfer_concurrent_gb: int | None = None


@dataclass
class MultiprocessingOptions:
    """`ocp.options.MultiprocessingOptions`.

    Attributes:
        primary_host: The process that commits: 0. With several processes, a manager refuses others.
        active_processes: None: all processes of the job save. With several, a manager refuses
            others.
        barrier_sync_key_prefix: No effect.
    """

    primary_host: int | None = 0
    active_processes: set[int] | None = None
    barrier_sync_key_prefix: str | None = None


class AtomicityMode(StrEnum):
    """How Orbax commits a checkpoint. No effect: templax writes what all of them look for."""

    AUTO = "auto"
    COMMIT_FILE = "commit_file"
    ATOMIC_RENAME = "atomic_rename"


@dataclass(frozen=True)
class AtomicityOptions:
    """`ocp.options.AtomicityOptions`. No effect."""

    mode: AtomicityMode = AtomicityMode.AUTO
    allow_legacy_atomic_rename: bool = False


@dataclass
class AsyncOptions:
    """`ocp.AsyncOptions`.

    Attributes:
        post_finalization_callback: Called once a save is committed, in the thread that saved.
        timeout_secs: How many seconds handlers of the caller's own may go on writing in the
            background. A save of one that takes longer fails with a `TimeoutError`.
        barrier_sync_fn, create_directories_asynchronously: No effect.
    """

    timeout_secs: int = 1200
    barrier_sync_fn: Any = None
    post_finalization_callback: Callable[[], None] | None = None
    create_directories_asynchronously: bool = True


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
            or a `preservation_policy` is given.
        best_mode: Whether "max" or "min" is best.
        keep_checkpoints_without_metrics: With `best_fn`, steps without metrics stay.
        step_prefix: Step directories are named `<step_prefix>_<number>`.
        step_format_fixed_length: The number is padded with zeros to this many digits.
        step_name_format: Names and finds steps, instead of these two; see `path.step`.
        save_decision_policy: Decides instead of `save_interval_steps`, `save_on_steps` and
            `should_save_fn`; see `checkpoint_managers`.
        preservation_policy: Decides instead of `max_to_keep`, `keep_period`, `keep_time_interval`
            and `best_fn` which steps stay; see `checkpoint_managers`.
        todelete_subdir: Steps to delete are moved to this directory below that of the run instead.
        cleanup_tmp_directories: Removes what killed saves left behind.
        read_only: Nothing is saved or deleted: options that say otherwise are reset.
        enable_async_checkpointing: Whether `save` returns before the step is written.
        save_root_metadata: Whether the manager's own metadata is saved.
        prevent_write_metrics: Whether metrics are left out of the steps.
        async_options: An `AsyncOptions`.

    `todelete_full_path`, which is for object stores, raises `NotImplementedError`. The remaining
    options have no effect.

    Raises:
        UsageError: Options contradict each other.

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
    step_name_format: NameFormat[Metadata] | None = None
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
    multiprocessing_options: Any = field(default_factory=MultiprocessingOptions)
    should_save_fn: Callable[[int, int | None], bool] | None = None
    file_options: Any = field(default_factory=FileOptions)
    atomicity_options: Any = None
    save_root_metadata: bool = True
    temporary_path_class: Any = None
    save_decision_policy: SaveDecisionPolicy | None = None
    preservation_policy: PreservationPolicy | None = None
    prevent_write_metrics: bool = False
    enable_should_save_is_saving_in_progress_check: bool = True
    enable_per_process_directory_creation: bool = False
    lightweight_initialize: bool = False

    def __post_init__(self) -> None:
        self._check_broadcast()
        if self.best_mode not in ("min", "max"):
            raise tx.UsageError(f'Expected best_mode="min" or "max", got {self.best_mode!r}')
        if self.preservation_policy is None and (self.max_to_keep or 0) < 0:
            raise tx.UsageError(f"Expected max_to_keep=None or 0 or more, got {self.max_to_keep}")
        if self.read_only:
            self._reset_for_reading()
        if self.todelete_full_path is not None:
            if self.todelete_subdir is not None:
                raise tx.UsageError("Expected todelete_subdir= or todelete_full_path=, got both")
            raise make_unmapped_error("todelete_full_path", "todelete_subdir=")
        processes = self.multiprocessing_options
        if self.enable_per_process_directory_creation and processes.primary_host is not None:
            raise tx.UsageError(
                "Expected enable_per_process_directory_creation= only with primary_host=None"
            )
        self.save_on_steps = self.save_on_steps or frozenset()

    def _check_broadcast(self) -> None:
        if self.step_name_format is None:
            return
        name = "single_host_load_and_broadcast"
        theirs = bool(getattr(self.step_name_format, name, False))
        if theirs != bool(self.single_host_load_and_broadcast):
            raise tx.UsageError(
                f"Expected the same {name}= of the options and of step_name_format, got"
                f" {self.single_host_load_and_broadcast} and {theirs}"
            )

    def _reset_for_reading(self) -> None:
        reading: dict[str, Any] = {
            "save_interval_steps": 0,
            "max_to_keep": None,
            "keep_time_interval": None,
            "keep_period": None,
            "create": False,
            "cleanup_tmp_directories": False,
            "save_on_steps": None,
            "todelete_subdir": None,
            "todelete_full_path": None,
            "should_save_fn": None,
        }
        defaults = {name: each.default for name, each in self.__dataclass_fields__.items()}
        for name, value in reading.items():
            given = getattr(self, name)
            if given not in (value, defaults[name]):
                _log.warning("read_only=True: %s=%r has no effect", name, given)
            setattr(self, name, value)

    @property
    def tracks_metrics(self) -> bool:
        """Whether metrics are saved with the steps."""
        used = self.best_fn is not None or self.preservation_policy is not None
        return used and not self.prevent_write_metrics


def check_tuning(owner: str, options: Mapping[str, Any], known: Container[str]) -> None:
    """Refuses options that do not exist, and those that exclude processes from saving.

    Args:
        owner: What takes the options, as the error says it.
        options: Name → value.
        known: The names of those that only tune.

    Raises:
        TypeError: There is no such option.
        NotImplementedError: See `check_processes`.
    """
    for name in options:
        if name not in known:
            raise TypeError(f"{owner} got an unexpected keyword argument '{name}'")
    check_processes(options.get("multiprocessing_options"))


def check_metadata_options(owner: str, options: Any) -> None:
    """Warns that tuples are not recorded as such: a checkpoint of templax records them as lists.

    Args:
        owner: What takes the options, as the warning says it.
        options: A `PyTreeMetadataOptions`, or None.
    """
    if getattr(options, "support_rich_types", False):
        text = "%s: support_rich_types has no effect; restore by a template to get tuples back"
        _log.warning(text, owner)


def check_processes(options: Any) -> None:
    """Refuses options that exclude processes of a job from saving.

    Args:
        options: A `MultiprocessingOptions`, or None.

    Raises:
        NotImplementedError: Process 0 is not the primary one, or not all processes are active.
    """
    for name, usual in (("primary_host", 0), ("active_processes", None)):
        given = getattr(options, name, usual)
        if given != usual:
            import jax  # not needed by most

            if jax.process_count() > 1:
                text = "leave it out: all processes save, and process 0 commits"
                raise make_unmapped_error(f"MultiprocessingOptions({name}={given})", text)


__getattr__ = make_getattr("options.")
