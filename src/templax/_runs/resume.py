"""Restores a step of a run: the latest, another, the newest whole one, or initial values.

In a job of several processes, process 0 lists the steps and chooses, and all restore what it chose:
either all have it, or all raise the same error.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import msgspec

from .._catalog.catalog import Catalog
from .._core.arguments import PyTree
from .._core.text import list_names
from .._hosts.agreement import Hosts
from .._match.result import TemplateError
from .._plan.plan import Plan
from .._plan.sharing import Machine
from .._restore import api
from .._restore.options import Missing, RestoreOptions
from .._restore.planning import describe_machine, make_plan
from .._restore.prepare import open_missing
from .._restore.stats import StepChoice
from .._restore.together import (
    await_checkpoint,
    identify_checkpoint,
    plan_together,
    run_together,
)
from .._views.merge import Merged
from .._views.view import View
from ..errors import (
    CheckpointError,
    Corrupted,
    NotFound,
    SourceError,
    TemplaxError,
    UnknownFormat,
)
from ..formats.registry import open_checkpoint
from ..storage.memory import Memory
from ..storage.source import Source
from .contents import choose_tree, find_committed, find_untaken, read_steps, refuse_unread
from .run_storage import RunStorage

_TORN = (Corrupted, NotFound, UnknownFormat)
"""Errors of a committed step of which something is missing or damaged."""

_MAX_TRIED = 8
"""Most steps that are tried to find one to hint at."""

_GONE = "it was deleted meanwhile"

_log = logging.getLogger("templax")


class _Offered(msgspec.Struct, array_like=True):
    """What process 0 offers to restore.

    Attributes:
        steps: Number, directory name (None if it was not listed, so that opening it tells why) and
            digest of each step, in the order in which they are tried.
        skipped: What could not be taken, each with the reason.
        committed: Number → directory name of all committed steps.
        machine: What process 0 runs on.
    """

    steps: list[tuple[int, str | None, bytes]] = []
    skipped: list[str] = []
    committed: dict[int, str] = {}
    machine: Machine = Machine(1)


class _StepGoneError(Exception):
    """A step was deleted or replaced after it was listed."""


class StepRestore:
    """One call of `Manager.restore`, which describes the arguments.

    Args:
        run: The directory of the run.
        item: Name of the item to restore, if the caller gave one.
        template: The template.
        options: The keyword arguments.
        call: The call that restores, of all processes of the job.

    Attributes:
        damaged: The steps that were found damaged with `fallback`, the same on all processes.
    """

    def __init__(
        self,
        run: RunStorage,
        item: str | None,
        template: PyTree,
        options: RestoreOptions,
        call: Hosts,
    ):
        self._run, self._url, self._item, self._template = run, run.url, item, template
        self._options, self._call = options, call
        self._given = _list_paths(options.missing)
        self.damaged: frozenset[int] = frozenset()
        self._look: Source | None = None  # the run, as process 0 listed it
        self._machine: Machine | None = None
        self._deleted = False  # whether another process deleted the step to restore
        self._opened: Source | None = None  # what to restore, once a step and item are chosen

    def _open_missing(self) -> None:
        """Opens what is given as `missing=` ahead of the steps: its errors are not a step's."""
        if self._options.missing_policy is None:
            missing = open_missing(self._options.missing)
            self._options = replace(self._options, missing=missing)

    def restore(self, step: int | None, *, fallback: bool) -> PyTree:
        """Restores a step; without any, gives initial values.

        Args:
            step: The step; None for the latest.
            fallback: Whether to try earlier steps, too: the newest that every process can restore.
        """
        self._open_missing()
        call, facts = self._call, {"fallback=": str(fallback), "item=": str(self._item)}
        facts["share_reads="] = repr(self._options.share_reads)
        with ExitStack() as held:

            def offer_steps() -> bytes:
                return msgspec.msgpack.encode(self._offer_steps(step, fallback, held))

            told = call.join(facts, make_reply=offer_steps)
            while True:
                offered = msgspec.msgpack.decode(told, type=_Offered)
                self._machine = offered.machine
                if not offered.steps:
                    return self._begin_anew()
                try:
                    if fallback:
                        return self._try_steps(offered)
                    return self._restore_only(offered, held)
                except NotFound:
                    if not self._deleted or step is not None or call.count > 1:
                        raise
                    told, self._deleted = offer_steps(), False
                except _StepGoneError:
                    told = call.tell_all(
                        "listing the steps", offer_steps() if call.index == 0 else None
                    )

    def _offer_steps(self, step: int | None, fallback: bool, held: ExitStack) -> _Offered:
        """The steps to try, as process 0 lists them.

        Args:
            step, fallback: See `restore`.
            held: Keeps the step from being deleted while it is read, if only one is tried.
        """
        while True:
            self._look = self._run.look()
            steps = read_steps(self._look)
            found = find_committed(steps)
            if not found and step is None:
                refuse_unread(self._look, steps, self._run, self._given)
            if fallback and step is not None and step not in found:
                raise NotFound(f"{self._url} holds no committed step {step}")
            numbers = [n for n in reversed(found) if step is None or n <= step]
            if not fallback:
                numbers = numbers[:1] if step is None else [step]
            if fallback or not numbers:
                break
            only = numbers[0]
            key = found.get(only)
            there = held.enter_context(self._run.hold_for_reading(_choose_name(only, key)))
            if there or only not in found:  # else it was deleted after it was listed
                break
        skipped = find_untaken(self._look, steps, numbers[0]) if step is None and numbers else ()
        offers = [self._offer_step(n, found.get(n)) for n in numbers]
        return _Offered(offers, list(skipped), found, describe_machine())

    def _find_step(self, name: str) -> Source:
        """The directory of a step: of those that process 0 listed, or else as it is now."""
        return (self._look or self._run.look()).at(name)

    def _offer_step(self, step: int, key: str | None) -> tuple[int, str | None, bytes]:
        several = self._call.count > 1 and key is not None
        identity = identify_checkpoint(self._find_step(key)) if several and key else b""
        return step, key, identity

    def _restore_only(self, offered: _Offered, held: ExitStack) -> PyTree:
        """Restores the only step that is offered.

        Args:
            offered: The step. Process 0 keeps it from being deleted.
            held: Keeps it from being deleted on the other processes, too.
        """
        ((step, key, identity),) = offered.steps
        name = _choose_name(step, key)
        if self._call.index > 0:
            held.enter_context(self._run.hold_for_reading(name))
        if offered.skipped:
            later = "; ".join(offered.skipped)
            _log.warning("step %d of %s is restored, not %s", step, self._url, later)

        def name_step(error: TemplaxError) -> TemplaxError:
            self._deleted = self._was_deleted(error, key)
            if self._deleted:
                return _describe_deleted(error, self._run.join(name))
            if isinstance(error, _TORN) and key is not None and self._concerns_step(error):
                return self._name_step(error, step, offered.committed)
            return error

        choice = StepChoice(step, tuple(offered.skipped))
        plan = plan_together(
            self._call, lambda: self._make_plan(name, identity, joint=True), explain=name_step
        )
        return run_together(
            self._call,
            plan,
            functools.partial(api.run_plan, choice=choice),
            self._options.on_progress,
            explain=name_step,
        )

    def _was_deleted(self, error: TemplaxError, key: str | None) -> bool:
        """Whether a step lacks something because it was deleted after it was listed.

        In an object store, nothing keeps another process from deleting it.
        """
        if key is None or not isinstance(error, (*_TORN, SourceError)):
            return False
        try:
            return key not in find_committed(read_steps(self._run.look())).values()
        except TemplaxError:
            return False

    def _make_plan(self, name: str, identity: bytes, *, joint: bool) -> Plan:
        storage = self._run.storage
        await_checkpoint(self._call, self._run.join(name), identity, storage)
        self._opened = _open_tree(self._find_step(name), self._item)
        opened, joint = self._opened, joint and self._call.count > 1
        return make_plan(opened, self._template, self._options, joint=joint, machine=self._machine)

    def _try_steps(self, offered: _Offered) -> PyTree:
        """Restores the first step that every process can restore.

        Raises:
            _StepGoneError: There is none, and steps were deleted meanwhile.
        """
        call, skipped = self._call, list(offered.skipped)
        listed_again = False
        for step, key, identity in offered.steps:
            tree, problem = None, ""
            try:
                tree = self._restore_step(step, key, identity, tuple(skipped))
            except _StepGoneError:
                problem = _GONE
            except _TORN as error:
                if self._was_deleted(error, key):
                    problem = _GONE
                elif not self._concerns_step(error):
                    raise
                else:
                    problem = str(self._locate(error))
            except SourceError as error:
                if not self._is_disk_damage(error):
                    raise
                problem = str(error)
            # Which process had a problem does not matter: all of them go to the next step. Nor
            # does what the others found in a step that somebody is deleting.
            texts = call.gather(f"restoring step {step}", problem.encode())
            gone = _GONE.encode() in texts
            first = next((text for text in texts if text), b"")
            told = call.tell_all(f"judging step {step}", _GONE.encode() if gone else first)
            found = told.decode()
            if not found:
                return tree
            del tree
            if found == _GONE:
                listed_again = True
            else:
                self.damaged |= {step}
            skipped.append(f"`{key}` ({found})")
            _log.warning("step %d of %s is skipped: %s", step, self._url, found)
        if listed_again:
            raise _StepGoneError
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

        def plan_empty() -> Plan:
            try:
                return make_plan(empty, self._template, self._options, joint=False)
            except TemplateError as error:
                names = [m.name for m in error.mismatches if m.problem == "missing"]
                whole = len(names) == len(error.mismatches)
                if not whole or not isinstance(self._options.missing, Mapping):
                    raise
                raise NotFound(
                    f"{self._url} holds no committed step, and missing= does not give"
                    f" {list_names(names)}"
                ) from error

        run = functools.partial(api.run_plan, choice=StepChoice(None))
        plan = plan_together(self._call, plan_empty)
        return run_together(self._call, plan, run, self._options.on_progress)

    def _restore_step(
        self, step: int, key: str | None, identity: bytes, skipped: tuple[str, ...]
    ) -> PyTree:
        """Restores a step on this process.

        Args:
            step: Its number.
            key: Name of its directory.
            identity: The digest by which process 0 knows it.
            skipped: The later steps that were not taken, each with the reason.

        Raises:
            _StepGoneError: It was listed and is not there.
        """
        name = _choose_name(step, key)
        self._opened = None
        with self._run.hold_for_reading(name) as there:
            if self._call.index == 0 and not there:
                raise _StepGoneError
            # Each process tries the step by itself, so none can rely on what others read of it.
            plan = self._make_plan(name, identity, joint=False)
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
        return error.errno == errno.EIO and file.startswith(self._opened_url)

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
        return _change_error(error, file=os.path.join(self._opened_url, error.file or ""))

    @property
    def _opened_url(self) -> str:
        return self._url if self._opened is None else self._opened.url

    def _is_whole(self, key: str) -> bool:
        """Whether a step fits the template and has all its bytes. Reads no array."""
        try:
            tree = _open_tree(self._find_step(key), self._item)
            options = replace(self._options, mapped=False)
            return has_all_bytes(make_plan(tree, self._template, options))
        except TemplaxError:
            return False


def _list_paths(missing: Missing) -> list[str]:
    """The paths of checkpoints given as `missing=`, including those that views show."""
    given: list[Any] = [*missing.values()] if isinstance(missing, Mapping) else [missing]
    paths: list[str] = []
    while given:
        each = given.pop()
        if isinstance(each, View):
            given.append(each.checkpoint)
        elif isinstance(each, Merged):
            given += [checkpoint for checkpoint, _ in each.parts]
        elif isinstance(each, Catalog):
            paths.append(each.url)
        elif isinstance(each, (str, os.PathLike)):
            paths.append(os.fspath(each))
    return [path for path in paths if path not in ("error", "keep")]


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


def _open_tree(step: Source, item: str | None) -> Source:
    """What to open of a step: its tree item, or the step itself if it has none."""
    name = choose_tree(step, item)
    return step if name is None else step.at(name)


def _choose_name(step: int, key: str | None) -> str:
    return str(step) if key is None else key


def _describe_deleted(error: TemplaxError, place: str) -> NotFound:
    return NotFound(
        f"The step was deleted while it was being restored: {error}",
        file=place,
        hint="restore again, for the latest step that there is now",
    )
