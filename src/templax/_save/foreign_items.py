"""The items of a save that other code writes: when it is called, and that its files are durable."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Mapping
from contextvars import ContextVar

from ..errors import SaveError
from ..storage.disk import DISK, save_error
from ..storage.leftovers import sync_names
from ..storage.sink import Sink
from ..storage.staging import Staging
from .contents import ForeignItem

_inside: ContextVar[bool] = ContextVar("inside a save", default=False)


def is_inside_save() -> bool:
    """Whether the caller is the code of a foreign item, which may itself save a part of it."""
    return _inside.get()


@contextlib.contextmanager
def _mark_inside() -> Generator[None]:
    token = _inside.set(True)
    try:
        yield
    finally:
        _inside.reset(token)


class ForeignItems:
    """The foreign items of a save, by name.

    They are called in the order of their names, which is the same on all processes.
    """

    def __init__(self) -> None:
        self._items: dict[str, ForeignItem] = {}
        self._directory = ""

    def __bool__(self) -> bool:
        return bool(self._items)

    def add(self, name: str, item: ForeignItem) -> None:
        """Adds an item; "" is the name of one that is the checkpoint itself."""
        self._items[name] = item

    def begin(self, sink: Sink) -> None:
        """Makes the directories of the items, and lets them write.

        Raises:
            SaveError: The sink has no directory; or the disk refused.
        """
        if not self._items:
            return
        if not isinstance(sink, Staging):
            raise SaveError(
                "Expected a local directory for an item whose handler writes files itself",
                file=sink.path,
                hint="save to a local directory, then copy that",
            )
        self._directory = sink.directory
        for name, path in self._paths.items():
            if not name:
                continue
            try:
                os.mkdir(path)  # never the sink's, which process 0 may have removed by now
            except FileExistsError:  # another process was first
                pass
            except OSError as error:
                raise save_error("create", path, error) from error
        for name, path in self._paths.items():
            with _mark_inside():
                self._items[name].begin(path)

    @property
    def _paths(self) -> Mapping[str, str]:
        return {n: os.path.join(self._directory, n).rstrip("/") for n in sorted(self._items)}

    def wait(self) -> None:
        """Returns once this process has written the files of all items, durably.

        Raises:
            SaveError: The disk refused.
        """
        with _mark_inside():
            for name in sorted(self._items):
                self._items[name].wait()
        self._sync()

    def finalize(self) -> None:
        """Finalizes the items, on process 0."""
        with _mark_inside():
            for name, path in self._paths.items():
                self._items[name].finalize(path)
        self._sync()

    def stop(self) -> None:
        """Ends what the items do. Idempotent."""
        for item in self._items.values():
            item.stop()

    def _sync(self) -> None:
        for path in self._paths.values():
            try:
                _sync_tree(path)
            except OSError as error:
                raise save_error("sync", path, error) from error


def _sync_tree(top: str) -> None:
    """Brings all files below a directory, and their names, to the disk."""
    for directory, _, names in os.walk(top):
        for name in names:
            path = os.path.join(directory, name)
            if os.path.islink(path) or not os.path.isfile(path):
                continue
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        sync_names(directory, DISK)
