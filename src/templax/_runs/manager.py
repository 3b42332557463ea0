"""The manager of a run: it saves steps, deletes those that no rule keeps, and restores them."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Unpack

from .._core.arguments import PyTree, check_company
from .._core.progress import Progress
from .._restore.options import RestoreKeywords, RestoreOptions
from ..errors import CheckpointError, NotFound, SaveError, SourceError, TemplaxError, UsageError
from ..formats.json_items import read_json
from ..formats.orbax.step_metadata import METRICS, read_custom_metadata, read_metrics
from ..storage.source import Source, read_ahead
from .agreed_steps import AgreedSteps
from .arguments import check_metrics, check_step, read_step
from .contents import find_committed, read_steps, refuse_unread
from .prepare import name_step, prepare_step
from .prune import delete_unkept
from .retention import Keep, KeepSteps, as_keep, rank_steps
from .run_storage import open_run
from .step_facts import read_all_metrics

if TYPE_CHECKING:
    from .._hosts.agreement import Hosts
    from .._save.result import PendingSave, Saved
    from ..storage.stores import Store

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
        url: A local path, which need not exist, or a URL of an object store, such as
            "gs://bucket/run".
        keep: Which steps stay after another one was saved: a `Keep`; the number of latest steps to
            keep; or a function that gets the list of the steps, ascending, and returns those to
            keep. None keeps all. Only committed steps are deleted. A step that a `Manager` is
            restoring from at that time is deleted after a later save.
        item: Name of the item that holds the tree in each step. None takes the name of the only
            tree in the existing steps, or "default" in a new directory, as Orbax's
            `CheckpointManager` does (Orbax's v1 API uses "state").
        timeout: In a job of several processes, the seconds to wait for one that is alive and has
            not come to a call. Default: 240, less than the time after which JAX aborts the job.
        alone: Whether this process manages the run on its own, whatever the others of its job do:
            for a run of each process, or of one. Otherwise all processes make the same calls, each
            with its own manager of the same directory.
        storage: How to reach the object store of a URL, such as `templax.storage.S3(endpoint=…)`;
            by default as the environment says.

    In an object store nothing keeps a step from being deleted while it is read, and other managers
    may save to the run: a step that another one saves at this time is refused, and its number has
    to be above the latest.

    Attributes:
        url: The absolute path, or the URL.

    Raises:
        MissingPackage: The URL needs an extra that is not installed.
        UsageError: `url` is neither a path nor a URL, or `keep` or `item` is invalid.

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
        keep: Keep | KeepSteps | int | None = None,
        item: str | None = None,
        timeout: float | None = None,
        alone: bool = False,
        storage: Store | None = None,
    ):
        check_company(timeout, alone)
        self._run = open_run(url, storage)
        wrong = not isinstance(item, str) or not _ITEM.fullmatch(item) or item == "metrics"
        if item is not None and wrong:
            raise UsageError(f"Expected item= a name (str), and not `metrics`, got {item!r}")
        self.url = self._run.url
        self._item, self._keep = item, as_keep(keep)
        self._pending: PendingSave | None = None
        self._lower: list[int] = []  # the steps that it saved below the latest, in this order
        self._damaged: frozenset[int] = frozenset()  # what fallback=True skipped, on all processes
        self._process, self._warned = os.getpid(), False
        self._timeout, self._alone = timeout, alone
        self._steps = AgreedSteps(
            self.url, lambda: find_committed(read_steps(self._run.look())), alone=alone
        )

    def __repr__(self) -> str:
        return f"Manager({self.url!r})"

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *exc: object) -> None:
        _, error, _ = exc
        if isinstance(error, BaseException):
            self._steps.leave(error)  # at once: to close may take as long as a save
            self._steps.forget()
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
        time of the call. The step just saved stays at least until the next one is saved, and with
        `Keep(last=n)` until `n` more are, even if it is not the highest. Files that killed programs
        left in the directory are removed first.

        In a JAX job of several processes, each process calls this, with its own manager of the same
        directory.

        Args:
            step: The step number, 0 or higher.
            tree: The pytree to save.
            metrics: Numbers by name, such as `{"loss": 0.3}`, for `Keep` and `best` to compare.
                Scalar arrays and NaN are accepted.
            overwrite: Replaces the step if it exists, and allows a step below the latest one: the
                run goes on from an earlier step. The later steps stay. Not needed for steps that
                this manager's `restore(..., fallback=True)` skipped as damaged.

        See `templax.save` for the remaining arguments.

        Returns:
            What was written; with `wait=False`, the handle of the save in progress.

        Raises:
            SaveError: See `templax.save`; also raised if the step is below the latest, if the
                previous save failed, or if another process or another `Manager` is saving to the
                directory.
            AlreadyExists: The step exists.
            UsageError: An argument is invalid; `url` is itself a checkpoint, or holds several whose
                names differ by more than a number; or this is a forked child of the process that
                made the manager.
        """
        from .._hosts.agreement import open_call
        from .._save.background import start_save
        from .._save.destination import Destination
        from .._save.options import make_options
        from .._save.result import PendingSave

        if os.getpid() != self._process:
            raise UsageError(
                f"Expected a manager of this process, got one of process {self._process}, which"
                " forked it; hint: make another templax.Manager, after that process closed its own"
            )
        call = open_call(
            "saving", self.url, step=read_step(step), timeout=self._timeout, alone=self._alone
        )
        with call.report_errors():  # arguments included: the others wait for this step
            step, numbers = check_step(step), check_metrics(metrics)
            overwrite = overwrite or step in self._damaged  # the same on all processes
            options = make_options(
                metadata=metadata,
                overwrite=overwrite,
                compression=compression,
                memory=memory,
                threads=threads,
                on_progress=on_progress,
                storage=self._run.storage,
            )
            earlier = self._find_earlier_failure(f"step {step} was not begun", "save it again")

            def decide() -> Destination:
                self._run.acquire()
                name, item = prepare_step(self._run, step, self._item, self._damaged, overwrite)
                return Destination(self._run.join(name), item)

            def after(call: Hosts) -> None:
                self._damaged -= {step}
                if call.index == 0 and self._keep is not None:
                    self._lower = delete_unkept(
                        self._run, self._keep, step, self._lower, self._damaged
                    )
                self._steps.share(call)

            options = replace(options, metrics=numbers, after=after)
            try:
                saved = start_save(
                    call, self.url, {"": tree}, options, decide, wait=wait, earlier=earlier
                )
            except SaveError as error:
                if error is earlier and self._pending is not None:
                    self._pending.forget()
                raise
        self._pending = PendingSave(saved)
        return saved

    def wait(self) -> None:
        """Returns once the last step is saved and the steps that no rule keeps are deleted.

        Raises:
            SaveError: The step was not saved. Raised by one call only.
        """
        if self._pending is not None:
            self._pending.wait()

    def _finish_own_save(
        self, undone: str = "nothing was read", advice: str = "call this again for what is there"
    ) -> None:
        """Waits for the save in progress, so that what is read or saved next follows it.

        In a job this waits for the save's own threads on all processes, and for nothing that
        another process does in its main thread: it is safe where only some processes read.

        Args:
            undone: What is not done if the save failed, for the message.
            advice: The hint.
        """
        error = self._find_earlier_failure(undone, advice)
        if error is not None and self._pending is not None:
            self._pending.forget()
            raise error

    def _find_earlier_failure(self, undone: str, advice: str) -> SaveError | None:
        """Waits for the save in progress; its error, if no call has raised it."""
        if self._pending is None or self._pending.is_own_thread():
            return None  # what the save calls, such as its on_progress, finds the steps before it
        cause = self._pending.find_error()
        if not isinstance(cause, SaveError):
            self._pending.wait()  # raises it as it is
            return None
        error = SaveError(f"The previous step was not saved, and {undone}: {cause}", hint=advice)
        error.__cause__ = cause
        return error

    def close(self) -> None:
        """Waits like `wait`, then unlocks the directory, so others can save to it. Idempotent.

        In a child that was forked, nothing is waited for and the lock stays with the parent.
        """
        try:
            if os.getpid() == self._process:
                self.wait()
        finally:
            self._run.release()
            self._steps.leave(None)

    def restore(
        self,
        template: PyTree,
        step: int | None = None,
        *,
        fallback: bool = False,
        **options: Unpack[RestoreKeywords],
    ) -> PyTree:
        """Loads a step, by default the latest, as `templax.restore` does.

        Waits for this manager's own save if one is in progress, as all its methods do that look at
        steps. `templax.last_restore()` and the log say which step it was, and which later ones
        could not be taken.

        A directory without steps lacks every leaf, so that `missing=` says where all of them come
        from: `restore(template, missing=Recipe(init, key))` resumes a run or starts one. It does
        not start one beside anything that looks like a step or opens as a checkpoint, finished or
        not: that is an error, which lists what is there.

        Args:
            template: See `templax.restore`.
            step: None for the latest committed step. In a JAX job of several processes, each
                process calls this, and process 0 chooses: all get the same step, or all raise the
                same error.
            fallback: Whether to restore an earlier step where this one is damaged: the newest that
                is whole. The log has a warning for each step that is skipped. This manager then
                saves from the restored step on: it replaces the damaged steps, no rule of `keep`
                counts them, and none is deleted.
            **options: The keyword arguments of `templax.restore`: `at`, `rename`, `shardings`,
                `missing`, `extra`, `cast`, `verify`, `memory`, `threads`, `mapped`, `share_reads`,
                `on_progress`, `timeout` and `alone`.

        Raises:
            NotFound: The step does not exist; or there is none at all, and `missing="error"` or its
                patterns leave out a leaf. In an object store, also if a step that was asked for is
                deleted meanwhile.
            UnknownFormat, Uncommitted: No step is committed, but something else is there.
            Corrupted: The step is damaged, or with `fallback=True` every step. The error names the
                step and the path, and an earlier step if that one is whole.
            SaveError: This manager's own save failed; nothing was restored. Raised once.
            TemplateError, CheckpointError, SourceError, UsageError: See `templax.restore`.
        """
        from .._restore.together import open_restore
        from .resume import StepRestore

        alone = self._alone or options.get("alone") is True
        call = open_restore(
            self.url,
            step=read_step(step),
            timeout=options.get("timeout", self._timeout),
            alone=alone,
        )
        with call:
            asked = RestoreOptions(**options)
            if asked.share_reads == "always" and (fallback or alone):
                raise UsageError(
                    'Expected share_reads="auto" or "never" with fallback=True or alone=True, got'
                    ' "always": each process then reads by itself'
                )
            step = None if step is None else check_step(step)
            self._finish_own_save()
            restoring = StepRestore(self._run, self._item, template, asked, call)
            tree = restoring.restore(step, fallback=fallback)
            if fallback:
                self._damaged = restoring.damaged
            return tree

    def steps(self) -> list[int]:
        """The committed steps, ascending. Each call lists the directory again."""
        return list(self._list_committed())

    def latest(self) -> int | None:
        """The highest committed step, or None."""
        return max(self._list_committed(), default=None)

    def best(self, metric: str, mode: Literal["min", "max"] = "min") -> int | None:
        """The step with the lowest (or highest) value of a metric, the later one if several tie.

        Args:
            metric: A name in the `metrics=` that the steps were saved with.
            mode: Whether the lowest ("min") or the highest ("max") value is best.

        Returns:
            The step number, or None if no committed step has the metric as a number. The log
            has a warning for each step whose metrics are unreadable.
        """
        found = self._list_committed()
        metrics, errors = read_all_metrics(self._run.look(), found)
        for step, error in errors.items():
            _log.warning("step %d of %s is not compared with others: %s", step, self.url, error)
        return next(iter(rank_steps(metrics, metric, mode)), None)

    def metrics(self, step: int) -> dict[str, Any]:
        """The metrics that a step was saved with; empty if it has none.

        Raises:
            NotFound: The step does not exist or is not committed.
            Corrupted: The file is damaged or lost.
        """
        found = self._find_step(step)
        read_ahead(found, [METRICS])
        return read_metrics(found)

    def metadata(self, step: int) -> dict[str, Any]:
        """The `metadata=` that a step was saved with; empty if it has none.

        Raises:
            NotFound: The step does not exist or is not committed.
            Corrupted: The file is damaged.
        """
        return read_custom_metadata(self._find_step(step))

    def json(self, step: int, item: str) -> Any:
        """The value of a JSON item, such as the position of a data iterator that Orbax saved.

        Args:
            step: The step number.
            item: The name of the item, which `templax ls` shows.

        Raises:
            NotFound: There is no such committed step, or no such JSON item in it.
            Corrupted: The file is not JSON.
        """
        return read_json(self._find_step(step), item)

    def path(self, step: int) -> str:
        """The directory of a step, or the one that it would be saved to."""
        self._finish_own_save()
        return self._run.join(name_step(check_step(step), read_steps(self._run.look())))

    def _list_committed(self) -> dict[int, str]:
        """Number → directory name of each committed step, this manager's own save included."""
        self._finish_own_save()
        found = self._steps.list_committed()
        if not found and not self._warned:
            self._warn_of_unread()
        return found

    def _warn_of_unread(self) -> None:
        """Logs, once, what a directory without committed steps holds instead."""
        self._warned, run = True, self._run.look()
        steps = read_steps(run)
        try:
            if not find_committed(steps):
                refuse_unread(run, steps, self._run)
        except (CheckpointError, SourceError) as error:
            _log.warning("%s", error)

    def _find_step(self, step: int) -> Source:
        """The directory of a committed step."""
        step, found = check_step(step), self._list_committed()
        if step not in found:
            raise NotFound(f"{self.url} holds no committed step {step}")
        return self._run.look().at(found[step])
