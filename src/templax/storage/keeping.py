"""A directory that is replaced, but for what others put into it."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence

from ..errors import SaveError
from .disk import Descriptor, Disk, unlock
from .leftovers import sync_names, temporary_path
from .local import Local
from .source import Source
from .staging import Staging

MAX_KEPT = 10_000
"""Most files of others that are kept, each of which costs time before the commit."""

_log = logging.getLogger("templax")


class KeepingStaging(Staging):
    """A `Staging` that takes along what others put beside the checkpoint that it replaces.

    Their files are linked into the new directory before it takes the place of the old one, so that
    they are never missing. What appears meanwhile follows before the old one is removed.

    Args:
        path: See `Staging`.
        overwrite: Whether an existing directory may be replaced.
        others: Lists the names in it that its checkpoint did not write.

    Raises:
        AlreadyExists, SaveError: See `Staging`.
    """

    def __init__(
        self, path: str, *, overwrite: bool, others: Callable[[Source], list[str]]
    ) -> None:
        self._others = others
        super().__init__(path, overwrite=overwrite)

    def _move_into_place(self) -> Descriptor | None:
        kept, known = list[str](), set[str]()
        if self._check_target():
            known = set(os.listdir(self.path))
            source = Local(self.path)
            # A link that leads nowhere, for example, is nothing that a source has.
            unseen = known - {info.key.rstrip("/") for info in source.children()}
            kept = sorted({*self._others(source), *unseen})
            self._refuse_taken(kept)
            self._link_names(kept, self.path, self.directory)
        replaced = super()._move_into_place()
        if replaced is not None:
            try:
                late = sorted(set(os.listdir(self.directory)) - known)
                self._link_names(kept + late, self.directory, self.path)
            except BaseException:
                self._exchange(self.directory, self.path)
                unlock(replaced, self._disk)
                raise
            text = "%s is replaced, and keeps what it did not write: %s"
            if kept + late:
                _log.info(text, self.path, ", ".join(kept + late))
        return replaced

    def _refuse_taken(self, names: Sequence[str]) -> None:
        """Refuses names that the new checkpoint uses itself."""
        for name in names:
            if os.path.lexists(os.path.join(self.directory, name)):
                raise SaveError(
                    f"Expected another name than `{name}`, which others use there",
                    file=self.path,
                    hint="save under another name, or move it",
                )

    def _link_names(self, names: Sequence[str], old: str, new: str) -> None:
        count = 0
        for name in names:
            count += _link_tree(os.path.join(old, name), os.path.join(new, name), self._disk)
            if count > MAX_KEPT:
                raise SaveError(
                    f"Expected at most {MAX_KEPT:,} files beside the checkpoint that is replaced",
                    file=self.path,
                    hint="save under another name",
                )


def _link_tree(old: str, new: str, disk: Disk) -> int:
    """Makes a file, a link or a tree available under another name, too; returns how many files.

    Of what is there under that name, nothing else is left than what is the same.
    """
    if os.path.isdir(old) and not os.path.islink(old):
        if not os.path.isdir(new):
            disk.mkdir(new)
        count = sum(
            _link_tree(entry.path, os.path.join(new, entry.name), disk) for entry in os.scandir(old)
        )
        sync_names(new, disk)
        return count
    if os.path.lexists(new) and os.path.samestat(os.lstat(old), os.lstat(new)):
        return 1
    beside = temporary_path(new)
    if os.path.islink(old):
        os.symlink(os.readlink(old), beside)
    else:
        try:
            disk.link(old, beside)
        except OSError:  # the file system has no links
            shutil.copy2(old, beside)
    disk.rename(beside, new)
    return 1
