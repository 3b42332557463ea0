"""JAX. Orbax's `CheckpointManager`: the steps of a run, saved, kept, listed and restored."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

import templax as tx

from ..._core.arguments import check_int
from ..._hosts.agreement import join_job
from ..._runs.locks import hold_for_reading
from ..._save.item import Json
from ...formats.orbax import directory
from ...storage.leftovers import TEMPORARY, delete_checkpoint, is_abandoned, remove_directory
from ...storage.local import Local
from ...storage.open import open_source
from ...storage.staging import Staging
from .args import SAVES, Composite, PyTreeRestore, StandardRestore, item_contents, items_in
from .metadata import RootMetadata, StepMetadata, metadata_of
from .options import CheckpointManagerOptions, Facts, unmapped
from .saver import PathLike, Saver, begin_save

_ONLY = "default"
"""Name of the item of a step that has only one, without a name."""

_ROOT_METADATA = "_ROOT_METADATA"

_log = logging.getLogger("templax")


@dataclass(frozen=True)
class _Pending:
    """The step that was saved last, or is being saved.

    Attributes:
        going: The steps that are deleted once it is there, and listed no more.
    """

    step: int
    key: str
    metrics: Any
    going: frozenset[int] = frozenset()


_NONE = _Pending(-1, "", None)


class CheckpointManager(Saver):
    """Saves, keeps, lists and restores the steps of a run, as Orbax's own lays them out.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> root = getfixture("tmp_path")
        >>> import numpy as np
        >>> options = ocp.CheckpointManagerOptions(max_to_keep=2, save_interval_steps=10)
        >>> with ocp.CheckpointManager(root / "run", options=options) as manager:
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
            raise unmapped("handler_registry", "args= of save and restore name what each item is")
        source = open_source(directory)
        # Absolute now: a later chdir must not change where is saved to.
        self._root = os.path.abspath(source.url)
        self._options = options or CheckpointManagerOptions()
        named = item_handlers if checkpointers is None else checkpointers
        self._several = isinstance(named, Mapping) or bool(item_names)
        given: Mapping[str, Any] = {} if named is None else {_ONLY: named}
        given = named if isinstance(named, Mapping) else given
        # What old code names its items by: checkpointers, or their handlers.
        self._handlers = {name: getattr(each, "handler", each) for name, each in given.items()}
        self._waits = not self._options.enable_async_checkpointing
        if checkpointers is not None:
            self._waits = all(each.waits for each in given.values())
        self._pending = _NONE
        self._counted, self._last = False, None
        self._metadata = dict(metadata or {})
        if not self._options.read_only and jax.process_index() == 0:
            if metadata is not None and self._options.save_root_metadata:
                self._save_metadata()
            if self._options.cleanup_tmp_directories:
                self._clean()

    @property
    def directory(self) -> Path:
        """Where the steps are."""
        return Path(self._root)

    # --- which steps there are

    def all_steps(self, read: bool = False) -> list[int]:
        """The steps, ascending, with one that is being saved; listed anew by each call."""
        return sorted(self._now())

    def latest_step(self) -> int | None:
        """The highest step, or None."""
        return max(self._now(), default=None)

    def best_step(self) -> int | None:
        """The best step by `best_fn`, of equal ones the later; the latest if there is no such."""
        if self._options.best_fn is None:
            return self.latest_step()
        metrics = {step: self._metrics(step, key) for step, key in self._now().items()}
        return next(iter(self._options.ranked(metrics)), None)

    def reload(self) -> None:
        """Lists the directory anew for `should_save`; the others always do."""
        self._counted = False

    def _now(self, *, own: bool = False) -> dict[int, str]:
        """Number → name of each step, as they will be when the save that goes on is finished."""
        saving, pending = self.is_saving_in_progress(), self._pending
        found = self._found(self._root, own=own or saving)
        if saving:
            found[pending.step] = pending.key
        failed = not saving and self._saved is not None and self._saved._error is not None
        # Also when it is saved: process 0 of a job may not have deleted them yet.
        going = frozenset[int]() if failed else pending.going
        return {step: key for step, key in found.items() if step not in going}

    def _found(self, root: str, *, own: bool = False) -> dict[int, str]:
        """Number → name of each committed step of this run; there may be others beside it.

        Args:
            root: Where to look.
            own: Only those that the manager could have saved. If not, and there are none, it finds
                steps of any prefix.
        """
        steps = [step for step in directory.list_steps(open_source(root)) if step.committed]
        wanted = self._prefix
        if not (own or wanted or any(directory.step_prefix(s.key) == wanted for s in steps)):
            wanted = directory.step_prefix(steps[-1].key) if steps else ""
        return {s.step: s.key for s in steps if directory.step_prefix(s.key) == wanted}

    @property
    def _prefix(self) -> str:
        """What is before the number in the names of steps that this manager saves."""
        return f"{self._options.step_prefix}_" if self._options.step_prefix else ""

    # --- saving

    def should_save(self, step: int) -> bool:
        """Whether `save` would save this step: it is higher than all others, and due."""
        options = self._options
        if not self._counted:
            self._counted, self._last = True, max(self._now(own=True), default=None)
        if options.read_only or (self._last is not None and self._last >= step):
            return False
        return options.is_due(step, self._last) or self.reached_preemption(step)

    def reached_preemption(self, step: int) -> bool:
        """Whether JAX says that this job is about to be preempted, at the same step everywhere."""
        try:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        except RuntimeError:  # JAX's service for it is switched off
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
        """Saves a step if it is due, then deletes those that need not be kept any more.

        By default both go on in the background, once the values are safe; the next call that saves,
        restores, waits or closes waits for it, and raises what failed.

        Args:
            step: Its number.
            items, save_kwargs: Older spelling of `args`; by item name where the manager was given a
                dict of checkpointers.
            metrics: JSON by which `best_fn` compares steps; saved only if there is one.
            force: Saves whatever `should_save` says; never over another step.
            args: `StandardSave`, `PyTreeSave` or `JsonSave` of the only item, or a `Composite`.
            custom_metadata: JSON that goes with the step.

        Returns:
            Whether it was saved, or is being saved.

        Raises:
            AlreadyExists: The step is there.
            SaveError: As of `templax.save`; or the save before this one failed.
        """
        asked, step = self._asked(items, save_kwargs, args), check_int("step", step, least=0)
        if self._options.read_only or not (force or self.should_save(step)):
            return False
        self.wait_until_finished()
        trees = item_contents(asked, _ONLY)
        kept = metrics if self._options.tracks_metrics else None
        if kept is not None:
            trees["metrics"] = Json(kept, "metrics")
        with join_job(self._root) as job:  # process 0 names and deletes for all of a job
            key = self._make_room(step) if job.index == 0 else ""
            key = job.tell_all("beginning a step", key.encode()).decode()
        going = self._going(step, key, metrics)
        then = (
            self._options.async_options and self._options.async_options.post_finalization_callback
        )

        def after() -> None:
            if job.index == 0:
                self._delete(going)
            if then is not None:
                then()

        path = os.path.join(self._root, key)
        self._saved = begin_save(path, trees, self._waits, custom_metadata, after=after)
        self._pending = _Pending(step, key, kept, frozenset(going))
        self._counted = False
        return True

    def _make_room(self, step: int) -> str:
        """Refuses a step that is there; returns the name of a new one."""
        found = self._found(self._root, own=True)
        if step in found:
            path = os.path.join(self._root, found[step])
            raise tx.AlreadyExists(
                f"Step {step} is there already", file=path, hint=f"delete({step}), then save it"
            )
        return f"{self._prefix}{step:0{self._options.step_format_fixed_length or 0}d}"

    def _asked(self, items: Any, save_kwargs: Any, args: Any) -> Any:
        """What is to be saved, in the newer spelling."""
        if isinstance(items, SAVES) or (args is None and items is None):
            raise tx.UsageError("Expected args=, such as ocp.args.StandardSave(tree), got none")
        if args is None:
            args = self._old(items, save_kwargs, "save_args")
        if self._several and not isinstance(args, Composite):
            raise tx.UsageError(
                f"Expected args=ocp.args.Composite(...), as items have names here, got {args!r}"
            )
        return args

    def _old(self, items: Any, more: Any, kind: str) -> Any:
        """`items` and their keyword arguments as args: by the handlers that the manager has."""
        more = more or {}
        if not self._handlers:
            raise tx.UsageError(f"Expected args=, got items={items!r} and no checkpointer for them")
        if not self._several:
            return getattr(self._handlers[_ONLY], kind)(items, **more)
        for name in items:
            if name not in self._handlers:
                raise tx.UsageError(f"Expected an item that has a checkpointer, got `{name}`")
        return Composite(
            **{
                name: getattr(self._handlers[name], kind)(item, **(more.get(name) or {}))
                for name, item in items.items()
            }
        )

    def _going(self, step: int, key: str, metrics: Any) -> dict[int, str]:
        """The steps that are not kept beside a new one; that may be one of them."""
        found = self._found(self._root, own=True)
        facts = {s: self._facts(name) for s, name in sorted(found.items())}
        facts[step] = Facts(metrics, time.time())
        stays = self._options.stays(facts)
        return {s: name for s, name in {**found, step: key}.items() if s not in stays}

    def _facts(self, key: str) -> Facts:
        source = Local(os.path.join(self._root, key))
        metrics = directory.step_metrics(source) if self._options.tracks_metrics else {}
        saved = os.stat(source.url).st_mtime_ns
        if self._options.keep_time_interval is not None:
            saved = directory.step_metadata(source).get("commit_timestamp_nsecs") or saved
        return Facts(metrics or None, saved / 1e9)

    def _delete(self, steps: Mapping[int, str]) -> None:
        try:
            for step, key in steps.items():
                if not delete_checkpoint(os.path.join(self._root, key)):
                    _log.info("step %d of %s is being read, and stays for now", step, self._root)
        except tx.TemplaxError as error:
            # The step is saved, and training must not end for one too many: the next save tries
            # again.
            _log.warning("steps of %s were not deleted: %s", self._root, error)

    def delete(self, step: int) -> None:
        """Deletes a step.

        Raises:
            NotFound: It is not there.
            SaveError: Somebody restores it; or the file system refuses.
        """
        self.wait_until_finished()
        if self._options.read_only:
            return
        with join_job(self._root) as job:
            job.agree("coming to delete a step")  # no process of this job restores it any more
            if job.index == 0:
                found = self._found(self._root)
                if step not in found:
                    raise tx.NotFound(f"Expected step {step}, found none", file=self._root)
                path = os.path.join(self._root, found[step])
                if not delete_checkpoint(path):
                    raise tx.SaveError("Expected a step that nobody restores", file=path)
            job.tell_all("deleting a step")
        self._counted = False

    def is_saving_in_progress(self) -> bool:
        """Whether a save goes on in the background."""
        return self._saved is not None and not self._saved.done()

    def wait_until_finished(self) -> None:
        """Returns when the last step is saved, and those that were to go are deleted.

        Raises:
            SaveError: It was not saved. Said once.
        """
        try:
            super().wait_until_finished()
        except BaseException:
            self._pending, self._counted = _NONE, False
            raise

    # --- reading

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
            step: None is the latest.
            items, restore_kwargs: Older spelling of `args=PyTreeRestore(items, **restore_kwargs)`;
                by item name where the manager was given a dict of checkpointers.
            directory: Read instead of the manager's own.
            args: `StandardRestore` or `PyTreeRestore` of the only tree, or a `Composite`. None
                restores every item as it was saved.

        Returns:
            The tree, or a `Composite` where several items were asked for.
        """
        self.wait_until_finished()
        path = self._step_directory(step, directory)
        if args is None and (items is not None or restore_kwargs):
            if self._handlers:
                args = self._old(items, restore_kwargs, "restore_args")
            else:
                args = PyTreeRestore(items, **(restore_kwargs or {}))
        elif args is None:
            there = items_in(path)
            several = set(there) - {_ONLY, "metrics"}
            args = Composite(**dict.fromkeys(there)) if several else StandardRestore()
        with hold_for_reading(path):
            return args.restore(path)

    def metrics(self, step: int) -> Any:
        """What a step was saved with as metrics, or None."""
        return self._metrics(step, self._now().get(step, str(step)))

    def _metrics(self, step: int, key: str) -> Any:
        if self.is_saving_in_progress() and step == self._pending.step:
            return self._pending.metrics
        return directory.step_metrics(Local(os.path.join(self._root, key))) or None

    def item_metadata(self, step: int) -> Any:
        """Shapes and dtypes of a step; of several items a `Composite`, None for a JSON item."""
        path = self._step_directory(step, None)
        there = items_in(path)
        if not set(there) - {_ONLY, "metrics"}:
            return metadata_of(path).item_metadata
        return Composite(
            **{
                name: metadata_of(f"{path}/{name}").item_metadata if kind == "pytree" else None
                for name, kind in there.items()
            }
        )

    def metadata(self, step: int | None = None) -> Any:
        """What a step was saved with; or, without one, the manager's own metadata."""
        if step is None:
            return RootMetadata(self._root_metadata())
        source = Local(self._step_directory(step, None))
        custom = directory.step_metadata(source).get("custom_metadata")
        return StepMetadata(self.item_metadata(step), custom, directory.step_metrics(source))

    def _step_directory(self, step: int | None, directory: PathLike | None) -> str:
        root = self._root if directory is None else os.fspath(directory)
        steps = self._found(root)
        if step is None and not steps:
            raise tx.NotFound("Expected a committed step, found none", file=root)
        step = max(steps) if step is None else step
        return f"{root}/{steps.get(step, step)}"

    # --- the directory itself

    def _save_metadata(self) -> None:
        """Once for all: what a manager before this one has saved stays."""
        text = json.dumps({"internal_metadata": {}, "custom_metadata": self._metadata})
        path = os.path.join(self._root, "metadata")
        with suppress(tx.AlreadyExists), Staging(path, overwrite=False) as staging:
            staging.put(_ROOT_METADATA, text.encode())
            staging.commit()

    def _root_metadata(self) -> Any:
        path = os.path.join(self._root, "metadata", _ROOT_METADATA)
        if not os.path.exists(path):
            return self._metadata if self._options.read_only else {}
        return json.loads(Path(path).read_bytes()).get("custom_metadata") or {}

    def _clean(self) -> None:
        for info in Local(self._root).children():
            path = os.path.join(self._root, info.key.rstrip("/"))
            with suppress(OSError, tx.SaveError):  # it is in nobody's way
                if TEMPORARY in info.key and is_abandoned(path):
                    remove_directory(path)
