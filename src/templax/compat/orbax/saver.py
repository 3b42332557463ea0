"""JAX. What Orbax's checkpointers and managers share: each has at most one save in progress."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from typing import Any

import templax as tx

from ..._hosts.agreement import open_call
from ..._save.background import start_save
from ..._save.destination import Destination
from ..._save.item import check_item_names
from ..._save.options import make_options
from ..._save.result import PendingSave

PathLike = str | os.PathLike[str]


class PathExists(tx.AlreadyExists, ValueError):
    """An `AlreadyExists` that is also a `ValueError`, which is what Orbax raises."""


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
        path: The path of the checkpoint.
        items: Name → tree or `Json`; "" is the checkpoint itself.
        wait: See `templax.save`.
        custom_metadata: The `metadata` of `templax.save`.
        overwrite: Replaces a checkpoint; files that others put into its directory are kept.
        after: Called once the checkpoint is committed.

    Raises:
        PathExists: Something exists at `path`.
        SaveError: See `templax.save`.
    """
    call = open_call("saving", path)
    with call.report_errors():
        check_item_names(items)
        options = make_options(metadata=custom_metadata, overwrite=overwrite)
        options = replace(
            options, keeps_others=overwrite, after=None if after is None else lambda _: after()
        )
        decide = functools.partial(Destination, path)
        with raise_path_exists():
            return start_save(call, path, items, options, decide, wait=wait)


@contextlib.contextmanager
def raise_path_exists() -> Generator[None]:
    """Raises `PathExists` for a path at which something exists."""
    try:
        yield
    except tx.AlreadyExists as error:
        raise PathExists(error.what, file=error.file, hint=error.hint) from error


class Saver:
    """Waits for its save in the background; the next call raises the error of one that failed."""

    _pending: PendingSave | None = None

    def wait_until_finished(self) -> None:
        """Returns once the latest save is committed.

        Raises:
            SaveError: The save failed. Raised by one call only.
        """
        if self._pending is not None:
            self._pending.wait()

    def check_for_errors(self) -> None:
        """Raises the error of the latest save, if it has failed by now.

        Raises:
            SaveError: The save failed. Raised by one call only.
        """
        if self._pending is not None and not self._pending.is_in_progress():
            self.wait_until_finished()

    def close(self) -> None:
        """Waits like `wait_until_finished`."""
        self.wait_until_finished()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
