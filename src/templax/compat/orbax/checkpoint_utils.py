"""Orbax's `checkpoint_utils`: waits for the steps that a training job saves."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import msgspec

from ..._hosts.agreement import open_call
from ..._jax.coordination import process_index
from ..._runs.locks import hold_for_reading
from .path.step import Metadata, NameFormat, latest_step_metadata, standard_name_format
from .unmapped import make_getattr

if TYPE_CHECKING:
    from .leaf_args import PLACEHOLDER, construct_restore_args
    from .saver import PathLike

__all__ = [
    "PLACEHOLDER",
    "checkpoints_iterator",
    "construct_restore_args",
    "get_snapshot_dir_from_step_dir",
    "wait_for_new_checkpoint",
]

_SNAPSHOTS = "_SNAPSHOTS"
"""The directory in that of a run that holds snapshots of the steps being evaluated."""

_log = logging.getLogger("templax")


def get_snapshot_dir_from_step_dir(
    step_dir: PathLike, snapshot_dir: PathLike | None = None
) -> Path:
    """The path of the snapshot of a step.

    Args:
        step_dir: The step.
        snapshot_dir: The directory of the snapshots; by default `_SNAPSHOTS` in that of the run.
    """
    step = Path(os.fspath(step_dir))
    return _find_snapshots(step.parent, snapshot_dir) / step.name


def _find_snapshots(run: PathLike, given: PathLike | None) -> Path:
    return Path(os.path.join(run, _SNAPSHOTS) if given is None else os.fspath(given))


@contextlib.contextmanager
def wait_for_new_checkpoint(
    checkpoint_dir: PathLike,
    *,
    until_step: int | None = None,
    seconds_to_sleep: float = 1,
    timeout: float | None = None,
    timeout_fn: Callable[[], bool] | None = None,
    step_prefix: str | None = None,
    step_format_fixed_length: int | None = None,
    step_name_format: NameFormat[Metadata] | None = None,
    snapshot_dir: PathLike | None = None,
    set_immutable: bool | None = None,
    ignore_snapshot_errors: bool = True,
) -> Generator[int]:
    """Waits for a step, and keeps a snapshot of it while the block runs.

    The snapshot consists of hard links where the file system has them, so it takes no space, and
    stays if the step is deleted meanwhile. All processes of a job call this, and process 0
    watches the directory.

    Args:
        checkpoint_dir: The directory of the run, which may not exist yet.
        until_step: Waits for a step of at least this number; None for any.
        seconds_to_sleep: Seconds to wait before looking again.
        timeout: Seconds after which to give up; None for never.
        timeout_fn: Called after the timeout; if it returns False, the wait continues.
        step_prefix, step_format_fixed_length, step_name_format: How the steps are named; see
            `CheckpointManagerOptions`.
        snapshot_dir: See `get_snapshot_dir_from_step_dir`.
        set_immutable: No effect.
        ignore_snapshot_errors: Whether a step that is deleted before its snapshot is made is
            yielded all the same, with a warning. If not, `FileNotFoundError` is raised.

    Yields:
        The latest step, or -1 after the timeout.

    Example:
        >>> import tempfile, numpy as np
        >>> from templax.compat import orbax as ocp
        >>> root = tempfile.mkdtemp()
        >>> with ocp.CheckpointManager(root) as manager:
        ...     saved = manager.save(3, args=ocp.args.StandardSave({"w": np.ones(3)}))
        >>> with ocp.checkpoint_utils.wait_for_new_checkpoint(root, timeout=10) as step:
        ...     step
        3
    """
    names = step_name_format or standard_name_format(
        step_prefix=step_prefix, step_format_fixed_length=step_format_fixed_length
    )
    snapshots = _find_snapshots(checkpoint_dir, snapshot_dir)

    def look() -> bytes:
        until = -1 if until_step is None else until_step
        give_up = _make_timeout(seconds_to_sleep, timeout, timeout_fn)
        found = _find_step(checkpoint_dir, names, until)
        while found is None and not give_up():
            time.sleep(seconds_to_sleep)
            found = _find_step(checkpoint_dir, names, until)
        if found is None:
            return msgspec.msgpack.encode((-1, ""))
        name = os.path.basename(os.fspath(found.path))
        with _warn_if_missing(f"no snapshot of step {found.step}", ignore_snapshot_errors):
            _link_step(os.fspath(found.path), os.path.join(snapshots, name))
        return msgspec.msgpack.encode((found.step, name))

    with open_call("waiting for a step", os.fspath(checkpoint_dir), strict=False) as call:
        told = call.join(make_reply=look)
    step, name = msgspec.msgpack.decode(told, type=tuple[int, str])
    try:
        yield step
    finally:
        if name and call.index == 0:
            with _warn_if_missing(f"no snapshot of step {step}", ignore_snapshot_errors):
                shutil.rmtree(os.path.join(snapshots, name))


class WaitKeywords(TypedDict, total=False):
    """The keyword arguments of `wait_for_new_checkpoint` that hold for all steps."""

    seconds_to_sleep: float
    timeout: float | None
    timeout_fn: Callable[[], bool] | None
    step_prefix: str | None
    step_format_fixed_length: int | None
    step_name_format: NameFormat[Metadata] | None
    snapshot_dir: PathLike | None
    set_immutable: bool | None
    ignore_snapshot_errors: bool


def checkpoints_iterator(
    checkpoint_dir: PathLike,
    *,
    min_interval_secs: float = 0,
    **waiting: Unpack[WaitKeywords],
) -> Iterator[int]:
    """Yields the latest step whenever there is a newer one, for an evaluation beside training.

    Steps that come and go while the loop's body runs are skipped. A snapshot of the step is kept
    meanwhile, as in `wait_for_new_checkpoint`.

    Snapshots that are there when the loop begins are removed, as a killed loop leaves them; the log
    names them. Of two loops over one run, each therefore needs a `snapshot_dir` of its own.

    Args:
        checkpoint_dir: The directory of the run, which may not exist yet.
        min_interval_secs: The least number of seconds between two steps.
        **waiting: All keyword arguments of `wait_for_new_checkpoint` except `until_step`. The
            iterator ends after `timeout` seconds without a new step.

    Example:
        >>> import tempfile, numpy as np
        >>> from templax.compat import orbax as ocp
        >>> root = tempfile.mkdtemp()
        >>> with ocp.CheckpointManager(root) as manager:
        ...     saved = manager.save(3, args=ocp.args.StandardSave({"w": np.ones(3)}))
        >>> list(ocp.checkpoint_utils.checkpoints_iterator(root, timeout=0))
        [3]
    """
    if process_index() == 0:  # it makes and removes the snapshots of all
        _remove_left(
            _find_snapshots(checkpoint_dir, waiting.get("snapshot_dir")),
            waiting.get("ignore_snapshot_errors", True),
        )
    timeout_fn = waiting.get("timeout_fn")
    until = None
    while True:
        with wait_for_new_checkpoint(checkpoint_dir, until_step=until, **waiting) as step:
            if step == -1:
                if timeout_fn is None or timeout_fn():
                    return
                continue
            began = time.monotonic()
            yield step
            until = step + 1
        time.sleep(max(0.0, began + min_interval_secs - time.monotonic()))


def _remove_left(snapshots: Path, ignore: bool) -> None:
    """Removes the snapshots that are there, and logs each."""
    for left in snapshots.iterdir() if snapshots.is_dir() else ():
        _log.warning("removing a snapshot that another loop made: %s", left)
        with _warn_if_missing(f"no snapshot {left}", ignore):
            shutil.rmtree(left)


def _find_step(directory: PathLike, names: NameFormat[Metadata], until: int) -> Metadata | None:
    if not os.path.isdir(directory):
        return None
    found = latest_step_metadata(directory, names)
    return None if found is None or found.step < until else found


def _make_timeout(
    sleep_s: float, timeout: float | None, timeout_fn: Callable[[], bool] | None
) -> Callable[[], bool]:
    """Tells whether to give up rather than to sleep once more."""
    end = None if timeout is None else time.monotonic() + timeout

    def is_over() -> bool:
        late = end is not None and time.monotonic() + sleep_s > end
        return late and (timeout_fn is None or bool(timeout_fn()))

    return is_over


@contextlib.contextmanager
def _warn_if_missing(what: str, ignore: bool) -> Generator[None]:
    try:
        yield
    except FileNotFoundError as error:
        if not ignore:
            raise
        _log.warning("%s, as it was deleted meanwhile: %s", what, error)


def _link_step(step: str, snapshot: str) -> None:
    """Makes a snapshot of a step, unless there is one."""
    if os.path.exists(snapshot):
        return
    try:
        with hold_for_reading(step):
            shutil.copytree(step, snapshot, copy_function=_link_file)
    except shutil.Error as error:
        if os.path.isdir(step):
            raise
        raise FileNotFoundError(f"{step} was deleted") from error


def _link_file(source: str, target: str) -> Any:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)
    return target


__getattr__ = make_getattr(
    "checkpoint_utils.",
    {"PLACEHOLDER": "leaf_args", "construct_restore_args": "leaf_args"},
)
