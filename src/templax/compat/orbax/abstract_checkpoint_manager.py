"""Orbax's `AbstractCheckpointManager`: the interface that all managers share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from .unmapped import make_getattr

__all__ = ["AbstractCheckpointManager"]


@runtime_checkable
class AbstractCheckpointManager(Protocol):
    """What every manager of a run can do; see `CheckpointManager` for what each call does.

    Example:
        >>> import tempfile
        >>> from templax.compat import orbax as ocp
        >>> manager = ocp.CheckpointManager(tempfile.mkdtemp())
        >>> isinstance(manager, ocp.AbstractCheckpointManager)
        True
    """

    @property
    def directory(self) -> Path:
        """The directory of the steps."""
        ...

    def all_steps(self, read: bool = False) -> Sequence[int]:
        """The steps."""
        ...

    def latest_step(self) -> int | None:
        """The latest step, or None."""
        ...

    def best_step(self) -> int | None:
        """The best step, or None."""
        ...

    def reload(self) -> None:
        """Lists the directory again."""
        ...

    def reached_preemption(self, step: int) -> bool:
        """Whether a preemption of the job is announced."""
        ...

    def should_save(self, step: int) -> bool:
        """Whether `save` would save this step."""
        ...

    def delete(self, step: int) -> None:
        """Deletes a step."""
        ...

    def save(self, step: int, *args: Any, **kwargs: Any) -> bool:
        """Saves a step if it is due."""
        ...

    def restore(self, step: int | None, *args: Any, **kwargs: Any) -> Any:
        """Restores a step."""
        ...

    def item_metadata(self, step: int) -> Any:
        """The metadata of the items of a step."""
        ...

    def metadata(self, step: int | None = None) -> Any:
        """The metadata of a step, or of the run."""
        ...

    def metrics(self, step: int) -> Any:
        """The metrics of a step, or None."""
        ...

    def wait_until_finished(self) -> None:
        """Returns once no save is in progress."""
        ...

    def check_for_errors(self) -> None:
        """Raises the error of a save that has failed."""
        ...

    def close(self) -> None:
        """Waits for the save in progress."""
        ...


__getattr__ = make_getattr("abstract_checkpoint_manager.")
