"""Loggers that a manager tells of each save and restore."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import Any

import templax as tx

_log = logging.getLogger("templax")


class AbstractLogger(ABC):
    """Base of the loggers that `CheckpointManager(logger=...)` takes.

    Example:
        >>> import tempfile, numpy as np
        >>> from templax.compat import orbax as ocp
        >>> class Collect(ocp.logging.AbstractLogger):
        ...     entries = []
        ...     def log_entry(self, msg, *args, **kwargs):
        ...         self.entries.append(msg)
        >>> with ocp.CheckpointManager(tempfile.mkdtemp(), logger=Collect()) as manager:
        ...     saved = manager.save(1, args=ocp.args.StandardSave({"w": np.ones(3)}))
        >>> Collect.entries[0]["event_type"], Collect.entries[0]["step"]
        ('save', 1)
    """

    @abstractmethod
    def log_entry(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        """Logs an entry.

        Args:
            msg: The fields of one of `step_statistics`, by name.
            *args, **kwargs: A manager passes none.
        """


class StandardLogger(AbstractLogger):
    """Logs entries to the logger `templax` of Python's `logging`."""

    def log_entry(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        """See `AbstractLogger`."""
        _log.info(msg, *args, **kwargs)


class CompositeLogger(AbstractLogger):
    """Passes entries on to several loggers.

    Raises:
        UsageError: One has no `log_entry`, or is itself composite.
    """

    def __init__(self, *loggers: Any) -> None:
        for each in loggers:
            if not hasattr(each, "log_entry") or isinstance(each, CompositeLogger):
                raise tx.UsageError(f"Expected loggers that have log_entry(), got {each!r}")
        self._loggers = loggers

    def log_entry(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        """See `AbstractLogger`."""
        for each in self._loggers:
            each.log_entry(msg, *args, **kwargs)
