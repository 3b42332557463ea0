"""What a policy is told about a step."""

from __future__ import annotations

import datetime
from typing import Any, Protocol


class PolicyCheckpointInfo(Protocol):
    """A step as policies see it."""

    @property
    def step(self) -> int:
        """The step number."""
        ...

    @property
    def metrics(self) -> dict[str, Any] | None:
        """The metrics that the step was saved with, or None."""
        ...

    @property
    def time(self) -> datetime.datetime:
        """The time of the save, with its time zone."""
        ...
