"""JAX. What Orbax's checkpointers and managers share: one save of theirs goes on at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import templax as tx

from ..._save.background import start_save
from ..._save.options import make_options

PathLike = str | os.PathLike[str]


def begin_save(
    path: str,
    items: Mapping[str, Any],
    wait: bool,
    custom_metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    after: Callable[[], None] | None = None,
) -> tx.Saved:
    """Saves items, or begins to.

    Args:
        path: Of the checkpoint.
        items: Name → tree or `Json`; "" is the checkpoint itself.
        wait, overwrite: As of `templax.save`.
        custom_metadata: Its `metadata`.
        after: Called once it is committed.
    """
    request = make_options("orbax", custom_metadata, overwrite, None, None, None, None)
    return start_save(path, items, replace(request, after=after), wait=wait)


class Saver:
    """Waits for what it saves in the background; what failed there is raised by the next call."""

    _saved: tx.Saved | None = None

    def wait_until_finished(self) -> None:
        """Returns when what was saved is committed.

        Raises:
            SaveError: It was not. Said once.
        """
        saved = self._saved
        if saved is not None:
            try:
                saved.wait()
            finally:
                if saved.done():
                    self._saved = None

    def check_for_errors(self) -> None:
        """Raises what has failed in the background since somebody last asked.

        Raises:
            SaveError: A save failed. Said once.
        """
        if self._saved is not None and self._saved.done():
            self.wait_until_finished()

    def close(self) -> None:
        """Waits, as `wait_until_finished` does."""
        self.wait_until_finished()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
