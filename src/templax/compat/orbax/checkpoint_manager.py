"""JAX. Orbax's `CheckpointManager`: saves, keeps, lists and restores the steps of a run."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import msgspec

import templax as tx

from ..._core.arguments import check_int
from ..._hosts.agreement import open_call
from ..._hosts.messages import read_number
from ..._jax.versions import record_scalar
from ..._restore.together import (
    await_checkpoint,
    do_together,
    identify_checkpoint,
    open_restore,
)
from ..._runs.arguments import read_step
from ..._runs.locks import hold_for_reading
from ..._save.options import SaveOptions, make_options
from ..._save.result import PendingSave
from ...formats.orbax.step_metadata import read_metrics
from ...storage.local import Local
from . import multihost
from .checkpoint_managers.save_decision_policy import DecisionContext
from .logging.step_statistics import RestoreStepStatistics, SaveStepStatistics
from .logging.stopwatch import Stopwatch
from .metadata.checkpoint import RootMetadata, StepMetadata
from .options import CheckpointManagerOptions, check_processes
from .run_directory import (
    NO_STEP,
    LatestStep,
    find_root,
    read_root_metadata,
    remove_leftovers,
    write_root_metadata,
)
from .run_items import METRICS, ONLY_ITEM, RunItems
from .run_steps import RunSteps, StepAlreadyExistsError
from .save_failure import SaveFailure
from .saver import PathLike, Saver
from .step_policies import (
    StepInfo,
    find_best,
    make_preservation_policy,
    make_save_policy,
    saves_continuously,
)
from .unmapped import make_getattr

DEFAULT_ITEM_NAME = ONLY_ITEM
METRIC_ITEM_NAME = METRICS
METADATA_ITEM_NAME = "metadata"
RESERVED_ITEM_NAMES: list[str] = []

__all__ = [
    "DEFAULT_ITEM_NAME",
    "METADATA_ITEM_NAME",
    "METRIC_ITEM_NAME",
    "RESERVED_ITEM_NAMES",
    "CheckpointManager",
    "CheckpointManagerOptions",
    "RootMetadata",
    "StepAlreadyExistsError",
    "StepMetadata",
]


class CheckpointManager(Saver):
    """Saves, keeps, lists and restores the steps of a run, in the layout of Orbax's own manager.

    Example:
        >>> import os, tempfile, numpy as np
        >>> from templax.compat import orbax as ocp
        >>> root = os.path.join(tempfile.mkdtemp(), "run")
        >>> options = ocp.CheckpointManagerOptions(max_to_keep=2, save_interval_steps=10)
        >>> with ocp.CheckpointManager(root, options=options) as manager:
        ...     for step in range(31):
        ...         saved = manager.save(step, args=ocp.args.StandardSave({"w": np.ones(3)}))
        >>> manager.all_steps(), manager.latest_step(), sorted(manager.restore(30))
        ([20, 30], 30, ['w'])
    """

    def __init__(
        self,
        directory: PathLike,
        checkpointers: Any = None,
        options: CheckpointManagerOptions | None = None,
        metadata: Mapping[str, Any] | None = None,
        item_names: Iterable[str] | None = None,
        item_handlers: Any = None,
        logger: Any = None,
        handler_registry: Any = None,
    ) -> None:
        """Makes a manager; nothing is read or created yet, unless `options` say so.

        Args:
            directory: The directory of the run.
            checkpointers, item_handlers, handler_registry: What saves and restores the items.
            options: See `CheckpointManagerOptions`.
            metadata: JSON that is stored with the run, unless an earlier manager has stored some.
            item_names: The names of the items. If given, no others are saved.
            logger: Gets an entry of each save and restore; see `logging`.

        Raises:
            UsageError: Arguments or options contradict each other.
        """
        self._root = find_root(directory)
        self._options = options or CheckpointManagerOptions()
        check_processes(self._options.multiprocessing_options)
        self._items = RunItems(
            checkpointers,
            item_names,
            item_handlers,
            handler_registry,
            async_options=self._options.async_options,
        )
        background = self._options.enable_async_checkpointing
        self._waits = self._items.waits if checkpointers is not None else not background
        self._save_policy = make_save_policy(self._options)
        self._preservation_policy = make_preservation_policy(self._options)
        self._steps = RunSteps(self._root, self._options)
        self._logger = logger
        self._latest = NO_STEP
        self._saved: tx.Saved | None = None
        # The steps before the next save, listed only once until then.
        self._previous: list[StepInfo] | None = None
        self._failure = SaveFailure()
        self._metadata = dict(metadata or {})
        if not self._options.read_only and jax.process_index() == 0:
            self._maybe_save_root_metadata(metadata)
            if self._options.cleanup_tmp_directories:
                remove_leftovers(self._root)
        record_scalar(
            "/jax/orbax/checkpoint_manager/continuous_checkpointing_enabled",
            int(saves_continuously(self._save_policy)),
        )

    def _maybe_save_root_metadata(self, custom_metadata: Mapping[str, Any] | None) -> None:
        """Saves the metadata of the run, on process 0; Orbax's name, for subclasses and tests."""
        if custom_metadata is not None and self._options.save_root_metadata:
            write_root_metadata(self._root, custom_metadata)

    @property
    def directory(self) -> Path:
        """The directory of the steps."""
        return Path(self._root)

    @property
    def _directory(self) -> Path:  # some programs read the private name
        return self.directory

    # --- listing

    def all_steps(self, read: bool = False) -> list[int]:
        """The steps, ascending, including one that is being saved. Lists the directory again."""
        return sorted(self._list_steps())

    def latest_step(self) -> int | None:
        """The highest step, or None."""
        return max(self._list_steps(), default=None)

    def best_step(self) -> int | None:
        """The best step by `best_fn`, the later one if several tie. Without it, the latest step."""
        if self._options.best_fn is None:
            return self.latest_step()
        return find_best(self._options, self._checkpoints)

    def reload(self) -> None:
        """Lists the directory again. Processes of a job otherwise do so only before a save."""
        self._previous = None
        self._steps.forget()

    def _list_steps(self) -> dict[int, str]:
        """Number → name of each step, as they will be once the save in progress is finished."""
        saving, latest = self.is_saving_in_progress(), self._latest
        found = self._steps.list_committed()
        if saving:
            found[latest.step] = latest.key
        failed = self._pending is not None and self._pending.has_failed()
        # Left out even after the save: process 0 of a job may not have deleted them yet.
        replaced = frozenset[int]() if failed else latest.replaced
        return {step: key for step, key in found.items() if step not in replaced}

    @property
    def _checkpoints(self) -> list[StepInfo]:
        """The steps that policies see, ascending."""
        return self._steps.infos.look_up(self._list_steps())

    # --- saving

    def should_save(self, step: int) -> bool:
        """Whether `save` would save this step: it is higher than all others, and due."""
        if self._options.read_only:
            return False
        if self._previous is None:
            self._previous = self._checkpoints
        latest = self._previous[-1].step if self._previous else None
        if type(self).latest_step is not CheckpointManager.latest_step:
            latest = self.latest_step()
        if latest is not None and latest >= step:
            return False
        asked = self._options.enable_should_save_is_saving_in_progress_check
        context = DecisionContext(
            is_saving_in_progress=asked and self.is_saving_in_progress(),
            reached_preemption=self.reached_preemption(step),
            multiprocessing_options=self._options.multiprocessing_options,
            directory=self._root,
        )
        candidate = self._make_info(step, "", None)
        policy = self._save_policy
        return bool(policy.should_save(candidate, previous_steps=self._previous, context=context))

    def _make_info(self, step: int, key: str, metrics: Any) -> StepInfo:
        now = datetime.datetime.now(tz=datetime.UTC)
        return StepInfo(step, os.path.join(self._root, key), time=now, metrics=metrics)

    def reached_preemption(self, step: int) -> bool:
        """Whether JAX announces a preemption of this job, at the same step on every process."""
        return multihost.reached_preemption(step)

    def save(
        self,
        step: int,
        items: Any = None,
        save_kwargs: Any = None,
        metrics: Any = None,
        force: bool | None = False,
        args: Any = None,
        custom_metadata: Mapping[str, Any] | None = None,
    ) -> bool:
        """Saves a step if it is due, and then deletes the steps that need not be kept any more.

        By default both happen in the background once the values are safe. The next call that saves,
        restores, waits or closes waits for them, and raises the error if the save failed.

        Args:
            step: The step number.
            items, save_kwargs: The older spelling of `args`; by item name if the manager was given
                a dict of checkpointers.
            metrics: JSON that steps are compared by; saved only if there is a `best_fn` or a
                `preservation_policy`.
            force: Saves regardless of `should_save`, but never over an existing step.
            args: `StandardSave`, `PyTreeSave` or `JsonSave` of the only item, or a `Composite`.
            custom_metadata: JSON that is stored with the step.

        Returns:
            Whether the step was saved, or is being saved.

        Raises:
            StepAlreadyExistsError: The step exists.
            SaveError: See `templax.save`; also raised if the previous save failed.
        """
        number = read_step(step)
        due = force or number is None or self.should_save(number)
        if self._options.read_only or not due:
            self._items.read_save_args(items, save_kwargs, args)
            return False
        watch = Stopwatch(SaveStepStatistics(directory=self._root, synchronous=self._waits))
        with watch.measure("checkpoint_manager_blocking"):
            self._save(watch, step, items, save_kwargs, metrics, args, custom_metadata)
        preempted = self._logger is not None and self.reached_preemption(step)
        heard = time.time() if preempted else None
        watch.log(
            self._logger, step=step, reached_preemption=preempted, preemption_received_at=heard
        )
        return True

    def _save(
        self,
        watch: Stopwatch,
        step: int,
        items: Any,
        save_kwargs: Any,
        metrics: Any,
        args: Any,
        custom_metadata: Mapping[str, Any] | None,
    ) -> None:
        call = open_call("saving", self._root, step=read_step(step))
        with call.report_errors():  # arguments included: the others wait for this step
            args = self._items.read_save_args(items, save_kwargs, args)
            step = check_int("step", step, minimum=0)
            with watch.measure("wait_for_prev"):
                earlier = self._find_earlier_failure()
            kept = metrics if self._options.tracks_metrics else None
            contents = self._items.make_contents(args, kept, background=not self._waits)
            options = self._make_save_options(args, custom_metadata)
            key = self._steps.name_step(step)
            info = self._make_info(step, key, metrics)
            with watch.measure("get_old_steps"):
                policy = self._preservation_policy
                replaced = self._steps.select_replaced(policy, info, key)
            with watch.measure("checkpointer_blocking"), self._failure.mark_raised(earlier):
                self._saved = self._steps.start_save(
                    call, info, contents, replaced, options, wait=self._waits, earlier=earlier
                )
        self._failure.forget()
        self._pending, self._previous = PendingSave(self._saved), None
        self._latest = LatestStep(step, key, kept, frozenset(replaced))
        self._steps.infos.add(key, info)

    def _make_save_options(self, args: Any, metadata: Mapping[str, Any] | None) -> SaveOptions:
        return make_options(metadata=metadata)

    def delete(self, step: int) -> None:
        """Deletes a step, or moves it to `todelete_subdir`.

        Raises:
            NotFound: The step does not exist.
            SaveError: Somebody is restoring it; or the file system refuses.
        """
        self.wait_until_finished()
        if self._options.read_only:
            return
        with open_call("deleting", self._root, step=step) as call:
            call.join()  # waits until no process of this job restores it
            self._steps.delete(call, step)
        self._previous = None

    def close(self) -> None:
        """Waits like `wait_until_finished`, and closes the handlers of the items."""
        try:
            super().close()
        finally:
            self._items.close()

    def is_saving_in_progress(self) -> bool:
        """Whether a save is in progress in the background."""
        return self._pending is not None and self._pending.is_in_progress()

    def wait_until_finished(self) -> None:
        """Returns once the latest step is saved and the steps that it replaces are deleted.

        Raises:
            SaveError: The step was not saved. Raised once in each thread, until the next save.
        """
        error = self._find_failure()
        if error is not None:
            self._failure.mark_told()
            raise error

    def _find_failure(self) -> BaseException | None:
        """Waits for the save in progress; its error, if this thread has not been told of it."""
        if self._failure.learn(self._pending):
            self._latest, self._previous = NO_STEP, None
        return self._failure.find_untold()

    def _find_earlier_failure(self) -> tx.SaveError | None:
        """Waits for the save in progress; its error, if no call of this thread has raised it."""
        error = self._find_failure()
        if error is None or isinstance(error, tx.SaveError):
            return error
        self.wait_until_finished()  # raises any other error as it is
        return None

    # --- restoring

    def restore(
        self,
        step: int | None = None,
        items: Any = None,
        restore_kwargs: Any = None,
        directory: PathLike | None = None,
        args: Any = None,
    ) -> Any:
        """Restores one step.

        Args:
            step: The step number; None is the latest.
            items, restore_kwargs: The older spelling of
                `args=PyTreeRestore(items, **restore_kwargs)`; by item name if the manager was given
                a dict of checkpointers.
            directory: The directory to read instead of the manager's own.
            args: `StandardRestore` or `PyTreeRestore` of the only tree, or a `Composite`. None
                restores every item as it was saved.

        Returns:
            The tree, or a `Composite` if several items were asked for.
        """
        root = self._root if directory is None else os.fspath(directory)
        watch = Stopwatch(RestoreStepStatistics(directory=root))
        with watch.measure("checkpoint_manager"), open_restore(root, step=step) as call:
            self.wait_until_finished()

            def choose() -> bytes:
                path = self._steps.find_path(step, directory)
                identity = identify_checkpoint(path) if call.count > 1 else b""
                return msgspec.msgpack.encode((path, identity))

            chosen = call.join(make_reply=choose)
            path, identity = msgspec.msgpack.decode(chosen, type=tuple[str, bytes])

            def restore() -> Any:
                await_checkpoint(call, path, identity)
                return self._restore_from(path, items, restore_kwargs, args)

            with watch.measure("checkpointer"):
                restored = do_together(call, "restoring", restore)
        watch.log(self._logger, step=read_number(path) if step is None else step)
        return restored

    def _restore_from(self, path: str, items: Any, restore_kwargs: Any, args: Any) -> Any:
        with hold_for_reading(path):
            return self._items.restore(path, items, restore_kwargs, args)

    def metrics(self, step: int) -> Any:
        """The metrics that a step was saved with, or None."""
        if self.is_saving_in_progress() and step == self._latest.step:
            return self._latest.metrics
        path = os.path.join(self._root, self._list_steps().get(step, str(step)))
        return read_metrics(Local(path)) or None

    def item_metadata(self, step: int) -> Any:
        """The shapes and dtypes of a step; a `Composite` of several items, None for a JSON item."""
        return self.metadata(step).item_metadata

    def metadata(self, step: int | None = None) -> Any:
        """The metadata of a step; without a step, that of the manager itself."""
        if step is None:
            saved = read_root_metadata(self._root)
            unsaved = self._metadata if self._options.read_only else {}
            return RootMetadata(custom_metadata=unsaved if saved is None else saved)
        self.wait_until_finished()
        path = self._steps.find_path(step, None)
        found = self._items.read_metadata(path)
        found.metrics = read_metrics(Local(path))
        return found


_HOMES = {
    "AbstractCheckpointManager": "abstract_checkpoint_manager",
    "AsyncCheckpointer": "checkpointers",
    "AsyncOptions": "options",
    "Checkpointer": "checkpointers",
    "FileOptions": "options",
    "MultiprocessingOptions": "options",
}
"""The other names in Orbax's module, and the modules that define them here."""

__getattr__ = make_getattr("checkpoint_manager.", _HOMES)
