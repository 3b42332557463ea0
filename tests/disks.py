"""Disks that refuse operations, and directories to replace or to clean up."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

from templax.storage import Staging
from templax.storage.disk import Disk


class RefusingDisk(Disk):
    """A disk that fails some operations: the name of each and the `errno` it raises."""

    def __init__(self, **refused: int) -> None:
        for name, code in refused.items():
            setattr(self, name, self._refuse(code))

    def _refuse(self, code: int) -> Callable[..., None]:
        def refuse(*_: object, **__: object) -> None:
            raise OSError(code, os.strerror(code))

        return refuse


def make_directory(path: Path) -> Path:
    """A directory that holds the file `sub/old`."""
    (path / "sub").mkdir(parents=True)
    (path / "sub" / "old").write_bytes(b"old")
    return path


def abandon_save(path: Path, disk: Disk | None = None) -> Path:
    """The staging directory of a save to `path` that ended without cleaning up.

    It holds the file `d/part`.
    """
    staging = Staging(path, overwrite=True, disk=disk or Disk())
    staging.put("d/part", b"half of it")
    directory = staging.directory
    del staging
    gc.collect()
    return Path(directory)
