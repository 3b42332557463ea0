"""The steps of a training run: saved one by one, some of them kept, the latest restored."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np

from .._catalog.catalog import Catalog
from .._core.arguments import PyTree, check_int
from .._core.dtypes import class_of
from .._restore import api
from .._restore.options import RestoreKeywords, RestoreOptions
from ..errors import NotFound, SaveError, TemplaxError, UsageError
from ..formats.orbax.directory import Step, examine_directory, step_metrics, step_name, step_prefix
from ..storage.leftovers import TEMPORARY, delete_checkpoint, find_abandoned_in, remove_directory
from ..storage.local import Local
from ..storage.memory import Memory
from ..storage.open import open_source
from .locks import WriterLock, hold_for_reading
from .retention import Keep, as_keep, rank_steps, select_kept

if TYPE_CHECKING:
    from .._save.result import Saved

_MOST = 10**18
"""No step has this number or a higher one: its name would not be taken for that of a step."""

_ITEM = re.compile(r"[^/.\0][^/\0]*")
"""A name of one directory, not a hidden one."""

_log = logging.getLogger("templax")


class Manager:
    """A directory of steps that one program saves to, and any number restore from.

    It is laid out as Orbax's `CheckpointManager` lays it out: each lists and restores the steps of
    the other, and a step is named as those that are there, with their prefix and padding. Nothing
    is made before the first save, so that a read-only directory can be restored from. Others may
    restore, or run `templax prune`, while this program saves. Use it as a context manager, or
    `close` it.

    Args:
        url: A local path. Need not exist.
        keep: Which steps stay when another one was saved: a `Keep`, or how many of the latest. None
            keeps all. Only committed steps are deleted, and none that a `Manager` restores from at
            that time; that one goes after a later save.
        item: Name of the item that holds the tree in each step. None: that of the only tree in the
            steps that are there; in a new directory "default", as of Orbax's `CheckpointManager`
            (its v1 API has "state").

    Attributes:
        url: The path, absolute.

    Raises:
        UsageError: No local path, or a rule that means nothing.

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
        # Absolute now: a later chdir must not change where is saved to.
        self.url = os.path.abspath(source.url)
        self._item, self._keep = item, as_keep(keep)
        self._lock = WriterLock(self.url)
        self._saved: Saved | None = None

    def __repr__(self) -> str:
        return f"Manager({self.url!r})"

    def __enter__(self) -> Manager:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except TemplaxError as failed:
            if error is None:
                raise
            error.add_note(f"Besides, {failed}")  # what ended the block comes first

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
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Saved:
        """Saves a step, as `templax.save` does; then deletes the steps that no rule keeps.

        It waits for the step before, if that one is still being saved. With `wait=False` both the
        saving and the deleting go on in the background, and the values are the tree's at the time
        of the call. The step just saved always stays until the next one is, also if it is not the
        highest. What killed programs left in the directory is removed first.

        Where several processes make up a JAX job, each calls this, with its own manager of the same
        directory.

        Args:
            step: Its number, 0 or higher.
            tree: As of `templax.save`, as are the other options.
            metrics: Numbers by name, such as `{"loss": 0.3}`, by which `Keep` and `best` choose.
                Scalar arrays are taken, and NaN.
            overwrite: Replaces the step if it is there.

        Returns:
            What was written; with `wait=False` the handle of a save that goes on.

        Raises:
            SaveError: As of `templax.save`; the save before this one failed; or another process, or
                another `Manager` of this one, saves to the directory.
            AlreadyExists: The step is there.
            UsageError: An argument that means nothing, or `url` is a checkpoint itself.
        """
        from .._hosts.agreement import join_job
        from .._save.background import start_save
        from .._save.options import make_options

        step, numbers = _number(step), _numbers(metrics)
        request = make_options(
            "orbax", metadata, overwrite, compression, memory, threads, on_progress
        )
        try:
            self.wait()
        except SaveError as error:
            raise SaveError(
                f"The step before was not saved, and step {step} was not begun: {error}",
                hint="save it again",
            ) from error
        with join_job(self.url) as job:  # process 0 locks, names and deletes for all of a job
            place = self._begin(step) if job.index == 0 else ("", "")
            told = job.tell_all("beginning a step", "/".join(place).encode())
            name, _, item = told.decode().partition("/")

        def after() -> None:
            if job.index == 0:
                self._retain(step, step_prefix(name))

        request = replace(request, metrics=numbers, after=after)
        path = os.path.join(self.url, name)
        self._saved = start_save(path, {item: tree}, request, wait=wait)
        return self._saved

    def _begin(self, step: int) -> tuple[str, str]:
        """Makes room for a step; returns the names that it and its item will have."""
        self._lock.acquire()
        listed = self._listed()
        name, item = self._name(step, listed), self._item or self._item_of(listed)
        try:
            # Of other steps, too: of one that was being deleted when its program was killed nobody
            # will ever save another.
            for left in find_abandoned_in(self.url):
                remove_directory(left)
        except SaveError as error:  # it is in nobody's way
            _log.warning("what killed programs left in %s was not removed: %s", self.url, error)
        return name, item

    def _item_of(self, steps: Sequence[Step]) -> str:
        """The item that the tree of the next step is, after those of the latest that is there."""
        there = [step for step in steps if step.committed]
        trees = _trees(self._at(there[-1].key)) if there else []
        if "default" in trees or not trees:
            return "default"
        if len(trees) > 1:
            raise UsageError(
                f"Expected steps with one tree, found {_listed_names(trees)} in {there[-1].key};"
                f' hint: templax.Manager(..., item="{trees[0]}")'
            )
        return trees[0]

    def wait(self) -> None:
        """Returns when the last step is saved, and those that were to go are deleted.

        Raises:
            SaveError: It was not saved. Said once.
        """
        saved = self._saved
        if saved is not None:
            try:
                saved.wait()
            finally:
                if saved.done():
                    self._saved = None

    def close(self) -> None:
        """Waits as `wait` does, and lets others save to the directory. Idempotent."""
        try:
            self.wait()
        finally:
            self._lock.release()

    def _retain(self, saved: int, prefix: str) -> None:
        """Deletes what no rule keeps of the steps whose names have this prefix."""
        if self._keep is None:
            return
        try:
            steps = self._committed(prefix)
            ranks = self._keep.best is not None
            metrics = {
                step: step_metrics(self._at(key)) if ranks else {} for step, key in steps.items()
            }
            for step in sorted(set(steps) - set(select_kept(metrics, self._keep)) - {saved}):
                if not delete_checkpoint(self._at(steps[step]).url):
                    _log.info("step %d of %s is being read, and stays for now", step, self.url)
        except TemplaxError as error:
            # The step is saved, and training must not end for one too many: the next save tries
            # again.
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
                `missing`, `extra`, `cast`, `verify`, `memory`, `threads` and `mapped`.

        Raises:
            NotFound: The step does not exist; or there is none at all, and `missing="error"`.
            TemplateError, CheckpointError, SourceError, UsageError: See `templax.restore`.
        """
        asked = RestoreOptions(**options)
        step = None if step is None else _number(step)
        while True:
            found = self._committed()
            if step is None and not found:
                if asked.missing_policy == "error":
                    raise NotFound(
                        f"{self.url} holds no committed step",
                        hint="missing=templax.Recipe(init, key) begins with initial values",
                    )
                return api.run_plan(api.make_plan(_nothing(self.url), template, asked))
            number = max(found) if step is None else step
            path = os.path.join(self.url, found.get(number, str(number)))
            with hold_for_reading(path) as there:
                if there or number not in found:
                    return api.run_plan(api.make_plan(self._opened(path), template, asked))
            # Deleted, or replaced by an overwrite, since it was listed.

    def _opened(self, path: str) -> str:
        """What to open of a step: its item, or what is said of the step itself."""
        trees = _trees(Local(path))
        if self._item is not None and trees and self._item not in trees:
            raise NotFound(
                f"Expected the item `{self._item}`, found {_listed_names(trees)}", file=path
            )
        if self._item is None and len(trees) > 1 and "default" not in trees:
            raise UsageError(
                f"Expected a step with one tree, found {_listed_names(trees)} in {path};"
                f' hint: templax.Manager(..., item="{trees[0]}")'
            )
        item = self._item or ("default" if "default" in trees else (trees or [""])[0])
        return os.path.join(path, item) if item in trees else path

    def steps(self) -> list[int]:
        """The committed steps, ascending; listed anew by each call."""
        return sorted(self._committed())

    def latest(self) -> int | None:
        """The highest committed step, or None."""
        return max(self._committed(), default=None)

    def best(self, metric: str, mode: Literal["min", "max"] = "min") -> int | None:
        """The step with the least, or the greatest, value of a metric; of equal ones the later.

        None if no committed step has it as a number.
        """
        found = self._committed()
        metrics = {step: step_metrics(self._at(key)) for step, key in found.items()}
        return next(iter(rank_steps(metrics, metric, mode)), None)

    def metrics(self, step: int) -> dict[str, Any]:
        """What a step was saved with as metrics; empty if with none.

        Raises:
            NotFound: There is no such committed step.
        """
        found, step = self._committed(), _number(step)
        if step not in found:
            raise NotFound(f"{self.url} holds no committed step {step}")
        return step_metrics(self._at(found[step]))

    def path(self, step: int) -> str:
        """The directory of a step, or where it would be saved to."""
        return os.path.join(self.url, self._name(_number(step), self._listed()))

    def _name(self, step: int, steps: Sequence[Step]) -> str:
        there = [s for s in steps if s.step == step and TEMPORARY not in s.key]
        finished = [s for s in there if s.committed]
        return [*there, *finished][-1].key if there else step_name(step, steps)

    def _committed(self, prefix: str | None = None) -> dict[int, str]:
        """Number → name of each committed step, ascending; of those with a prefix, if given."""
        return {
            s.step: s.key
            for s in self._listed()
            if s.committed and prefix in (None, step_prefix(s.key))
        }

    def _listed(self) -> Sequence[Step]:
        root = examine_directory(Local(self.url))
        if root is not None and (root.what == "item" or root.handled):
            raise UsageError(f"Expected a directory of steps, got the checkpoint {self.url}")
        return root.steps if root is not None else ()

    def _at(self, key: str) -> Local:
        return Local(os.path.join(self.url, key))


def _trees(step: Local) -> list[str]:
    """Names of the items of a step that are trees."""
    root = examine_directory(step)
    return root.pytrees if root is not None and root.what == "items" else []


def _listed_names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _nothing(url: str) -> Catalog:
    return Catalog(
        url,
        "orbax",
        "a directory without steps",
        (),
        Memory({}),
        lambda _entries, _damages=None: {},
    )


def _number(step: Any) -> int:
    number = check_int("step", step, least=0)
    if number >= _MOST:
        raise UsageError(f"Expected step= below {_MOST}, got {number}")
    return number


def _numbers(metrics: Any) -> dict[str, float] | None:
    """Metrics as JSON has them."""
    if metrics is None:
        return None
    if not isinstance(metrics, Mapping):
        raise UsageError(f"Expected metrics= a dict of numbers, got {metrics!r}")
    return {_named(name): _plain(name, value) for name, value in metrics.items()}


def _named(name: Any) -> str:
    if not isinstance(name, str):
        raise UsageError(f"Expected names (str) in metrics=, got {name!r}")
    return name


def _plain(name: str, value: Any) -> float:
    """A number of Python, NumPy or JAX as one of Python."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # a tracer, or a list of odd lengths
        array = None
    kind = class_of(array.dtype) if array is not None and array.shape == () else "other"
    if array is None or kind not in ("int", "float"):
        raise UsageError(f"Expected a number in metrics=, got {value!r} for `{name}`")
    return int(array) if kind == "int" else float(array)
