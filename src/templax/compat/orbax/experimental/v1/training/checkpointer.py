"""JAX. Orbax's v1 `Checkpointer`: saves, keeps, lists and loads the steps of a training."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Unpack

from ......_core.arguments import PyTree
from ......_runs.locks import hold_for_reading
from ....checkpoint_managers.preservation_policy import PreservationPolicy, PreserveAll
from ....checkpoint_managers.save_decision_policy import (
    AnySavePolicy,
    ContinuousCheckpointingPolicy,
    InitialSavePolicy,
    PreemptionCheckpointingPolicy,
    SaveDecisionPolicy,
)
from ....options import CheckpointManagerOptions
from ....saver import PathLike
from ....step_policies import StepInfo
from ....unmapped import make_unmapped_error
from .. import checkpoint_metadata, loading
from ..checkpointable import STATE
from ..context import Context, get_context
from ..response import AsyncResponse
from ..saving import check_leaves
from .step_manager import SaveKeywords, StepManager
from .step_metadata import CheckpointMetadata, RootMetadata

Step = int | CheckpointMetadata[Any]


class Checkpointer:
    """Saves the steps of a training, deletes those that need not be kept, and loads them.

    All processes of a job make the same calls. At most one save is in progress at a time.

    Args:
        directory: The directory of the steps.
        context: The options where no other context is active; by default, those of the context
            that is active now.
        save_decision_policy: Which steps are saved. By default the first one, any other while no
            save is in progress, and one if JAX announces a preemption.
        preservation_policy: Which steps stay when another is saved; by default all.
        step_name_format: How steps are named; by default by their number.
        custom_metadata: JSON that is stored with the run, unless an earlier one has stored some.
        cleanup_tmp_directories: Removes what killed saves left behind.
        lightweight_initialize: No effect: nothing of a step is read before it is asked for.

    Example:
        >>> import os, tempfile, numpy as np
        >>> from templax.compat.orbax import v1 as ocp
        >>> root = os.path.join(tempfile.mkdtemp(), "run")
        >>> policies = ocp.training.save_decision_policies, ocp.training.preservation_policies
        >>> with ocp.training.Checkpointer(
        ...     root,
        ...     save_decision_policy=policies[0].FixedIntervalPolicy(10),
        ...     preservation_policy=policies[1].LatestN(2),
        ... ) as checkpointer:
        ...     for step in range(31):
        ...         saved = checkpointer.save(step, {"w": np.full(3, step)})
        ...     steps = [each.step for each in checkpointer.checkpoints]
        ...     steps, checkpointer.load(checkpointer.latest)["w"].tolist()
        ([20, 30], [30, 30, 30])
    """

    def __init__(
        self,
        directory: PathLike,
        *,
        context: Context | None = None,
        save_decision_policy: SaveDecisionPolicy | None = None,
        preservation_policy: PreservationPolicy | None = None,
        step_name_format: Any = None,
        custom_metadata: Mapping[str, Any] | None = None,
        cleanup_tmp_directories: bool = False,
        lightweight_initialize: bool = False,
    ) -> None:
        self._context = Context(context or get_context())
        usual = [
            InitialSavePolicy(),
            ContinuousCheckpointingPolicy(),
            PreemptionCheckpointingPolicy(),
        ]
        options = CheckpointManagerOptions(
            save_decision_policy=save_decision_policy or AnySavePolicy(usual),
            preservation_policy=preservation_policy or PreserveAll(),
            step_name_format=step_name_format,
            cleanup_tmp_directories=cleanup_tmp_directories,
            lightweight_initialize=lightweight_initialize,
            multiprocessing_options=self._context.multiprocessing,
            prevent_write_metrics=True,  # they are a checkpointable
        )
        self._manager = StepManager(directory, options, custom_metadata)

    # --- listing

    @property
    def directory(self) -> Any:
        """The directory of the steps."""
        return self._make_path(self._manager.directory)

    @property
    def latest(self) -> CheckpointMetadata[None] | None:
        """The step with the highest number, or None; see `checkpoints`."""
        steps = self._manager.list_steps()
        return self._describe(steps[-1]) if steps else None

    @property
    def checkpoints(self) -> list[CheckpointMetadata[None]]:
        """The steps, ascending, including one that is being saved; without their `metadata`."""
        return [self._describe(each) for each in self._manager.list_steps()]

    def reload(self) -> None:
        """Lists the directory again. Processes of a job otherwise do so only before a save."""
        self._manager.reload()

    def _describe(self, info: StepInfo) -> CheckpointMetadata[None]:
        return CheckpointMetadata(
            info.step,
            self._make_path(info.path),
            metadata=None,
            commit_timestamp_nsecs=int(info.time.timestamp() * 1e9),
            metrics=info.metrics,
        )

    def _make_path(self, path: PathLike) -> Any:
        return get_context(self._context).file.path_class(path)

    # --- saving

    def should_save(self, step: Step) -> bool:
        """Whether `save` would save this step."""
        with get_context(self._context):
            return self._manager.should_save(_read_number(step))

    def save(
        self,
        step: int,
        state: PyTree,
        *,
        checkpointable_name: str = STATE,
        force: bool = False,
        overwrite: bool = False,
        metrics: Any = None,
        custom_metadata: Mapping[str, Any] | None = None,
    ) -> bool:
        """Saves a tree, if the step is due.

        Args:
            step: The step number.
            state: See `templax.compat.orbax.v1.save`.
            checkpointable_name: The name of the tree in the checkpoint.
            force: Saves whatever the `SaveDecisionPolicy` says.
            overwrite: Replaces the step if it exists, atomically.
            metrics: JSON that policies compare steps by.
            custom_metadata: JSON that is stored with the step.

        Returns:
            Whether it was saved.

        Raises:
            StepAlreadyExistsError: The step exists.
            SaveError: See `templax.save`; also raised if the previous save failed.
        """
        response = self.save_async(
            step,
            state,
            checkpointable_name=checkpointable_name,
            force=force,
            overwrite=overwrite,
            metrics=metrics,
            custom_metadata=custom_metadata,
        )
        return response is not None and response.result()

    def save_async(
        self,
        step: int,
        state: PyTree,
        *,
        checkpointable_name: str = STATE,
        **keywords: Unpack[SaveKeywords],
    ) -> AsyncResponse[bool] | None:
        """Like `save`, except that it returns as soon as the values are safe from later changes.

        Returns:
            The handle of the save; None if the step is not due.
        """
        check_leaves(state)
        return self.save_checkpointables_async(step, {checkpointable_name: state}, **keywords)

    def save_checkpointables(
        self,
        step: int,
        checkpointables: Mapping[str, Any],
        **keywords: Unpack[SaveKeywords],
    ) -> bool:
        """Saves checkpointables, if the step is due.

        Args:
            step: The step number.
            checkpointables: See `templax.compat.orbax.v1.save_checkpointables`.
            **keywords: `force`, `overwrite`, `metrics` and `custom_metadata`; see `save`.

        Returns:
            Whether they were saved.

        Raises:
            StepAlreadyExistsError, SaveError: See `save`.
            KeyError: No handler saves one of them.
        """
        response = self.save_checkpointables_async(step, checkpointables, **keywords)
        return response is not None and response.result()

    def save_checkpointables_async(
        self,
        step: int,
        checkpointables: Mapping[str, Any],
        **keywords: Unpack[SaveKeywords],
    ) -> AsyncResponse[bool] | None:
        """Like `save_checkpointables`, but returns as soon as the values are safe."""
        with get_context(self._context) as context:
            callback = context.asynchronous.post_finalization_callback
            return self._manager.save_checkpointables(
                step, checkpointables, callback=callback, **keywords
            )

    def is_saving_in_progress(self) -> bool:
        """Whether a save is in progress in the background."""
        return self._manager.is_saving_in_progress()

    def wait(self) -> None:
        """Returns once the latest step is saved and the steps that it replaces are deleted.

        Raises:
            SaveError: The step was not saved. Raised once in each thread, until the next save.
        """
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits like `wait`."""
        self._manager.close()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- loading

    def load(
        self,
        step: Step | None = None,
        abstract_state: PyTree = None,
        *,
        checkpointable_name: str = STATE,
    ) -> Any:
        """Loads a tree, once a save in progress is finished.

        Args:
            step: The step; None is the latest.
            abstract_state: See `templax.compat.orbax.v1.load`.
            checkpointable_name: The name of the tree in the checkpoint.

        Raises:
            StepNotFoundError: The run has no such step.
            KeyError: The step has no such checkpointable.
            TemplateError: The checkpoint does not fit the template; lists every leaf.
        """
        abstract = loading.resolve_abstract(abstract_state)
        loading.check_abstract_leaves(abstract)
        loaded = self.load_checkpointables(step, {checkpointable_name: abstract})
        return loaded[checkpointable_name]

    def load_checkpointables(
        self, step: Step | None = None, abstract_checkpointables: Any = None
    ) -> dict[str, Any]:
        """Loads checkpointables, once a save in progress is finished.

        Args:
            step: The step; None is the latest.
            abstract_checkpointables: See `templax.compat.orbax.v1.load_checkpointables`.

        Raises:
            StepNotFoundError: The run has no such step.
            KeyError, TemplateError: See `templax.compat.orbax.v1.load_checkpointables`.
        """
        with get_context(self._context):
            path = self._find_step(step).path
            with hold_for_reading(path):
                return loading.load_checkpointables(path, abstract_checkpointables)

    def load_async(self, *args: Any, **options: Any) -> AsyncResponse[Any]:
        """Raises `NotImplementedError`, as Orbax's own does."""
        raise make_unmapped_error("load_async", "load, which reads with several threads")

    def load_checkpointables_async(self, *args: Any, **options: Any) -> AsyncResponse[Any]:
        """Raises `NotImplementedError`, as Orbax's own does."""
        raise make_unmapped_error("load_checkpointables_async", "load_checkpointables")

    # --- metadata

    def metadata(self, step: Step | None = None) -> CheckpointMetadata[Any]:
        """Describes the tree of a step; see `templax.compat.orbax.v1.metadata`.

        Args:
            step: The step; None is the latest.

        Raises:
            StepNotFoundError: The run has no such step.
            InvalidLayoutError: It has no tree.
        """
        return self._read_metadata(step, checkpoint_metadata.metadata)

    def checkpointables_metadata(self, step: Step | None = None) -> CheckpointMetadata[Any]:
        """Describes the checkpointables of a step, except for its metrics.

        See `templax.compat.orbax.v1.checkpointables_metadata`.

        Args:
            step: The step; None is the latest.

        Raises:
            StepNotFoundError: The run has no such step.
        """
        return self._read_metadata(step, checkpoint_metadata.checkpointables_metadata)

    def _read_metadata(self, step: Step | None, read: Any) -> CheckpointMetadata[Any]:
        with get_context(self._context):
            info = self._find_step(step)
            found: checkpoint_metadata.CheckpointMetadata[Any] = read(info.path)
            return CheckpointMetadata(
                info.step,
                found.path,
                metadata=found.metadata,
                init_timestamp_nsecs=found.init_timestamp_nsecs,
                commit_timestamp_nsecs=found.commit_timestamp_nsecs,
                custom_metadata=found.custom_metadata,
                metrics=info.metrics,
            )

    def root_metadata(self) -> RootMetadata:
        """Returns the metadata of the directory of all steps."""
        custom = self._manager.metadata(None).custom_metadata
        return RootMetadata(directory=self.directory, custom_metadata=custom)

    def _find_step(self, step: Step | None) -> StepInfo:
        return self._manager.find_step(None if step is None else _read_number(step))

    # --- older names

    def save_pytree(self, *args: Any, **kwargs: Any) -> bool:
        """The older name of `save`."""
        warnings.warn("Use `save` instead.", DeprecationWarning, stacklevel=2)
        return self.save(*args, **kwargs)

    def save_pytree_async(self, *args: Any, **kwargs: Any) -> AsyncResponse[bool] | None:
        """The older name of `save_async`."""
        warnings.warn("Use `save_async` instead.", DeprecationWarning, stacklevel=2)
        return self.save_async(*args, **kwargs)

    def load_pytree(self, *args: Any, **kwargs: Any) -> Any:
        """The older name of `load`."""
        warnings.warn("Use `load` instead.", DeprecationWarning, stacklevel=2)
        return self.load(*args, **kwargs)

    def load_pytree_async(self, *args: Any, **kwargs: Any) -> AsyncResponse[Any]:
        """The older name of `load_async`."""
        warnings.warn("Use `load_async` instead.", DeprecationWarning, stacklevel=2)
        return self.load_async(*args, **kwargs)

    def pytree_metadata(self, *args: Any, **kwargs: Any) -> CheckpointMetadata[Any]:
        """The older name of `metadata`."""
        warnings.warn("Use `metadata` instead.", DeprecationWarning, stacklevel=2)
        return self.metadata(*args, **kwargs)


def _read_number(step: Step) -> int:
    number: Any = getattr(step, "step", step)  # which may be an array
    return int(number)
