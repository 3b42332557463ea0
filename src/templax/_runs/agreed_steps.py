"""The steps of a run as all processes of a job see them: as process 0 does.

A manager that saves shares what there is after each save, so that no process finds a step that
another one does not, nor one that process 0 is deleting. Before its first save, process 0 lists the
directory whenever it is asked, and the others wait a short while for its answer.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import msgspec

from ..errors import TemplaxError

if TYPE_CHECKING:
    from .._hosts.agreement import Hosts

_FOLLOW_S = 5.0
"""How long other processes than 0 wait for it to look at the steps, too."""

CLOSED_S = 30.0
"""How long a process that closed its manager of a run is waited for: it may make another."""

_log = logging.getLogger("templax")


class AgreedSteps:
    """The committed steps of a run.

    Args:
        url: The directory of the run.
        list_own: Lists them on this process: number → directory name, ascending.
        alone: Whether no other process is asked.
    """

    def __init__(
        self,
        url: str,
        list_own: Callable[[], Mapping[int, str]],
        *,
        alone: bool = False,
    ):
        self._url, self._list_own, self._alone = url, list_own, alone
        self._shared: dict[int, str] | None = None
        self._follows = True
        self._left = False  # by an error: to close the run then says nothing more

    def share(self, call: Hosts) -> None:
        """Shares the steps that there are after a save, which all processes made."""
        if call.count == 1:
            return
        data = msgspec.msgpack.encode(dict(self._list_own())) if call.index == 0 else None
        try:
            told = call.announce("listing the steps", data)
            self._shared = msgspec.msgpack.decode(told, type=dict[int, str])
        except TemplaxError as error:  # the step is saved; process 0 failed or was lost afterwards
            _log.warning(
                "this process lists the steps of %s itself, as process 0 did not tell: %s",
                self._url,
                error,
            )
            self._shared = dict(self._list_own())

    def list_committed(self) -> dict[int, str]:
        """Number → directory name of each committed step, ascending."""
        if self._shared is not None:
            return dict(self._shared)
        if self._alone or "jax" not in sys.modules:
            return dict(self._list_own())
        from .._hosts.link import follow_process_0

        told = follow_process_0(
            f"steps of {self._url}",
            lambda: msgspec.msgpack.encode(dict(self._list_own())),
            _FOLLOW_S if self._follows else 0.001,
        )
        self._follows = told is not None
        if told is None:
            return dict(self._list_own())
        return msgspec.msgpack.decode(told, type=dict[int, str])

    def leave(self, error: BaseException | None) -> None:
        """Tells the other processes that this one makes no more calls about the run.

        Args:
            error: What ended its use of the run; None if it was closed.
        """
        left, self._left = self._left, error is not None
        unknown = error is None and (left or self._shared is None)
        if self._alone or "jax" not in sys.modules or unknown:
            return
        from .._hosts.link import leave_run

        if error is None:
            leave_run(self._url, "closed the run", CLOSED_S)
        else:
            cause = "".join(traceback.format_exception_only(error)).strip()
            leave_run(self._url, f"left the run by {cause}")

    def forget(self) -> None:
        """Lets `list_committed` look at the directory again."""
        self._shared = None
