"""Temporary names of unfinished saves, and finding and removing what killed saves left behind.

A save is written to `NAME.orbax-checkpoint-tmp-templax-HOST-RANDOM` next to `NAME`. No reader,
Orbax included, treats a name that contains `.orbax-checkpoint-tmp` as a checkpoint.
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
import re
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from ..errors import SaveError, UsageError
from .disk import DISK, Descriptor, Disk, check_can_save, save_error, sync_directory, try_lock
from .local import make_absolute, on_this_machine
from .marks import TEMPORARY

QUIET_S = 24 * 3600
"""A save whose lock can't be relied on is abandoned once it has written nothing for this long."""

_TEMPLAX_MARK = f"{TEMPORARY}-templax-"

_TOKEN = re.compile(r"(?P<host>[0-9a-f]{8})-[0-9a-f]{16}")

_HOST_BYTES, _RANDOM_BYTES, _DIGEST_BYTES = 8, 16, 16

_TOKEN_BYTES = _HOST_BYTES + 1 + _RANDOM_BYTES

_MAX_NAME_BYTES = 255

_MAX_RELISTS = 100
"""How often `delete_tree` lists a directory again to which something was added meanwhile."""


class Leftover(NamedTuple):
    """What a killed save left behind, from which a later one can resume.

    Attributes:
        directory: One that `find_abandoned` lists.
        files: Paths below it of the files that are kept as they are. All others are removed.
        journal: The path below it of a file that is kept, and that is not one of the checkpoint.
    """

    directory: str
    files: tuple[str, ...]
    journal: str


def absolute_path(path: str | os.PathLike[str]) -> str:
    """Makes a path that a user gave absolute. `~` is expanded, as in `storage.Local`."""
    text = os.fspath(path)
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise UsageError(
            f"Expected a path, got {text!r}, which is not a valid file name"
        ) from error
    if "\0" in text:
        raise UsageError(f"Expected a path, got {text!r}")
    return make_absolute(os.path.expanduser(text))


def temporary_path(path: str) -> str:
    """A new name next to `path`, for what is not yet, or no longer, the checkpoint of that name."""
    token = f"{_identify_host()}-{os.urandom(_RANDOM_BYTES // 2).hex()}"
    return f"{_shorten_name(path)}{_TEMPLAX_MARK}{token}"


def _shorten_name(path: str) -> str:
    """The start of all temporary names of `path`: `path` itself, shortened if it is too long."""
    parent, name = os.path.split(path)
    try:
        longest = os.pathconf(parent, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):  # the first on Windows
        longest = _MAX_NAME_BYTES
    raw = os.fsencode(name)
    room = longest - len(_TEMPLAX_MARK) - _TOKEN_BYTES
    if len(raw) <= room:
        return path
    head = raw[: max(0, room - _DIGEST_BYTES - 1)].decode(errors="ignore")
    return os.path.join(parent, f"{head}~{_digest(raw, _DIGEST_BYTES)}")


