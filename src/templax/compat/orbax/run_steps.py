"""The steps of a manager's run, named as its options say."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import templax as tx

from ..._hosts.agreement import Hosts
from ..._runs.agreed_steps import AgreedSteps
from ..._save.background import start_save
from ..._save.destination import Destination
from ..._save.options import SaveOptions
from .checkpoint_managers.preservation_policy import PreservationPolicy
from .options import CheckpointManagerOptions
from .path.step import standard_name_format, step_prefix_with_underscore
from .run_directory import delete_step, delete_steps, find_committed, find_named, refuse_existing
from .saver import PathLike
from .step_policies import StepInfo, StepInfos, select_replaced


class StepAlreadyExistsError(tx.AlreadyExists, ValueError):
    """The step exists, and stays as it is."""


class RunSteps:
    """The steps of a run.

    Args:
        root: The directory of the run.
        options: How steps are named.

    Attributes:
        infos: What policies are told of the steps.
    """

    def __init__(self, root: str, options: CheckpointManagerOptions):
        self._root, self._options, self._names = root, options, options.step_name_format
        prefix = options.step_prefix or None
        self._prefix = step_prefix_with_underscore(prefix)
        self._new_names = self._names or standard_name_format(
            step_prefix=prefix, step_format_fixed_length=options.step_format_fixed_length
        )
        self._agreed = AgreedSteps(root, self.find_on_disk)
        self.infos = StepInfos(root)

    def name_step(self, step: int) -> str:
        """The name of the directory of a new step."""
        return self._new_names.build_name(step)

    def find_on_disk(self, root: str | None = None) -> dict[int, str]:
        """Number → name of each committed step, as this process finds it, ascending.

        Args:
            root: The directory of another run.
        """
        root = self._root if root is None else root
        if self._names is not None:
            return find_named(root, self._names)
        return find_committed(root, self._prefix)

    def list_committed(self) -> dict[int, str]:
        """Number → name of each committed step, as all processes of the job see it."""
        return self._agreed.list_committed()

    def forget(self) -> None:
        """Lists the directory again."""
        self.infos.forget()
        self._agreed.forget()

    def find_path(self, step: int | None, directory: PathLike | None) -> str:
        """The path of a step, whether it is committed or not.

        Args:
            step: The number; None for the latest.
            directory: Another run.

        Raises:
            NotFound: There is no step of this number, or none at all.
        """
        root = self._root if directory is None else os.fspath(directory)
        steps = self.find_on_disk(root)
        if step is None:
            if not steps:
                raise tx.NotFound("Expected a committed step, found none", file=root)
            step = max(steps)
        path = os.path.join(root, steps[step] if step in steps else self.name_step(step))
        if step not in steps and not os.path.isdir(path):
            raise tx.NotFound(f"Expected step {step}, found none", file=root)
        return path

    def select_replaced(
        self, policy: PreservationPolicy, new: StepInfo, key: str
    ) -> dict[int, str]:
        """Number → name of the steps to delete once a new one is saved, possibly that one too.

        Args:
            policy: Which steps stay.
            new: The new step.
            key: Its name.
        """
        found = self.list_committed()
        steps = [each for each in self.infos.look_up(found) if each.step != new.step]
        replaced = select_replaced(policy, [*steps, new])
        return {step: name for step, name in {**found, new.step: key}.items() if step in replaced}

    def start_save(
        self,
        call: Hosts,
        info: StepInfo,
        contents: Mapping[str, Any],
        replaced: Mapping[int, str],
        options: SaveOptions,
        *,
        wait: bool,
        earlier: tx.SaveError | None,
    ) -> tx.Saved:
        """Saves a step, or begins to; then deletes those that it replaces.

        Args:
            call: The call that saves.
            info: The step.
            contents: Item name → what to save.
            replaced: Number → name of the steps to delete.
            options: How to save. With `overwrite`, the step may exist.
            wait: Whether to return only when all is done.
            earlier: See `Hosts.join`.

        Raises:
            StepAlreadyExistsError: The step exists.
            SaveError: See `templax.save`.
        """

        def decide() -> Destination:  # process 0, for the whole job
            found = self.find_on_disk()
            if not options.overwrite or found.get(info.step) != os.path.basename(info.path):
                refuse_existing(self._root, found, info.step)
            return Destination(info.path)

        def after(call: Hosts) -> None:
            if call.index == 0:
                delete_steps(self._root, replaced, self._options.todelete_subdir)
            self._agreed.share(call)
            async_options = self._options.async_options
            if async_options and async_options.post_finalization_callback is not None:
                async_options.post_finalization_callback()
            if options.after is not None:
                options.after(call)

        complete = replace(options, after=after)
        try:
            return start_save(
                call, info.path, contents, complete, decide, wait=wait, earlier=earlier
            )
        except tx.AlreadyExists as error:
            raise StepAlreadyExistsError(error.what, file=error.file, hint=error.hint) from error

    def delete(self, call: Hosts, step: int) -> None:
        """Deletes a step for all processes; see `CheckpointManager.delete`."""
        if call.index == 0:
            found = self.find_on_disk()
            if step not in found:
                raise tx.NotFound(f"Expected step {step}, found none", file=self._root)
            if not delete_step(self._root, found[step], self._options.todelete_subdir):
                path = os.path.join(self._root, found[step])
                raise tx.SaveError("Expected a step that nobody is restoring", file=path)
        call.tell_all("deleting a step")
        self._agreed.share(call)
