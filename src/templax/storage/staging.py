"""Files that become visible all at once, or not at all."""

from __future__ import annotations

import errno
import os
import stat
import threading
from contextlib import suppress
from types import TracebackType

from ..errors import AlreadyExists, SaveError, UsageError
from .attempt import SaveAttempt
from .disk import DISK, Descriptor, Disk, cannot_swap, save_error, sync_directory, try_lock
from .leftovers import (
    TEMPORARY,
    absolute_path,
    delete_tree,
    find_abandoned,
    remove_directory,
    sync_names,
    temporary_path,
)
from .staged_file import StagedFile

_TRIES = 16
"""How often to begin again when other processes make and remove the same names."""


class Staging:
    """A directory that is written next to its final place and moved there whole.

    If the process is killed at any instant, or power is lost, `path` holds either what it held
    before or all that was written. `find_abandoned` finds the rest, which the next save to `path`
    that succeeds, or lacks space, removes. If anything fails, what was written is removed.
    `create`, `put`, `discard` and the methods of files may be called by several threads at once;
    `commit` when all is written. A `with` block discards what was not committed.

    Args:
        path: Final place. Missing parents are made, and removed again with the rest if they are
            empty then. An empty directory there counts as none; of what replaces it, as of
            everything here, the mode is what the umask leaves.
        overwrite: Whether an existing directory may be replaced, in one step.
        disk: What makes the changes.

    Attributes:
        path: Final place, absolute.
        directory: Where the files are until the commit.
        left: What could not be removed afterwards: what was replaced, or what was written.

    Raises:
        AlreadyExists: Something is at `path`, and `overwrite` is False; or it appeared during the
            save.
        SaveError: An existing directory can't be replaced, or the disk refuses.

    Example:
        >>> root = getfixture("tmp_path")
        >>> with Staging(root / "new", overwrite=False) as staging:
        ...     staging.put("d/data", b"12345")
        ...     staging.commit()
        >>> (root / "new" / "d" / "data").read_bytes()
        b'12345'
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool, disk: Disk = DISK):
        self._start(absolute_path(path), overwrite=overwrite, disk=disk)
        parent, name = os.path.split(self.path)
        if not name:
            raise SaveError("Expected a path with a name, got the root", file=self.path)
        if TEMPORARY in name:
            raise SaveError(
                f"Expected a name without `{TEMPORARY}`, which marks saves that never finished",
                file=self.path,
            )
        try:
            with self._attempt.translate_errors("save", self.path):
                self._begin(parent)
        except BaseException:  # interrupted: the caller has no object yet to discard
            self.discard()
            raise

    @classmethod
    def join(cls, path: str, directory: str, *, disk: Disk = DISK) -> Staging:
        """A hand in a save that another process began, which alone commits or discards it.

        Args:
            path, directory: As that process has them.
        """
        self = cls.__new__(cls)
        self._start(path, overwrite=False, disk=disk)
        self.directory, self._joined = directory, True
        return self

    def _start(self, path: str, *, overwrite: bool, disk: Disk) -> None:
        self.path = path
        self.directory = ""
        self.left: tuple[str, ...] = ()
        self._overwrite, self._disk = overwrite, disk
        self._guard = threading.RLock()
        self._files: list[StagedFile] = []
        self._directories: dict[str, None] = {}  # in the order in which they were made
        self._parents: list[str] = []
        self._held: Descriptor | None = None
        self._joined = self._read = False
        self._attempt = SaveAttempt(path, self._abandon)

    def create(self, key: str) -> StagedFile:
        """A new, empty file.

        Args:
            key: Path below `path`, with `/`. Directories on the way are made.

        Raises:
            SaveError: The disk refuses, or the save was given up before.
            UsageError: A key that leads elsewhere.
        """
        parts = key.split("/")
        if "\0" in key or any(part in ("", ".", "..") for part in parts):
            raise UsageError(f"Expected a path below the checkpoint, got {key!r}")
        with (
            self._attempt.translate_errors("create", os.path.join(self.directory, key)),
            self._guard,
        ):
            self._attempt.check()
            path = self.directory
            for part in parts[:-1]:
                path = os.path.join(path, part)
                if path not in self._directories:
                    with suppress(FileExistsError):  # another process of the job was quicker
                        self._disk.mkdir(path)
                    self._directories[path] = None
            path = os.path.join(path, parts[-1])
            file = StagedFile(self._attempt, self._disk, path, self._disk.create(path))
            self._files.append(file)
            return file

    def put(self, key: str, data: bytes | bytearray | memoryview) -> None:
        """Creates, writes, syncs and closes a small file.

        Raises:
            SaveError, UsageError: See `create`.
        """
        file = self.create(key)
        file.write(data)
        file.close()

    def commit(self) -> None:
        """Syncs all there is and moves it to `path`; then removes what was replaced.

        What can't be removed is in `left`, and no error. Of one that was joined: only syncs what
        was written through it; the process that began it commits after that.

        Raises:
            AlreadyExists: Something appeared at `path` during the save, and `overwrite` is False.
            SaveError: The disk refuses. `path` is as it was.
        """
        parent = replaced = None
        try:
            with self._attempt.translate_errors("finish", self.path), self._guard:
                self._attempt.check()
                for file in self._files:
                    file.close()
                self._sync_tree()
                self._attempt.check()
                if self._joined:
                    self._attempt.finished = True
                    return
                fd = self._disk.open_directory(os.path.dirname(self.path))
                parent = Descriptor(self._disk, fd)  # now: the move is not to be taken back
                replaced = self._move()
                try:
                    sync_directory(parent.fd, self._disk)
                except OSError as error:
                    self._move_back(replaced is not None, error)
                    raise
            if self._read:
                self.left = (self.directory,)  # somebody reads it: a later save removes it
            elif replaced is not None:
                self._delete()
            self._attempt.finished = (
                True  # only now: interrupted before that, `discard` has that to remove
            )
            self._clear()
        finally:
            for opened in (replaced, parent, self._held if self._attempt.finished else None):
                self._release(opened)

    def discard(self) -> None:
        """Removes all that was written, unless it was committed. Never raises; idempotent."""
        with self._guard:
            if self._attempt.finished:
                return
            self._attempt.finished = True
            for file in self._files:
                file.abandon()
            if self.directory and not self._joined:
                self._undo()
            for parent in reversed(self._parents):
                with suppress(OSError):
                    self._disk.rmdir(parent)
            self._release(self._held)

    def __enter__(self) -> Staging:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.discard()

    # --- before

    def _begin(self, parent: str) -> None:
        """Makes and locks the directory."""
        for _ in range(_TRIES):
            self._make_parents(parent)
            replaces = self._holds_something()
            self.directory = temporary_path(self.path)
            # Until it is locked others may take it for left behind, and remove it; and parents that
            # another save made go if that one fails.
            with suppress(FileNotFoundError):
                self._disk.mkdir(self.directory)
                self._held = Descriptor(self._disk, self._disk.open_directory(self.directory))
                free = try_lock(self._held.fd, self._disk)
                if free is not False and self._is_in_place(self._held.fd):
                    break
            self._delete()
            self._release(self._held)
        else:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), parent)
        if replaces:
            self._try_exchange()

    def _make_parents(self, parent: str) -> None:
        missing: list[str] = []
        while not os.path.lexists(parent):
            missing.append(parent)
            parent = os.path.dirname(parent)
        for directory in reversed(missing):
            with suppress(FileExistsError):  # another save was quicker
                self._disk.mkdir(directory)
                self._parents.append(directory)

    def _holds_something(self) -> bool:
        """Whether there is something to be replaced; raises where it must not be."""
        try:
            mode = os.lstat(self.path).st_mode
        except FileNotFoundError:
            return False
        if stat.S_ISDIR(mode):
            if os.path.ismount(self.path):
                raise SaveError(
                    "Expected a directory that can be replaced, found a mount point",
                    file=self.path,
                    hint="save below it",
                )
            with os.scandir(self.path) as listing:
                if next(listing, None) is None:
                    return False
            if self._overwrite:
                return True
            raise AlreadyExists(
                "Expected nothing or an empty directory, found one that is not empty",
                file=self.path,
                hint="overwrite=True replaces a checkpoint; or save under another name",
            )
        if stat.S_ISLNK(mode):
            found = f"a symbolic link to `{os.readlink(self.path)}`"
            hint = "save to the path that it points to, or under another name"
        else:
            found, hint = "a file", "save under another name"
        error = SaveError if self._overwrite else AlreadyExists
        raise error(f"Expected nothing or a directory, found {found}", file=self.path, hint=hint)

    def _is_in_place(self, fd: int) -> bool:
        return os.path.samestat(os.fstat(fd), os.lstat(self.directory))

    def _try_exchange(self) -> None:
        """Finds out before anything is written whether the commit can do what it will have to."""
        one, other = (os.path.join(self.directory, name) for name in ("one", "other"))
        self._disk.mkdir(one)
        self._disk.mkdir(other)
        self._exchange(one, other)
        self._disk.rmdir(one)
        self._disk.rmdir(other)

    # --- commit

    def _sync_tree(self) -> None:
        """Syncs all names of the tree, and those of parents that were made."""
        for file in self._files:
            if os.lstat(file.path).st_size != file.size:
                raise SaveError("Another program changed what was written", file=file.path)
        for directory in (*reversed(self._directories), self.directory):
            sync_names(directory, self._disk)
        for parent in self._parents:
            sync_names(os.path.dirname(parent), self._disk)

    def _move(self) -> Descriptor | None:
        """Puts the directory in its final place; what was replaced, locked, is in its former."""
        for _ in range(_TRIES):
            try:
                self._disk.rename(self.directory, self.path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
            else:
                return None
            with suppress(FileNotFoundError):  # removed since
                if self._holds_something():
                    # It may have to go back, so until then no other save may take it for abandoned.
                    fd = self._disk.open_directory(self.path)
                    replaced = Descriptor(self._disk, fd)
                    try:
                        self._read = try_lock(fd, self._disk) is False
                        self._exchange(self.directory, self.path)
                    except BaseException:
                        self._release(replaced)
                        raise
                    return replaced
        raise SaveError("Other programs keep replacing what is here", file=self.path)

    def _exchange(self, one: str, other: str) -> None:
        try:
            self._disk.exchange(one, other)
        except OSError as error:
            if not cannot_swap(error):
                raise
            raise SaveError(
                "The file system can't swap two directories, so that for a moment neither the old "
                "checkpoint nor the new one would be there",
                file=self.path,
                hint="save under another name, then remove the old one",
            ) from error

    def _move_back(self, replaced: bool, cause: OSError) -> None:
        """As it was, after the move could not be made to last."""
        try:
            if replaced:
                self._disk.exchange(self.directory, self.path)
            else:
                self._disk.rename(self.path, self.directory)
        except OSError as error:
            self._attempt.finished = (
                True  # what is in the directory now is the only copy of what was there
            )
            self.left = (self.directory,) if replaced else ()
            rest = "; it is in place, but a loss of power may undo it"
            rest += f"; what was there before is `{self.directory}`" if replaced else ""
            raise save_error("sync", self.path, cause, rest) from error

    # --- after

    def _undo(self) -> None:
        """Removes what was written; what was replaced, if an interrupt came right behind that."""
        try:
            moved = self._was_moved()
            if moved:
                sync_names(os.path.dirname(self.path), self._disk)
        except OSError:
            self.left = (self.directory,)
        else:
            if moved and self._read:
                self.left = (self.directory,)
            else:
                self._delete()

    def _was_moved(self) -> bool:
        if self._held is None or self._held.fd < 0:
            return False
        try:
            return not self._is_in_place(self._held.fd)
        except FileNotFoundError:
            return True

    def _delete(self) -> None:
        """Removes what is in the directory now."""
        try:
            delete_tree(self.directory, self._disk)
        except OSError as error:
            held = self._held
            if error.errno in (errno.EMFILE, errno.ENFILE) and held is not None and held.fd >= 0:
                self._release(held)  # a listing takes one
                self._delete()
            else:
                self.left = (self.directory,)
        except BaseException:  # interrupted: half of it is of no use to anybody
            with suppress(OSError):
                delete_tree(self.directory, self._disk)
            raise

    def _clear(self) -> None:
        """Removes what killed saves left here, as far as it can be."""
        with suppress(SaveError):
            for left in find_abandoned(self.path, self._disk):
                with suppress(SaveError):
                    remove_directory(left, self._disk)

    def _release(self, opened: Descriptor | None) -> None:
        """Unlocks and closes a directory."""
        if opened is not None and opened.fd >= 0:
            # A child that was forked has the lock, too: closing alone would leave it there.
            with suppress(OSError):
                self._disk.unlock(opened.fd)
            with suppress(OSError):
                opened.close()

    def _abandon(self, error: OSError | None) -> tuple[str, ...]:
        """Discards the save after an error; see `SaveAttempt`."""
        self.discard()
        if error is not None and error.errno in (errno.ENOSPC, errno.EDQUOT):
            self._clear()  # the next try may need no more than that
        return self.left
