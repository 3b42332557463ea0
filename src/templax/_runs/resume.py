"""Restores a step of a run: the latest, another one, the newest that is whole, or initial values.

In a job of several processes each one restores for itself, without a word to the others, except
where it looks for the newest step that is whole: then all must find the same.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from .._catalog.catalog import Catalog
from .._core.arguments import PyTree
from .._core.text import list_names
from .._match.result import TemplateError
from .._plan.plan import Plan
from .._restore import api
from .._restore.options import RestoreOptions
from .._restore.prepare import open_missing
from .._restore.stats import StepChoice
from ..errors import (
    CheckpointError,
    Corrupted,
    NotFound,
    SaveError,
    SourceError,
    TemplaxError,
    UnknownFormat,
)
from ..formats.registry import open_checkpoint
from ..storage.memory import Memory
from .contents import choose_tree, find_committed, find_untaken, read_steps, refuse_unread
from .locks import hold_for_reading

if TYPE_CHECKING:
    from .._hosts.agreement import Hosts

_TORN = (Corrupted, NotFound, UnknownFormat)
"""Errors of a committed step of which something is missing or damaged."""

_MAX_TRIED = 8
"""Most steps that are tried to find one to hint at."""

_GONE = "it was deleted meanwhile"

_log = logging.getLogger("templax")


class _StepGoneError(Exception):
    """A step was deleted or replaced after it was listed."""


class StepRestore:
    """One call of `Manager.restore`, which describes the arguments.

    Args:
        url: The directory of the run.
        item: Name of the item to restore, if the caller gave one.
        template: The template.
        options: The keyword arguments.

    Attributes:
        damaged: The steps that `restore_newest_whole` found damaged, the same on all processes.
    """

    def __init__(self, url: str, item: str | None, template: PyTree, options: RestoreOptions):
        self._url, self._item, self._template = url, item, template
        self._options = options
        self.damaged: frozenset[int] = frozenset()
        self._opened: str | None = None  # what is restored, once a step and its item are chosen

    def _open_missing(self) -> None:
        """Opens what is given as `missing=` ahead of the steps: its errors are not a step's."""
        if self._options.missing_policy is None:
            missing = open_missing(self._options.missing)
            self._options = replace(self._options, missing=missing)

    def restore(self, step: int | None) -> PyTree:
        """Restores a step, by default the latest; without any, gives initial values."""
        self._open_missing()
        while True:
            steps = read_steps(self._url)
            found = find_committed(steps)
            if step is None and not found:
                refuse_unread(self._url, steps)
                return self._begin_anew()
            number = max(found) if step is None else step
            skipped = tuple(find_untaken(self._url, steps, number)) if step is None else ()
            if skipped:
                later = "; ".join(skipped)
                _log.warning("step %d of %s is restored, not %s", number, self._url, later)
            try:
                return self._restore_step(number, found.get(number), skipped)
            except _StepGoneError:
                continue
            except _TORN as error:
                if number not in found or not self._concerns_step(error):
                    raise
                raise self._name_step(error, number, found) from error

    def restore_newest_whole(self, newest: int | None) -> PyTree:
        """Restores the newest step that every process of the job can restore.

        Args:
            newest: Steps after this one are left out.
        """
        from .._hosts.agreement import join_job

        try:
            with join_job(self._url) as job:
                self._open_missing()
                while True:
                    offered, skipped = self._offer_steps(job, newest)
                    if not offered:
                        return self._begin_anew()
                    found, tree = self._try_steps(job, offered, list(skipped))
                    if found:
                        return tree
        except SaveError as error:
            text = f"The processes of this job did not agree on a step: {error}"
            raise SourceError(text) from error

    def _offer_steps(
        self, job: Hosts, newest: int | None
    ) -> tuple[list[tuple[int, str]], list[str]]:
        """The steps to try, newest first, as process 0 lists them; and what it can't restore."""
        offered: list[tuple[int, str]] = []
        skipped: list[str] = []
        if job.index == 0:
            steps = read_steps(self._url)
            found = find_committed(steps)
            if newest is not None and newest not in found:
                raise NotFound(f"{self._url} holds no committed step {newest}")
            if not found:
                refuse_unread(self._url, steps)
            offered = [(n, found[n]) for n in reversed(found) if newest is None or n <= newest]
            if offered and newest is None:
                skipped = list(find_untaken(self._url, steps, offered[0][0]))
        data = job.tell_all("listing the steps", msgspec.msgpack.encode((offered, skipped)))
        return msgspec.msgpack.decode(data, type=tuple[list[tuple[int, str]], list[str]])

    def _try_steps(
        self, job: Hosts, offered: Sequence[tuple[int, str]], skipped: list[str]
    ) -> tuple[bool, PyTree]:
        """Restores the first step that every process can restore.

        Returns:
            Whether there is one, and the tree. False if the steps were deleted meanwhile.
        """
        listed_again = False
        for step, key in offered:
            tree, problem = None, ""
            try:
                tree = self._restore_step(step, key, tuple(skipped))
            except _StepGoneError:
                problem = _GONE
            except _TORN as error:
                if not self._concerns_step(error):
                    raise
                problem = str(self._locate(error))
            except SourceError as error:
                if not self._is_disk_damage(error):
                    raise
                problem = str(error)
            # Which process had a problem does not matter: all of them go to the next step. Nor
            # does what the others found in a step that somebody is deleting.
            texts = job.gather(f"restoring step {step}", problem.encode())
            gone = _GONE.encode() in texts
            first = next((text for text in texts if text), b"")
            told = job.tell_all(f"judging step {step}", _GONE.encode() if gone else first)
            found = told.decode()
            if not found:
                return True, tree
            del tree
            if found == _GONE:
                listed_again = True
            else:
                self.damaged |= {step}
            skipped.append(f"`{key}` ({found})")
            _log.warning("step %d of %s is skipped: %s", step, self._url, found)
        if listed_again:
            return False, None
        raise Corrupted(f"Expected a step that is whole in {self._url}, found {'; '.join(skipped)}")

    def _begin_anew(self) -> PyTree:
        if self._options.missing_policy == "error":
            raise NotFound(
                f"{self._url} holds no committed step",
                hint="missing=templax.Recipe(init, key) begins with initial values",
            )
        empty = Catalog(
            self._url,
            "orbax",
            "a directory without steps",
            (),
            Memory({}),
            lambda _entries, _damages=None: {},
        )
        try:
            plan = api.make_plan(empty, self._template, self._options)
        except TemplateError as error:
            names = [m.name for m in error.mismatches if m.problem == "missing"]
            whole = len(names) == len(error.mismatches)
            if not whole or not isinstance(self._options.missing, Mapping):
                raise
            raise NotFound(
                f"{self._url} holds no committed step, and missing= does not give"
                f" {list_names(names)}"
            ) from error
        return api.run_plan(plan, self._options.on_progress, choice=StepChoice(None))

    def _restore_step(self, step: int, key: str | None, skipped: tuple[str, ...]) -> PyTree:
        """Restores a step, and keeps it from being deleted meanwhile.

        Args:
            step: Its number.
            key: Name of its directory; None if it was not listed, so that opening it tells why.
            skipped: The later steps that were not taken, each with the reason.

        Raises:
            _StepGoneError: It was listed and is not there.
        """
        path = os.path.join(self._url, str(step) if key is None else key)
        self._opened = None
        with hold_for_reading(path) as there:
            if key is not None and not there:
                raise _StepGoneError
            self._opened = _open_tree(path, self._item)
            plan = api.make_plan(self._opened, self._template, self._options)
            return api.run_plan(plan, self._options.on_progress, choice=StepChoice(step, skipped))

    def _concerns_step(self, error: CheckpointError) -> bool:
        """Whether the step is damaged, not the choice of an item or what is given as `missing=`."""
        if self._opened is None or error.leaf is None:
            return self._opened is not None
        try:
            return error.leaf in open_checkpoint(self._opened).leaves
        except TemplaxError:
            return True

    def _is_disk_damage(self, error: SourceError) -> bool:
        """Whether the disk failed to read a file of the step."""
        file = str(error.filename or "")
        return error.errno == errno.EIO and file.startswith(self._opened or self._url)

    def _name_step(
        self, error: CheckpointError, step: int, found: Mapping[int, str]
    ) -> CheckpointError:
        """The error of a damaged step with the path in full, and the step to restore instead."""
        located = self._locate(error)
        earlier = sorted((number for number in found if number < step), reverse=True)
        tried = (number for number in earlier[:_MAX_TRIED] if self._is_whole(found[number]))
        whole = next(tried, None)
        hint = error.hint
        if whole is not None:
            which = "previous step" if whole == earlier[0] else "newest whole step before it"
            told = f"the {which} is {whole}: `restore(template, {whole})`"
            hint = told if hint is None else f"{hint}; {told}"
        what = f"Step {step} is damaged: {error.what}"
        return _change_error(located, what=what, hint=hint)

    def _locate(self, error: CheckpointError) -> CheckpointError:
        """The error with the path of its file, or else of what was opened, in full."""
        return _change_error(error, file=os.path.join(self._opened or self._url, error.file or ""))

    def _is_whole(self, key: str) -> bool:
        """Whether a step fits the template and has all its bytes. Reads no array."""
        try:
            path = _open_tree(os.path.join(self._url, key), self._item)
            options = replace(self._options, mapped=False)
            return has_all_bytes(api.make_plan(path, self._template, options))
        except TemplaxError:
            return False


def _change_error(error: CheckpointError, **changes: Any) -> CheckpointError:
    names = ("what", "leaf", "file", "start", "stop", "hint", "box")
    arguments = {name: getattr(error, name) for name in names} | changes
    return type(error)(arguments.pop("what"), **arguments)


def has_all_bytes(plan: Plan) -> bool:
    """Whether every file that a plan reads is there and long enough."""
    ends: dict[tuple[int, str], int] = {}
    for batch in plan.batches:
        for op in batch.reads:
            if op.stop > op.start:
                place = op.source, op.key
                ends[place] = max(op.stop, ends.get(place, 0))
    for (source, key), stop in ends.items():
        info = plan.sources[source].stat(key)
        if info is None or info.size < stop:
            return False
    return True


def _open_tree(path: str, item: str | None) -> str:
    """The path to open for a step: that of its tree item, or the step itself if it has none."""
    name = choose_tree(path, item)
    return path if name is None else os.path.join(path, name)
