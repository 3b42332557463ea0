"""The manager of a run: it saves steps, deletes those that no rule keeps, and restores them."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Unpack

from .._catalog.catalog import Catalog
from .._core.arguments import PyTree
from .._core.progress import Progress
from .._core.text import list_names, quote_text
from .._restore import api
from .._restore.options import RestoreKeywords, RestoreOptions
from ..errors import NotFound, SaveError, TemplaxError, UsageError
from ..formats.orbax.directory import (
    Step,
    examine_directory,
    is_temporary,
    step_metrics,
    step_name,
    step_prefix,
)
from ..storage.leftovers import delete_checkpoint, find_abandoned_in, remove_directory
from ..storage.local import Local
from ..storage.memory import Memory
from ..storage.open import open_source
from .arguments import check_metrics, check_step
from .locks import WriterLock, hold_for_reading
from .retention import Keep, as_keep, rank_steps, select_kept

if TYPE_CHECKING:
    from .._save.result import PendingSave, Saved

_ITEM = re.compile(r"[^/.\0][^/\0]*")
"""The name of one directory that is not hidden."""

_log = logging.getLogger("templax")


class Manager:
    """A directory of steps that one program saves to and any number of programs restore from.

    The layout is that of Orbax's `CheckpointManager`: each lists and restores the steps that the
    other saved, and new steps are named like the existing ones, with their prefix and padding.
    Nothing is created before the first save, so a read-only directory can be restored from. Other
    programs may restore, or run `templax prune`, while this one saves. Use the manager as a context
    manager, or call `close`.

    Args:
        url: A local path, which need not exist.
        keep: Which steps stay after another one was saved: a `Keep`, or the number of latest steps
            to keep. None keeps all. Only committed steps are deleted. A step that a `Manager` is
            restoring from at that time is deleted after a later save.
        item: Name of the item that holds the tree in each step. None takes the name of the only
            tree in the existing steps, or "default" in a new directory, as Orbax's
            `CheckpointManager` does (Orbax's v1 API uses "state").

    Attributes:
        url: The absolute path.

    Raises:
        UsageError: `url` is not a local path, or `keep` or `item` is invalid.

    Example:
        >>> import jax.numpy as jnp, tempfile, templax as tx
        >>> with tx.Manager(tempfile.mkdtemp(), keep=tx.Keep(last=2, every=10)) as manager:
        ...     for step in range(9, 14):
        ...         state = {"w": jnp.full(3, float(step))}
        ...         saved = manager.save(step, state, metrics={"loss": 1 / step})
        >>> manager.steps(), manager.best("loss")
        ([10, 12, 13], 13)
        >>> manager.restore({"w": jnp.zeros(3)}, 12)["w"]
        Array([12., 12., 12.], dtype=float32)
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        keep: Keep | int | None = None,
        item: str | None = None,
    ):
        source = open_source(url)
        if not isinstance(source, Local):
            raise UsageError(f"Expected a path, got {type(url).__name__}")
        wrong = not isinstance(item, str) or not _ITEM.fullmatch(item) or item == "metrics"
        if item is not None and wrong:
            raise UsageError(f"Expected item= a name (str), and not `metrics`, got {item!r}")
        # Made absolute now, so that a later chdir does not change the directory that is saved to.
        self.url = os.path.abspath(source.url)
        self._item, self._keep = item, as_keep(keep)
        self._lock = WriterLock(self.url)
        self._pending: PendingSave | None = None

    def __repr__(self) -> str:
        return f"Manager({self.url!r})"

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *exc: object) -> None:
        _, error, _ = exc
        try:
            self.close()
        except TemplaxError as failed:
            if not isinstance(error, BaseException):
                raise
            error.add_note(f"Besides, {failed}")  # the error that ended the block comes first

    def save(
        self,
        step: int,
        tree: PyTree,
        *,
        metrics: Mapping[str, float] | None = None,
        metadata: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        wait: bool = False,
        compression: str | None = None,
        memory: int | None = None,
        threads: int | None = None,
        on_progress: Progress | None = None,
    ) -> Saved:
        """Saves a step, as `templax.save` does, and then deletes the steps that no rule keeps.

        Waits for the previous step if that is still being saved. With `wait=False` saving and
        deleting continue in the background, and the values saved are those that the tree has at the
        time of the call. The step just saved stays at least until the next one is saved, even if it
        is not the highest. Files that killed programs left in the directory are removed first.

        In a JAX job of several processes, each process calls this, with its own manager of the same
        directory.

        Args:
            step: The step number, 0 or higher.
            tree: The pytree to save.
            metrics: Numbers by name, such as `{"loss": 0.3}`, for `Keep` and `best` to compare.
                Scalar arrays and NaN are accepted.
            overwrite: Replaces the step if it exists.

        See `templax.save` for the remaining arguments.

        Returns:
            What was written; with `wait=False`, the handle of the save in progress.

        Raises:
            SaveError: See `templax.save`; also raised if the previous save failed, or if another
                process or another `Manager` is saving to the directory.
            AlreadyExists: The step exists.
            UsageError: An argument is invalid, or `url` is itself a checkpoint.
        """
        from .._hosts.agreement import join_job
        from .._save.background import start_save
        from .._save.options import make_options
        from .._save.result import PendingSave

        step, numbers = check_step(step), check_metrics(metrics)
        options = make_options(
            metadata=metadata,
            overwrite=overwrite,
            compression=compression,
            memory=memory,
            threads=threads,
            on_progress=on_progress,
        )
        try:
            self.wait()
        except SaveError as error:
            raise SaveError(
                f"The previous step was not saved, and step {step} was not begun: {error}",
                hint="save it again",
            ) from error
        with join_job(self.url) as job:  # process 0 locks, names and deletes for the whole job
            names = self._prepare_step(step) if job.index == 0 else ("", "")
            agreed = job.tell_all("beginning a step", "/".join(names).encode())
            name, _, item = agreed.decode().partition("/")

        def after() -> None:
            if job.index == 0:
                self._delete_unkept(step, step_prefix(name))

        options = replace(options, metrics=numbers, after=after)
        path = os.path.join(self.url, name)
        saved = start_save(path, {item: tree}, options, wait=wait)
        self._pending = PendingSave(saved)
        return saved

    def _prepare_step(self, step: int) -> tuple[str, str]:
        """Locks and cleans the directory; returns the names of the step and of its item."""
        self._lock.acquire()
        steps = self._list_steps()
        name, item = self._name_step(step, steps), self._item or self._choose_item(steps)
        try:
            # Not only this step's: a step whose deletion was cut short may never be saved again,
            # so nothing else would remove the rest of it.
            for path in find_abandoned_in(self.url):
                remove_directory(path)
        except SaveError as error:  # leftovers do not keep the step from being saved
            _log.warning("what killed programs left in %s was not removed: %s", self.url, error)
        return name, item

    def _choose_item(self, steps: Sequence[Step]) -> str:
        """The item name for the tree of the next step: the one that the latest step uses."""
        committed = [step for step in steps if step.committed]
        trees = _list_trees(self._at(committed[-1].key)) if committed else []
        if "default" in trees or not trees:
            return "default"
        if len(trees) > 1:
            raise UsageError(
                f"Expected steps with one tree, found {list_names(trees)} in {committed[-1].key};"
                f" hint: templax.Manager(..., item={quote_text(trees[0])})"
            )
        return trees[0]

    def wait(self) -> None:
        """Returns once the last step is saved and the steps that no rule keeps are deleted.

        Raises:
            SaveError: The step was not saved. Raised by one call only.
        """
        if self._pending is not None:
            self._pending.wait()

    def close(self) -> None:
        """Waits like `wait`, then unlocks the directory, so others can save to it. Idempotent."""
        try:
            self.wait()
        finally:
            self._lock.release()

    def _delete_unkept(self, saved: int, prefix: str) -> None:
        """Deletes the steps with this name prefix that no rule keeps, except the one just saved."""
        if self._keep is None:
            return
        try:
            steps = self._find_committed(prefix)
            ranks = self._keep.best is not None
            metrics = {
                step: step_metrics(self._at(key)) if ranks else {} for step, key in steps.items()
            }
            for step in sorted(set(steps) - set(select_kept(metrics, self._keep)) - {saved}):
                if not delete_checkpoint(self._at(steps[step]).url):
                    _log.info("step %d of %s is being read, and stays for now", step, self.url)
        except TemplaxError as error:
            # The step is saved, and training must not end because an old one remains: the next
            # save tries to delete it again.
            _log.warning("steps of %s that no rule keeps were not deleted: %s", self.url, error)

    def restore(
        self, template: PyTree, step: int | None = None, **options: Unpack[RestoreKeywords]
    ) -> PyTree:
        """Loads a step, by default the latest, as `templax.restore` does.

        A directory without a committed step lacks every leaf, so that `missing=` says where all of
        them come from: `restore(template, missing=Recipe(init, key))` resumes a run or starts one.

        Args:
            template: See `templax.restore`.
            step: None for the latest committed step. Several processes that restore while one of
                them saves should agree on a step themselves.
            **options: The keyword arguments of `templax.restore`: `at`, `rename`, `shardings`,
                `missing`, `extra`, `cast`, `verify`, `memory`, `threads`, `mapped` and
                `on_progress`.

        Raises:
            NotFound: The step does not exist; or there is none at all, and `missing="error"`.
            TemplateError, CheckpointError, SourceError, UsageError: See `templax.restore`.
        """
        asked = RestoreOptions(**options)
        step = None if step is None else check_step(step)
        while True:
            found = self._find_committed()
            if step is None and not found:
                if asked.missing_policy == "error":
                    raise NotFound(
                        f"{self.url} holds no committed step",
                        hint="missing=templax.Recipe(init, key) begins with initial values",
                    )
                plan = api.make_plan(_empty_catalog(self.url), template, asked)
                return api.run_plan(plan, asked.on_progress)
            number = max(found) if step is None else step
            path = os.path.join(self.url, found.get(number, str(number)))
            with hold_for_reading(path) as there:
                if there or number not in found:
                    plan = api.make_plan(self._resolve_item(path), template, asked)
                    return api.run_plan(plan, asked.on_progress)
            # The step was deleted or overwritten after it was listed: list again.

    def _resolve_item(self, path: str) -> str:
        """The path to open for a step: that of its tree item, or the step itself if it has none."""
        trees = _list_trees(Local(path))
        if self._item is not None and trees and self._item not in trees:
            raise NotFound(
                f"Expected the item `{self._item}`, found {list_names(trees)}", file=path
            )
        if self._item is None and len(trees) > 1 and "default" not in trees:
            raise UsageError(
                f"Expected a step with one tree, found {list_names(trees)} in {path};"
                f" hint: templax.Manager(..., item={quote_text(trees[0])})"
            )
        item = self._item or ("default" if "default" in trees else (trees or [""])[0])
        return os.path.join(path, item) if item in trees else path

    def steps(self) -> list[int]:
        """The committed steps, ascending. Each call lists the directory again."""
        return sorted(self._find_committed())

    def latest(self) -> int | None:
        """The highest committed step, or None."""
        return max(self._find_committed(), default=None)

    def best(self, metric: str, mode: Literal["min", "max"] = "min") -> int | None:
        """The step with the lowest (or highest) value of a metric, the later one if several tie.

        Args:
            metric: A name in the `metrics=` that the steps were saved with.
            mode: Whether the lowest ("min") or the highest ("max") value is best.

        Returns:
            The step number, or None if no committed step has the metric as a number other than NaN.
        """
        found = self._find_committed()
        metrics = {step: step_metrics(self._at(key)) for step, key in found.items()}
        return next(iter(rank_steps(metrics, metric, mode)), None)

    def metrics(self, step: int) -> dict[str, Any]:
        """The metrics that a step was saved with; empty if it has none.

        Raises:
            NotFound: The step does not exist or is not committed.
        """
        found, step = self._find_committed(), check_step(step)
        if step not in found:
            raise NotFound(f"{self.url} holds no committed step {step}")
        return step_metrics(self._at(found[step]))

    def path(self, step: int) -> str:
        """The directory of a step, or the one that it would be saved to."""
        return os.path.join(self.url, self._name_step(check_step(step), self._list_steps()))

    def _name_step(self, step: int, steps: Sequence[Step]) -> str:
        existing = [s for s in steps if s.step == step and not is_temporary(s.key)]
        committed = [s for s in existing if s.committed]
        # Several directories may hold the same step, such as `10` and `000010`.
        return [*existing, *committed][-1].key if existing else step_name(step, steps)

    def _find_committed(self, prefix: str | None = None) -> dict[int, str]:
        """Number → directory name of each committed step, ascending.

        Args:
            prefix: Only steps whose names have this prefix, if given.
        """
        return {
            s.step: s.key
            for s in self._list_steps()
            if s.committed and prefix in (None, step_prefix(s.key))
        }

    def _list_steps(self) -> Sequence[Step]:
        root = examine_directory(Local(self.url))
        if root is not None and (root.what == "item" or root.handled):
            raise UsageError(f"Expected a directory of steps, got the checkpoint {self.url}")
        return root.steps if root is not None else ()

    def _at(self, key: str) -> Local:
        return Local(os.path.join(self.url, key))


def _list_trees(step: Local) -> list[str]:
    """The names of the items of a step that are trees."""
    root = examine_directory(step)
    return root.pytrees if root is not None and root.what == "items" else []


def _empty_catalog(url: str) -> Catalog:
    return Catalog(
        url,
        "orbax",
        "a directory without steps",
        (),
        Memory({}),
        lambda _entries, _damages=None: {},
    )