def _digest(data: bytes, length: int) -> str:
    from hashlib import blake2b  # takes 2 ms, which reading should not cost

    return blake2b(data, digest_size=length // 2).hexdigest()


@functools.cache
def _identify_host() -> str:
    """Identifies this machine, since machines don't see each other's locks.

    All containers of a machine get the same value.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            name = file.read()
    except OSError:
        import socket  # not needed on Linux

        name = os.fsencode(socket.gethostname())
    return _digest(name, _HOST_BYTES)


def find_abandoned(path: str | os.PathLike[str], disk: Disk = DISK) -> list[str]:
    """Lists what killed saves to `path` left behind. Only finds saves by templax.

    A path in the list holds either what had been written, or a checkpoint that was being removed,
    after it was replaced or pruned, when the process was killed. Pass it to `remove_directory`.

    A save in progress holds a lock on its directory. But locks on directories are only visible on
    the same machine, and some file systems have none. So if the directory may be in use by another
    machine, over a network file system, or can't be locked or opened, it counts as abandoned only
    when nothing in it has been written for a day.

    Raises:
        SaveError: The parent of `path` can't be listed, or the file system failed.
    """
    parent, name = os.path.split(_shorten_name(absolute_path(path)))
    return _list_abandoned(parent, name, disk)


def find_unfinished(path: str | os.PathLike[str]) -> list[str]:
    """Lists the directories of all saves to `path` by templax that have not finished, whether a
    process still writes to them or not.

    Raises:
        SaveError: The parent of `path` can't be listed.
    """
    parent, name = os.path.split(_shorten_name(absolute_path(path)))
    return _list_temporary(parent, name)


def find_abandoned_in(directory: str | os.PathLike[str], disk: Disk = DISK) -> list[str]:
    """Lists what `find_abandoned` finds, for all saves to paths in a directory.

    Raises:
        SaveError: See `find_abandoned`.
    """
    return _list_abandoned(absolute_path(directory), None, disk)


def _list_abandoned(parent: str, name: str | None, disk: Disk) -> list[str]:
    """Lists abandoned saves in `parent`.

    Args:
        parent: The directory to look in.
        name: Start of the temporary names to consider; None for all.
        disk: Takes the locks.
    """
    try:
        return [path for path in _list_temporary(parent, name) if _is_unused(path, disk)]
    except OSError as error:
        raise save_error("look for abandoned saves", parent, error) from error


def _list_temporary(parent: str, name: str | None) -> list[str]:
    """The temporary names of templax in `parent`, sorted; see `_list_abandoned`."""
    try:
        names = os.listdir(parent)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise save_error("list", parent, error) from error
    candidates: list[str] = []
    for each in names:
        stem, mark, token = each.rpartition(_TEMPLAX_MARK)
        if mark and name in (None, stem) and _TOKEN.fullmatch(token):
            candidates.append(os.path.join(parent, each))
    return sorted(candidates)


def is_abandoned(path: str | os.PathLike[str], disk: Disk = DISK) -> bool:
    """Whether no process still writes to the directory of an unfinished save.

    The save may be templax's or another program's.

    Raises:
        SaveError: The file system failed.
    """
    path = absolute_path(path)
    if _TOKEN.fullmatch(path, max(len(path) - _TOKEN_BYTES, 0)) is None:
        return _is_quiet(path)  # other programs take no locks
    try:
        return _is_unused(path, disk)
    except OSError as error:
        raise save_error("look at", path, error) from error


def _is_unused(path: str, disk: Disk) -> bool:
    """Whether no process still writes to a temporary directory of templax."""
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            return True  # a link or a file that was being removed
        fd = disk.open_directory(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return _is_quiet(path)
    try:
        free = try_lock(fd, disk, shared=True)  # shared: two concurrent checks must not conflict
    finally:
        disk.close(fd)
    if free is False:
        return False
    return bool(free and _are_locks_visible(path)) or _is_quiet(path)


def _are_locks_visible(path: str) -> bool:
    """Whether a lock on `path` would be visible here, whichever process holds it."""
    token = _TOKEN.fullmatch(path, len(path) - _TOKEN_BYTES)
    return (token is not None and token["host"] == _identify_host()) or on_this_machine(path)


def _is_quiet(path: str) -> bool:
    """Whether nothing in a tree has been written for `QUIET_S`."""

    def get_mtime(path: str) -> float:
        return os.lstat(path).st_mtime

    try:
        newest = get_mtime(path)
        for directory, _, files in os.walk(path, onerror=_raise_error):
            newest = max(newest, get_mtime(directory))
            newest = max([newest, *(get_mtime(os.path.join(directory, f)) for f in files)])
    except OSError:
        return False
    return time.time() - newest > QUIET_S


def _raise_error(error: OSError) -> None:
    raise error


def remove_abandoned(path: str, disk: Disk = DISK) -> None:
    """Removes what killed saves to a path left behind, as far as possible."""
    with suppress(SaveError):
        for abandoned in find_abandoned(path, disk):
            with suppress(SaveError):
                remove_directory(abandoned, disk)


def remove_directory(directory: str | os.PathLike[str], disk: Disk = DISK) -> None:
    """Deletes a directory tree, a file or a symbolic link (not its target).

    If the process is killed midway, the rest has a temporary name, and another call removes it. It
    is not an error if nothing exists at the path.

    Raises:
        SaveError: A process is using it, or the file system refused.
    """
    path = absolute_path(directory)
    check_can_save(path)
    parent, name = os.path.split(path)
    if TEMPORARY not in name:
        if not delete_checkpoint(path, disk):
            raise SaveError(
                "Expected a directory that is not in use, found a lock on it", file=path
            )
        return
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            disk.unlink(path)
            return
        fd = disk.open_directory(path)
        try:
            free = try_lock(fd, disk)
            if free is False:
                raise SaveError(
                    "Expected an abandoned save, found one in progress",
                    file=path,
                    hint="wait for it, or end that process",
                )
            if not (free and _are_locks_visible(path)):
                # Some process may be writing to it after all. Renamed, the directory can no longer
                # be committed by that process when it is already partly deleted.
                target = os.path.join(parent, name.partition(_TEMPLAX_MARK)[0])
                old, path = path, temporary_path(target)
                disk.rename(old, path)
            # This may be a replaced checkpoint whose save was killed before the move was synced. So
            # sync the move first: without it, a power loss would leave neither checkpoint.
            sync_names(parent, disk)
            delete_tree(path, disk)
        finally:
            disk.close(fd)
    except FileNotFoundError:
        return
    except OSError as error:
        raise save_error("remove", path, error) from error


def remove_others(leftover: Leftover, disk: Disk = DISK) -> None:
    """Removes the files of a leftover that are not kept.

    Raises:
        OSError: The file system refused.
    """
    directory, files, journal = leftover
    kept = {os.path.join(directory, name) for name in (*files, journal)}
    for parent, _, names in os.walk(directory):
        for path in (os.path.join(parent, name) for name in names):
            if path not in kept:
                disk.unlink(path)


def delete_checkpoint(path: str | os.PathLike[str], disk: Disk = DISK) -> bool:
    """Deletes a checkpoint: first renames it, in one step and durably, then deletes its contents.

    So a partly deleted checkpoint is never read, even if the process is killed or power is lost.

    Returns:
        Whether the checkpoint no longer exists. False if it was left untouched because another
        process holds a lock on the directory, for example while it restores the step.

    Raises:
        SaveError: The file system refused. All or some of it may remain under a temporary name.
    """
    path = absolute_path(path)
    return _withdraw(path, temporary_path(path), disk, delete=True)


def move_checkpoint(path: str, directory: str, disk: Disk = DISK) -> bool:
    """Moves a checkpoint to another directory of the same file system, in one step and durably.

    Args:
        path: The checkpoint.
        directory: The directory, made if there is none. If it has something of the same name, the
            checkpoint gets another one: `3.1`, `3.2`, ...
        disk: The file system.

    Returns:
        See `delete_checkpoint`.

    Raises:
        SaveError: The file system refused.
    """
    path, directory = absolute_path(path), absolute_path(directory)
    try:
        os.makedirs(directory, exist_ok=True)
        taken = set(os.listdir(directory))
    except OSError as error:
        raise save_error("move", path, error) from error
    name = os.path.basename(path)
    names = itertools.chain([name], (f"{name}.{i}" for i in itertools.count(1)))
    free = next(each for each in names if each not in taken)
    moved = _withdraw(path, os.path.join(directory, free), disk, delete=False)
    sync_names(directory, disk)
    return moved


def _withdraw(path: str, renamed: str, disk: Disk, *, delete: bool) -> bool:
    """Renames a checkpoint, unless it is in use; see `delete_checkpoint`."""
    check_can_save(path)
    lock: Descriptor | None = None
    try:
        try:
            lock = Descriptor(disk, disk.open_directory(path))
        except NotADirectoryError:
            pass
        except FileNotFoundError:
            if not os.path.islink(path):  # a link to nothing is deleted like any other
                raise
        try:
            if lock is not None and try_lock(lock.fd, disk) is False:
                return False
            disk.rename(path, renamed)
            sync_names(os.path.dirname(path), disk)
            if delete:
                # Still locked: a reader that waits for the lock learns about it afterwards.
                delete_tree(renamed, disk)
        finally:
            if lock is not None:
                lock.close()
    except FileNotFoundError:
        return True
    except OSError as error:
        raise save_error("remove" if delete else "move", path, error) from error
    return True


def sync_names(directory: str, disk: Disk) -> None:
    """Makes the names in a directory durable."""
    fd = disk.open_directory(directory)
    try:
        sync_directory(fd, disk)
    finally:
        disk.close(fd)


def delete_tree(top: str, disk: Disk) -> None:
    """Deletes a tree, file or link.

    What another process deletes meanwhile is not an error. What it adds is deleted too: a process
    of a job adds files to a save until it hears that another one failed.
    """
    try:
        if not stat.S_ISDIR(os.lstat(top).st_mode):
            disk.unlink(top)
            return
    except FileNotFoundError:
        return
    pending, relists = [top], _MAX_RELISTS
    while pending:
        path = pending[-1]
        try:
            with os.scandir(path) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except FileNotFoundError:
            pending.pop()
            continue
        below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                _remove_if_present(disk.unlink, entry.path)
        pending += below
        if below:
            continue
        try:
            _remove_if_present(disk.rmdir, path)
        except OSError as error:
            relists -= 1
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not relists:
                raise
        else:
            pending.pop()


def _remove_if_present(remove: Callable[[str], None], path: str) -> None:
    with suppress(FileNotFoundError):
        remove(path)
