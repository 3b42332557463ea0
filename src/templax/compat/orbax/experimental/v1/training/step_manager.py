"""JAX. The manager of the older API with the items of the v1 API: checkpointables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from ......_save.options import SaveOptions
from ....checkpoint_manager import CheckpointManager
from ....options import CheckpointManagerOptions
from ....run_items import RunItems
from ....saver import PathLike
from ....step_policies import StepInfo
from ..response import SaveResponse
from ..saving import check_checkpointables, make_contents
from .errors import StepAlreadyExistsError, StepNotFoundError


class SaveKeywords(TypedDict, total=False):
    """The keyword arguments of the methods of a `Checkpointer` that save; see its `save`."""

    force: bool
    overwrite: bool
    metrics: Any
    custom_metadata: Mapping[str, Any] | None


class StepResponse(SaveResponse[bool]):
    """The handle of the save of a step."""

    def __init__(self, manager: StepManager) -> None:
        super().__init__(result=True)
        self._manager = manager

    def result(self, timeout: float | None = None) -> bool:
        """See `AsyncResponse`."""
        try:
            return super().result(timeout)
        except BaseException as error:
            self._manager.note_raised(error)
            raise


@dataclass
class _Checkpointables:
    """The args of the save of a step.

    Attributes:
        named: Name → checkpointable.
        metrics: JSON, or None.
        overwrite: Whether the step may exist.
        response: The handle of the save.
        callback: Called once the step is saved, or None.
    """

    named: Any
    metrics: Any
    overwrite: bool
    response: StepResponse
    callback: Any


class _Items(RunItems):
    """The checkpointables of each step."""

    def read_save_args(self, items: Any, save_kwargs: Any, args: Any) -> Any:
        """See `RunItems`."""
        check_checkpointables(args.named)
        return args

    def make_contents(self, args: Any, metrics: Any, *, background: bool) -> dict[str, Any]:
        """See `RunItems`."""
        return make_contents(args.named, args.metrics)


class StepManager(CheckpointManager):
    """Keeps the steps of a `Checkpointer`.

    Args:
        directory: The directory of the run.
        options: Which steps are saved and kept.
        metadata: JSON that is stored with the run, unless there is some.
    """

    def __init__(
        self,
        directory: PathLike,
        options: CheckpointManagerOptions,
        metadata: Mapping[str, Any] | None,
    ) -> None:
        super().__init__(directory, options=options, metadata=metadata)
        self._items = _Items(None, None, None, None)

    def list_steps(self) -> list[StepInfo]:
        """The steps, ascending, including one that is being saved."""
        return self._checkpoints

    def find_step(self, step: int | None) -> StepInfo:
        """A step, by default the latest; once a save in progress is finished.

        Raises:
            StepNotFoundError: There is none.
        """
        self.wait_until_finished()
        found = self.list_steps()
        if step is not None:
            found = [each for each in found if each.step == step]
        if not found:
            what = "a checkpoint" if step is None else f"a checkpoint of step {step}"
            raise StepNotFoundError(f"Expected {what}, found none", file=self._root)
        return found[-1]

    def save_checkpointables(
        self,
        step: int,
        checkpointables: Mapping[str, Any],
        *,
        callback: Any,
        force: bool = False,
        overwrite: bool = False,
        metrics: Any = None,
        custom_metadata: Mapping[str, Any] | None = None,
    ) -> StepResponse | None:
        """Saves a step, or begins to, if it is due; see `Checkpointer.save_checkpointables`.

        Args:
            callback: Called once the step is saved, in the thread that saves; or None.

        Returns:
            The handle; None if the step is not due.
        """
        if self._previous is None:
            self._previous = self.list_steps()
        others = [each for each in self._previous if each.step != step]
        replaces = len(others) < len(self._previous)
        if replaces and not overwrite:
            raise StepAlreadyExistsError(
                f"Step {step} already exists", file=self._root, hint="overwrite=True"
            )
        self._previous = others  # whether it is due does not depend on what it replaces
        response = StepResponse(self)
        args = _Checkpointables(checkpointables, metrics, overwrite, response, callback)
        if self.save(
            step, metrics=metrics, force=force, args=args, custom_metadata=custom_metadata
        ):
            assert self._saved is not None
            response.saved = self._saved
            return response
        if replaces:
            self._previous = None
        return None

    def note_raised(self, error: BaseException) -> None:
        """Notes that a call of this thread raises an error, which may be that of the save."""
        if not self.is_saving_in_progress() and self._find_failure() is error:
            self._failure.mark_told()

    def _make_save_options(self, args: Any, metadata: Mapping[str, Any] | None) -> SaveOptions:
        def finish(_: Any) -> None:
            if args.callback is not None:
                args.callback()
            args.response.complete()

        options = super()._make_save_options(args, metadata)
        return replace(options, overwrite=args.overwrite, after=finish)
