"""A single file that becomes visible as a whole, or not at all."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from ..errors import SaveError
from .disk import Descriptor, cannot_swap, save_error
from .staging import MAX_TRIES, Staging
from .target import check_file


class FileStaging(Staging):
    """A `Staging` of one file, which is moved to `path` out of the directory where it was written.

    What a kill leaves behind is such a directory, as after other saves. A program that has opened a
    file that is replaced reads on in the old one.

    Args:
        path, overwrite, disk: See `Staging`. What `overwrite` replaces must be a file.

    Raises:
        AlreadyExists: Something is at `path`, and `overwrite` is False; or something appeared
            there during the save.
        SaveError: What is there can't be replaced, or the disk refused.
    """

    _moved_by = ""
    """The operation of the disk that has moved the file, if it is in place."""

    def _check_target(self) -> bool:
        return check_file(self.path, overwrite=self._overwrite)

    def _create_directory(self, parent: str) -> None:
        super()._create_directory(parent)
        if not os.path.lexists(self.path):
            self._try_link()

    def _try_link(self) -> None:
        """Fails before anything is written if the commit could not link a file."""
        one, other = (os.path.join(self.directory, name) for name in ("one", "other"))
        self._disk.close(self._disk.create(one))
        try:
            self._link(one, other)
        finally:
            self._disk.unlink(one)
        self._disk.unlink(other)

    def _try_exchange(self) -> None:
        """Does nothing: any file system can replace a file in one step."""

    def _move_into_place(self) -> Descriptor | None:
        (file,) = self._files
        for _ in range(MAX_TRIES):
            replaces = self._check_target()
            try:
                if replaces:
                    self._replace(file.path)
                else:
                    self._link(file.path, self.path)
                    self._moved_by = "link"
            except (FileExistsError, FileNotFoundError):  # appeared or vanished just now
                if not os.path.lexists(file.path):
                    raise
            else:
                return None
        raise SaveError("Other programs keep replacing this path", file=self.path)

    def _link(self, old: str, new: str) -> None:
        try:
            self._disk.link(old, new)
        except OSError as error:
            if error.errno != errno.EPERM and not cannot_swap(error):
                raise
            raise SaveError(
                "The file system has no hard links, by which a new file never replaces another",
                file=self.path,
                hint="save to a directory: leave the suffix out",
            ) from error

    def _replace(self, path: str) -> None:
        try:
            self._disk.exchange(path, self.path)
            self._moved_by = "exchange"
        except OSError as error:
            if not cannot_swap(error):
                raise
            self._disk.rename(path, self.path)
            self._moved_by = "rename"

    def _move_back(self, replaced: bool, cause: OSError) -> None:
        (file,) = self._files
        try:
            if self._moved_by == "link":
                self._disk.unlink(self.path)
            elif self._moved_by == "exchange":
                self._disk.exchange(file.path, self.path)
        except OSError:
            self._moved_by = "rename"
        if self._moved_by == "rename":  # what was there before is gone, or can't be put back
            self._attempt.finished = True
            self.not_removed = (self.directory,) if os.path.lexists(file.path) else ()
            rest = "; it is in place, but a loss of power may undo it"
            raise save_error("sync", self.path, cause, rest) from cause

    def _remove_replaced(self, replaced: bool) -> None:
        self._delete_directory()

    def _was_moved(self) -> bool:
        with suppress(FileNotFoundError):
            written = [os.lstat(file.path) for file in self._files]
            return any(os.path.samestat(os.lstat(self.path), each) for each in written)
        return bool(self._moved_by)
