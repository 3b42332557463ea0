"""Files that become visible all at once, or not at all."""

from __future__ import annotations

import errno
import os
import stat
import threading
from contextlib import suppress

from ..errors import SaveError, UsageError
from .disk import (
    DISK,
    Descriptor,
    Disk,
    cannot_swap,
    check_can_save,
    save_error,
    sync_directory,
    try_lock,
    unlock,
)
from .leftovers import (
    Leftover,
    absolute_path,
    delete_tree,
    remove_abandoned,
    remove_others,
    sync_names,
    temporary_path,
)
from .marks import TEMPORARY
from .save_attempt import SaveAttempt
from .staged_file import StagedFile
from .target import check_target

MAX_TRIES = 16
"""How often to retry while other processes create and remove the same names."""


class Staging:
    """A directory that is written next to its final location and then moved there as a whole.

    If the process is killed or power is lost, at any moment, `path` holds either what it held
    before or everything that was written. Anything else that a kill leaves behind is found by
    `find_abandoned`, and removed by the next save to `path`, either when that succeeds or when it
    runs out of space. If anything fails, what was written is removed.

    `create`, `put`, `discard` and the methods of the files may be called from several threads at
    once; call `commit` when everything is written. Leaving a `with` block discards what was not
    committed.

    Args:
        path: Final location. Missing parents are created; if the save fails, those that are still
            empty are removed again. An empty directory at `path` is treated as if there were
            none. Everything is created with the mode that the umask leaves, so a directory that
            is replaced does not pass on its own mode.
        overwrite: Whether an existing directory may be replaced, in one step.
        leftover: What to resume from, or None: `create` opens the files of it that are kept.
        disk: Carries out the changes.

    Attributes:
        path: Final location, absolute.
        directory: Where the files are until the commit.
        keys: Paths of the files, in the order in which they were created.
        committed: Whether the new checkpoint is at `path`, durably.
        not_removed: Paths that could not be removed in the end: the replaced checkpoint, or what
            was written.

    Raises:
        AlreadyExists: Something is at `path`, and `overwrite` is False; or something appeared
            there during the save.
        SaveError: An existing directory can't be replaced, the leftover is in use, or the disk
            refused.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> root = Path(tempfile.mkdtemp())
        >>> with Staging(root / "new", overwrite=False) as staging:
        ...     staging.put("d/data", b"12345")
        ...     staging.commit()
        >>> (root / "new" / "d" / "data").read_bytes()
        b'12345'
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool,
        leftover: Leftover | None = None,
        disk: Disk = DISK,
    ):
        self._init_state(absolute_path(path), overwrite=overwrite, disk=disk)
        check_can_save(self.path)
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
                if leftover is None:
                    self._create_directory(parent)
                else:
                    self._take_over(leftover)
        except BaseException:  # such as an interrupt: the caller has no object to discard yet
            self.discard()
            raise

    @classmethod
    def join(cls, path: str, directory: str, *, disk: Disk = DISK) -> Staging:
        """Adds files to a save that another process started and that only it commits or discards.

        Args:
            path, directory: The attributes of that process's `Staging`.
        """
        self = cls.__new__(cls)
        self._init_state(path, overwrite=False, disk=disk)
        self.directory, self._joined = directory, True
        return self

    def _init_state(self, path: str, *, overwrite: bool, disk: Disk) -> None:
        self.path = path
        self.directory = ""
        self.not_removed: tuple[str, ...] = ()
        self.committed = False
        self._overwrite, self._disk = overwrite, disk
        self._guard = threading.RLock()
        self._files: list[StagedFile] = []
        self._directories: dict[str, None] = {}  # a set, in creation order
        self._parents: list[str] = []
        self._kept: tuple[str, ...] = ()
        self.keys: list[str] = []
        self._own_lock: Descriptor | None = None
        self._joined = self._replaced_in_use = False
        self._attempt = SaveAttempt(path, self._discard_after)

    def create(self, key: str) -> StagedFile:
        """Creates a new, empty file; or opens one that is kept of a leftover.

        Args:
            key: Path below `path`, separated by `/`. Missing directories are created.

        Raises:
            SaveError: The disk refused, or the save has already ended.
            UsageError: `key` points outside `path`.
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
                    try:
                        self._disk.mkdir(path)
                    except FileExistsError:
                        if not stat.S_ISDIR(os.lstat(path).st_mode):  # such as a link elsewhere
                            raise
                        # Another process of the job created it.
                    self._directories[path] = None
            path = os.path.join(path, parts[-1])
            kept = key in self._kept and os.path.lexists(path)
            fd = os.open(path, os.O_WRONLY) if kept else self._disk.create(path)
            file = StagedFile(self._attempt, self._disk, path, fd)
            self._files.append(file)
            self.keys.append(key)
            return file

    def put(self, key: str, data: bytes | bytearray | memoryview) -> None:
        """Creates, writes, syncs and closes a small file.

        Raises:
            SaveError, UsageError: See `create`.
        """
        file = self.create(key)
        file.write(data)
        file.close()

    def count_allocated(self) -> int:
        """The bytes that the files take on the disk. Those of a leftover may have some at first."""
        return sum(os.stat(file.path).st_blocks * 512 for file in self._files)

    def sync_names(self) -> None:
        """Makes the names of the files that were created survive a power loss, but not their bytes.

        Raises:
            SaveError: The disk refused.
        """
        with self._attempt.translate_errors("sync", self.directory), self._guard:
            self._attempt.check()
            self._sync_directories()

    def commit(self) -> None:
        """Syncs everything, moves it to `path`, and then removes what was replaced.

        If that can't be removed, its path is in `not_removed`; this is not an error. A `Staging`
        made by `join` only syncs what was written through it; the process that started the save
        commits afterwards.

        Raises:
            AlreadyExists: Something appeared at `path` during the save, and `overwrite` is False.
            SaveError: The disk refused. `path` is unchanged.
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
                # Opened before the move, so that failing to open it need not undo the move.
                parent = Descriptor(self._disk, fd)
                replaced = self._move_into_place()
                try:
                    sync_directory(parent.fd, self._disk)
                except OSError as error:
                    self._move_back(replaced is not None, error)
                    raise
                self.committed = True
            self._remove_replaced(replaced is not None)
            # Not earlier: after an interrupt, `discard` still has to remove the replaced one.
            self._attempt.finished = True
            remove_abandoned(self.path, self._disk)
        finally:
            own_lock = self._own_lock if self._attempt.finished else None
            for descriptor in (replaced, parent, own_lock):
                unlock(descriptor, self._disk)

    def discard(self) -> None:
        """Removes all that was written, unless it was committed. Never raises; idempotent."""
        with self._guard:
            if self._attempt.finished:
                return
            self._attempt.finished = True
            for file in self._files:
                file.abandon()
            if self.directory and not self._joined:
                self._remove_written()
            for parent in reversed(self._parents):
                with suppress(OSError):
                    self._disk.rmdir(parent)
            unlock(self._own_lock, self._disk)

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *exc: object) -> None:
        self.discard()

    def _create_directory(self, parent: str) -> None:
        """Creates and locks the directory that is written to."""
        for _ in range(MAX_TRIES):
            self._make_parents(parent)
            replaces = self._check_target()
            self.directory = temporary_path(self.path)
            # Until the directory is locked, other processes may consider it abandoned and remove
            # it. And if the parents were created by another save, they vanish if that one fails.
            with suppress(FileNotFoundError):
                self._disk.mkdir(self.directory)
                self._own_lock = Descriptor(self._disk, self._disk.open_directory(self.directory))
                free = try_lock(self._own_lock.fd, self._disk)
                if free is not False and self._is_in_place(self._own_lock.fd):
                    break
            self._delete_directory()
            unlock(self._own_lock, self._disk)
        else:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), parent)
        if replaces:
            self._try_exchange()

    def _check_target(self) -> bool:
        """Whether the commit will replace something."""
        return check_target(self.path, overwrite=self._overwrite)

    def _take_over(self, leftover: Leftover) -> None:
        """Locks a directory that a killed save left behind, and removes what is not kept."""
        self._check_target()
        self.directory = leftover.directory
        lock = Descriptor(self._disk, self._disk.open_directory(self.directory))
        try:
            if try_lock(lock.fd, self._disk) is False or not self._is_in_place(lock.fd):
                raise SaveError("Another process is resuming an earlier save", file=self.path)
        except (OSError, SaveError):
            self.directory = ""  # not this process's: `discard` must keep it
            raise
        self._own_lock, self._kept = lock, leftover.files
        remove_others(leftover, self._disk)

    def _make_parents(self, parent: str) -> None:
        missing: list[str] = []
        while not os.path.lexists(parent):
            missing.append(parent)
            parent = os.path.dirname(parent)
        for directory in reversed(missing):
            with suppress(FileExistsError):  # another save created it
                self._disk.mkdir(directory)
                self._parents.append(directory)

    def _is_in_place(self, fd: int) -> bool:
        return os.path.samestat(os.fstat(fd), os.lstat(self.directory))

    def _try_exchange(self) -> None:
        """Fails before anything is written if the commit could not swap two directories."""
        one, other = (os.path.join(self.directory, name) for name in ("one", "other"))
        self._disk.mkdir(one)
        self._disk.mkdir(other)
        self._exchange(one, other)
        self._disk.rmdir(one)
        self._disk.rmdir(other)

    def _sync_tree(self) -> None:
        """Syncs the names in all directories of the tree and those of newly created parents."""
        for file in self._files:
            if os.lstat(file.path).st_size != file.size:
                raise SaveError("Another program changed what was written", file=file.path)
        self._sync_directories()
        for parent in self._parents:
            sync_names(os.path.dirname(parent), self._disk)

    def _sync_directories(self) -> None:
        for directory in (*reversed(self._directories), self.directory):
            sync_names(directory, self._disk)

    def _move_into_place(self) -> Descriptor | None:
        """Moves the directory to its final location.

        Returns:
            None if nothing was replaced. Otherwise the locked directory that was replaced, which is
            now at `self.directory`.
        """
        for _ in range(MAX_TRIES):
            try:
                self._disk.rename(self.directory, self.path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
            else:
                return None
            with suppress(FileNotFoundError):  # removed in the meantime
                if self._check_target():
                    # Locked because it may have to be moved back: until then no other save may
                    # consider it abandoned.
                    fd = self._disk.open_directory(self.path)
                    replaced = Descriptor(self._disk, fd)
                    try:
                        self._replaced_in_use = try_lock(fd, self._disk) is False
                        self._exchange(self.directory, self.path)
                    except BaseException:
                        unlock(replaced, self._disk)
                        raise
                    return replaced
        raise SaveError("Other programs keep replacing this path", file=self.path)

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
        """Undoes the move after it could not be synced."""
        try:
            if replaced:
                self._disk.exchange(self.directory, self.path)
            else:
                self._disk.rename(self.path, self.directory)
        except OSError as error:
            # The directory now holds the only copy of the old checkpoint: `discard` must keep it.
            self._attempt.finished = True
            self.not_removed = (self.directory,) if replaced else ()
            rest = "; it is in place, but a loss of power may undo it"
            rest += f"; what was there before is `{self.directory}`" if replaced else ""
            raise save_error("sync", self.path, cause, rest) from error

    def _remove_replaced(self, replaced: bool) -> None:
        """Removes what is left beside the new checkpoint once that is durably in place."""
        if self._replaced_in_use:
            # A process is reading it: a later save removes it.
            self.not_removed = (self.directory,)
        elif replaced:
            self._delete_directory()

    def _remove_written(self) -> None:
        """Removes what was written, or what was replaced if an interrupt followed the move."""
        try:
            moved = self._was_moved()
            if moved:
                sync_names(os.path.dirname(self.path), self._disk)
        except OSError:
            self.not_removed = (self.directory,)
        else:
            if moved and self._replaced_in_use:
                self.not_removed = (self.directory,)
            else:
                self._delete_directory()

    def _was_moved(self) -> bool:
        if self._own_lock is None or self._own_lock.fd < 0:
            return False
        try:
            return not self._is_in_place(self._own_lock.fd)
        except FileNotFoundError:
            return True

    def _delete_directory(self) -> None:
        """Deletes `self.directory`; if that fails, records it in `not_removed`."""
        try:
            delete_tree(self.directory, self._disk)
        except OSError as error:
            lock = self._own_lock
            if error.errno in (errno.EMFILE, errno.ENFILE) and lock is not None and lock.fd >= 0:
                unlock(lock, self._disk)  # frees the descriptor that listing the directory needs
                self._delete_directory()
            else:
                self.not_removed = (self.directory,)
        except BaseException:  # such as an interrupt: half a directory is useless, so finish
            with suppress(OSError):
                delete_tree(self.directory, self._disk)
            raise

    def _discard_after(self, error: OSError | None) -> tuple[str, ...]:
        """Discards the save after an error; see `SaveAttempt`."""
        self.discard()
        if error is not None and error.errno in (errno.ENOSPC, errno.EDQUOT):
            # This may free the space that the next attempt needs.
            remove_abandoned(self.path, self._disk)
        return self.not_removed
