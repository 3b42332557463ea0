"""JAX. Orbax's `CheckpointManager`: saves, keeps, lists and restores the steps of a run."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import msgspec
from jax.experimental import multihost_utils

import templax as tx

from ..._core.arguments import check_int
from ..._hosts.agreement import Hosts, open_call
from ..._restore.together import (
    await_checkpoint,
    do_together,
    identify_checkpoint,
    open_restore,
)
from ..._runs.agreed_steps import AgreedSteps
from ..._runs.arguments import read_step
from ..._runs.locks import hold_for_reading
from ..._save.background import start_save
from ..._save.destination import Destination
from ..._save.item import Json, check_item_names
from ..._save.options import make_options
from ..._save.result import PendingSave
from ...formats.orbax.step_metadata import read_metrics, read_step_metadata
from ...storage.leftovers import delete_checkpoint
from ...storage.local import Local
from .args import (
    SAVES,
    Composite,
    PyTreeRestore,
    StandardRestore,
    check_restore_args,
    item_contents,
    list_item_kinds,
)
from .legacy import ONLY_ITEM, Handlers
from .metadata.checkpoint import RootMetadata, make_step_metadata, read_metadata
from .options import CheckpointManagerOptions
from .run_directory import (
    NO_STEP,
    LatestStep,
    delete_steps,
    find_committed,
    find_root,
    read_root_metadata,
    refuse_existing,
    remove_leftovers,
    select_replaced,
    write_root_metadata,
)
from .saver import PathLike, Saver
from .unmapped import unmapped_argument, unmapped_attribute

_log = logging.getLogger("templax")


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
        if handler_registry is not None:
            raise unmapped_argument(
                "handler_registry", "args= of save and restore name what each item is"
            )
        self._root = find_root(directory)
        self._options = options or CheckpointManagerOptions()
        self._handlers = Handlers(item_handlers if checkpointers is None else checkpointers)
        self._several = self._handlers.by_name or bool(item_names)
        self._waits = not self._options.enable_async_checkpointing
        if checkpointers is not None:
            named = isinstance(checkpointers, Mapping)
            each_of = checkpointers.values() if named else (checkpointers,)
            self._waits = all(each.waits for each in each_of)
        self._latest = NO_STEP
        # The latest step for `should_save`, listed only once between two saves.
        self._latest_known, self._latest_listed = False, None
        self._metadata = dict(metadata or {})
        self._own_steps, self._all_steps = (
            AgreedSteps(self._root, functools.partial(self._find_on_disk, own=own), what=what)
            for own, what in ((True, "steps of this manager"), (False, "steps"))
        )
        if not self._options.read_only and jax.process_index() == 0:
            if metadata is not None and self._options.save_root_metadata:
                write_root_metadata(self._root, self._metadata)
            if self._options.cleanup_tmp_directories:
                remove_leftovers(self._root)

    @property
    def directory(self) -> Path:
        """The directory of the steps."""
        return Path(self._root)

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
        metrics: dict[int, Any] = {}
        for step, key in self._list_steps().items():
            try:
                metrics[step] = self._read_metrics(step, key)
            except tx.CheckpointError as error:
                text = "step %d of %s is not compared with others: %s"
                _log.warning(text, step, self._root, error)
        return next(iter(self._options.rank_by_metrics(metrics)), None)

    def reload(self) -> None:
        """Lists the directory again, which processes of a job else do only before they save."""
        self._latest_known = False
        for steps in (self._own_steps, self._all_steps):
            steps.forget()

    def _list_steps(self, *, own: bool = False) -> dict[int, str]:
        """Number → name of each step, as they will be once the save in progress is finished."""
        saving, latest = self.is_saving_in_progress(), self._latest
        found = self._find_committed(own=own or saving)
        if saving:
            found[latest.step] = latest.key
        failed = self._pending is not None and self._pending.has_failed()
        # Left out even after the save: process 0 of a job may not have deleted them yet.
        replaced = frozenset[int]() if failed else latest.replaced
        return {step: key for step, key in found.items() if step not in replaced}

    def _find_committed(self, *, own: bool = False) -> dict[int, str]:
        return (self._own_steps if own else self._all_steps).list_committed()

    def _find_on_disk(self, *, own: bool) -> dict[int, str]:
        return find_committed(self._root, self._prefix, own=own)

    @property
    def _prefix(self) -> str:
        """The part before the number in the names of the steps that this manager saves."""
        return f"{self._options.step_prefix}_" if self._options.step_prefix else ""

    # --- saving

    def should_save(self, step: int) -> bool:
        """Whether `save` would save this step: it is due, and higher than all others."""
        options = self._options
        if not self._latest_known:
            self._latest_known, self._latest_listed = (
                True,
                max(self._list_steps(own=True), default=None),
            )
        if options.read_only or (self._latest_listed is not None and self._latest_listed >= step):
            return False
        return options.is_due(step, self._latest_listed) or self.reached_preemption(step)

    def reached_preemption(self, step: int) -> bool:
        """Whether JAX announces a preemption of this job, at the same step on every process."""
        try:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        except RuntimeError:  # JAX's preemption service is disabled
            return False

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
            metrics: JSON that `best_fn` compares steps by; saved only if there is a `best_fn`.
            force: Saves regardless of `should_save`, but never over an existing step.
            args: `StandardSave`, `PyTreeSave` or `JsonSave` of the only item, or a `Composite`.
            custom_metadata: JSON that is stored with the step.

        Returns:
            Whether the step was saved, or is being saved.

        Raises:
            AlreadyExists: The step exists.
            SaveError: See `templax.save`; also raised if the previous save failed.
        """
        number = read_step(step)
        due = force or number is None or self.should_save(number)
        if self._options.read_only or not due:
            self._check_args(items, save_kwargs, args)
            return False
        call = open_call("saving", self._root, step=number)
        with call.report_errors():  # arguments included: the others wait for this step
            args = self._check_args(items, save_kwargs, args)
            step = check_int("step", step, minimum=0)
            earlier = self._find_earlier_failure()
            contents = item_contents(args, ONLY_ITEM)
            saved_metrics = metrics if self._options.tracks_metrics else None
            check_item_names(contents)
            if saved_metrics is not None:
                if any(name.casefold() == "metrics" for name in contents):
                    raise tx.UsageError(
                        "Expected items of other names than `metrics`, got metrics="
                    )
                contents["metrics"] = Json(saved_metrics, "metrics")
            key = self._name_step(step)
            path = os.path.join(self._root, key)
            replaced = select_replaced(
                self._root, self._options, self._find_committed(own=True), (step, key), metrics
            )

            def decide() -> Destination:  # process 0, for the whole job
                refuse_existing(self._root, self._find_on_disk(own=True), step)
                return Destination(path)

            def after(call: Hosts) -> None:
                if call.index == 0:
                    delete_steps(self._root, replaced)
                self._share_steps(call)
                async_options = self._options.async_options
                if async_options and async_options.post_finalization_callback is not None:
                    async_options.post_finalization_callback()

            options = replace(make_options(metadata=custom_metadata), after=after)
            try:
                saved = start_save(
                    call, path, contents, options, decide, wait=self._waits, earlier=earlier
                )
            except tx.SaveError as error:
                if error is earlier and self._pending is not None:
                    self._pending.forget()
                raise
        self._pending = PendingSave(saved)
        self._latest = LatestStep(step, key, saved_metrics, frozenset(replaced))
        self._latest_known = False
        return True

    def _find_earlier_failure(self) -> tx.SaveError | None:
        """Waits for the save in progress; its error, if no call has raised it."""
        error = self._pending and self._pending.find_error()
        if not isinstance(error, tx.SaveError):
            self.wait_until_finished()  # raises any other error as it is
            return None
        self._latest, self._latest_known = NO_STEP, False
        return error

    def _share_steps(self, call: Hosts) -> None:
        for steps in (self._own_steps, self._all_steps):
            steps.share(call)

    def _name_step(self, step: int) -> str:
        """The directory name of a new step."""
        return f"{self._prefix}{step:0{self._options.step_format_fixed_length or 0}d}"

    def _check_args(self, items: Any, save_kwargs: Any, args: Any) -> Any:
        """The args of a save, translated from the older spelling if need be."""
        if isinstance(items, SAVES) or (args is None and items is None):
            raise tx.UsageError("Expected args=, such as ocp.args.StandardSave(tree), got none")
        if args is None:
            args = self._handlers.translate(items, save_kwargs, "save", several=self._several)
        if self._several and not isinstance(args, Composite):
            raise tx.UsageError(
                f"Expected args=ocp.args.Composite(...), as items have names here, got {args!r}"
            )
        return args

    def delete(self, step: int) -> None:
        """Deletes a step.

        Raises:
            NotFound: The step does not exist.
            SaveError: Somebody is restoring it; or the file system refuses.
        """
        self.wait_until_finished()
        if self._options.read_only:
            return
        with open_call("deleting", self._root, step=step) as call:
            call.join()  # waits until no process of this job restores it
            if call.index == 0:
                found = self._find_on_disk(own=False)
                if step not in found:
                    raise tx.NotFound(f"Expected step {step}, found none", file=self._root)
                path = os.path.join(self._root, found[step])
                if not delete_checkpoint(path):
                    raise tx.SaveError("Expected a step that nobody is restoring", file=path)
            call.tell_all("deleting a step")
            self._share_steps(call)
        self._latest_known = False

    def is_saving_in_progress(self) -> bool:
        """Whether a save is in progress in the background."""
        return self._pending is not None and self._pending.is_in_progress()

    def wait_until_finished(self) -> None:
        """Returns once the latest step is saved and the steps that it replaces are deleted.

        Raises:
            SaveError: The step was not saved. Raised by one call only.
        """
        try:
            super().wait_until_finished()
        except BaseException:
            self._latest, self._latest_known = NO_STEP, False
            raise

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
        with open_restore(root, step=step) as call:
            self.wait_until_finished()

            def choose() -> bytes:
                path = self._find_step(step, directory)
                identity = identify_checkpoint(path) if call.count > 1 else b""
                return msgspec.msgpack.encode((path, identity))

            chosen = call.join(make_reply=choose)
            path, identity = msgspec.msgpack.decode(chosen, type=tuple[str, bytes])

            def restore() -> Any:
                await_checkpoint(call, path, identity)
                return self._restore_from(path, items, restore_kwargs, args)

            return do_together(call, "restoring", restore)

    def _restore_from(self, path: str, items: Any, restore_kwargs: Any, args: Any) -> Any:
        if args is None and (items is not None or restore_kwargs):
            if self._handlers:
                args = self._handlers.translate(
                    items, restore_kwargs, "restore", several=self._several
                )
            else:
                args = PyTreeRestore(items, **(restore_kwargs or {}))
        elif args is None:
            kinds = list_item_kinds(path)
            several = set(kinds) - {ONLY_ITEM, "metrics"}
            args = Composite(**dict.fromkeys(kinds)) if several else StandardRestore()
        with hold_for_reading(path):
            return check_restore_args(args).restore(path)

    def metrics(self, step: int) -> Any:
        """The metrics that a step was saved with, or None."""
        return self._read_metrics(step, self._list_steps().get(step, str(step)))

    def _read_metrics(self, step: int, key: str) -> Any:
        if self.is_saving_in_progress() and step == self._latest.step:
            return self._latest.metrics
        return read_metrics(Local(os.path.join(self._root, key))) or None

    def item_metadata(self, step: int) -> Any:
        """The shapes and dtypes of a step; a `Composite` of several items, None for a JSON item."""
        path = self._find_step(step, None)
        kinds = list_item_kinds(path)
        if not set(kinds) - {ONLY_ITEM, "metrics"}:
            return read_metadata(path).item_metadata
        return Composite(
            **{
                name: read_metadata(f"{path}/{name}").item_metadata if kind == "pytree" else None
                for name, kind in kinds.items()
            }
        )

    def metadata(self, step: int | None = None) -> Any:
        """The metadata of a step; without a step, that of the manager itself."""
        if step is None:
            saved = read_root_metadata(self._root)
            unsaved = self._metadata if self._options.read_only else {}
            return RootMetadata(custom_metadata=unsaved if saved is None else saved)
        source = Local(self._find_step(step, None))
        found = make_step_metadata(read_step_metadata(source), self.item_metadata(step))
        found.metrics = read_metrics(source)
        return found

    def _find_step(self, step: int | None, directory: PathLike | None) -> str:
        self.wait_until_finished()
        root = self._root if directory is None else os.fspath(directory)
        steps = find_committed(root, self._prefix, own=False)
        if step is None and not steps:
            raise tx.NotFound("Expected a committed step, found none", file=root)
        step = max(steps) if step is None else step
        return f"{root}/{steps.get(step, step)}"


__getattr__ = unmapped_attribute("checkpoint_manager.")
