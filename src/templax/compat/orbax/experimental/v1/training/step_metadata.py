"""JAX. The metadata of a step, and of the directory of all steps."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any, TypeVar

from ..checkpoint_metadata import CheckpointMetadata as _CheckpointMetadata
from ..checkpoint_metadata import make_time

_T = TypeVar("_T")


class CheckpointMetadata(_CheckpointMetadata[_T]):
    """The metadata of a step.

    Args:
        step: The step number.
        path: The path of the step.
        metadata: See `templax.compat.orbax.v1.CheckpointMetadata`; None if nothing was read.
        init_timestamp_nsecs, commit_timestamp_nsecs, custom_metadata: See the same.
        metrics: The metrics that the step was saved with, or None.

    Example:
        >>> import os, tempfile, numpy as np
        >>> from templax.compat.orbax import v1 as ocp
        >>> root = os.path.join(tempfile.mkdtemp(), "run")
        >>> with ocp.training.Checkpointer(root) as checkpointer:
        ...     saved = checkpointer.save(7, {"w": np.ones(3)}, metrics={"loss": 0.5})
        ...     checkpointer.latest.step, checkpointer.latest.metrics
        (7, {'loss': 0.5})
    """

    def __init__(
        self,
        step: int,
        path: Any,
        *,
        metadata: _T,
        init_timestamp_nsecs: int | None = None,
        commit_timestamp_nsecs: int | None = None,
        custom_metadata: Any = None,
        metrics: Any = None,
    ) -> None:
        super().__init__(
            path,
            metadata=metadata,
            init_timestamp_nsecs=init_timestamp_nsecs,
            commit_timestamp_nsecs=commit_timestamp_nsecs,
            custom_metadata=custom_metadata,
        )
        self._step, self._metrics = step, metrics

    @property
    def step(self) -> int:
        """The step number."""
        return self._step

    @property
    def metrics(self) -> Any:
        """The metrics that the step was saved with, or None."""
        return self._metrics

    @property
    def time(self) -> datetime.datetime | None:
        """The time of the save, in UTC, or None."""
        return make_time(self.commit_timestamp_nsecs)

    def _list_properties(self) -> dict[str, Any]:
        return {"step": self.step, **super()._list_properties(), "metrics": self.metrics}


@dataclass(frozen=True, kw_only=True)
class RootMetadata:
    """The metadata of the directory of all steps.

    Attributes:
        directory: The directory.
        custom_metadata: The `custom_metadata` of the `Checkpointer` that made it.
    """

    directory: Any
    custom_metadata: Any = None
