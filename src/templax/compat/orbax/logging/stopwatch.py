"""Measures what an entry for a logger says."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from .step_statistics import RestoreStepStatistics, SaveStepStatistics


class Stopwatch:
    """Fills in the times of an entry.

    Args:
        entry: The entry.
    """

    def __init__(self, entry: SaveStepStatistics | RestoreStepStatistics):
        self._entry = entry

    @contextmanager
    def measure(self, what: str) -> Generator[None]:
        """Measures the block.

        Args:
            what: The start of the names of the fields for its start and its duration.
        """
        began = time.time()
        setattr(self._entry, f"{what}_start_time", began)
        yield
        setattr(self._entry, f"{what}_duration_secs", time.time() - began)

    def log(self, logger: Any, **fields: Any) -> None:
        """Passes the entry to a logger, if there is one.

        Args:
            logger: Anything that has `log_entry`, or None.
            **fields: Fields that were not known before.
        """
        if logger is not None:
            logger.log_entry(asdict(self._entry) | fields)
