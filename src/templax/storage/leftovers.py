"""What a save is called until it is finished, and what killed ones leave: found and removed.

A save is written to `NAME.orbax-checkpoint-tmp-templax-HOST-RANDOM` next to `NAME`. No reader,
Orbax's included, takes a name with `.orbax-checkpoint-tmp` for a checkpoint.
"""

from __future__ import annotations

import functools
import os
import re
import stat
import time
from collections.abc import Callable
from contextlib import suppress

from ..errors import SaveError, UsageError
from .disk import DISK, Descriptor, Disk, save_error, sync_directory, try_lock
from .local import on_this_machine

TEMPORARY = ".orbax-checkpoint-tmp"
"""What the name of each save contains that has not finished, whoever writes it."""

QUIET_S = 24 * 3600
"""How long a save whose lock tells nothing must have written nothing until it is given up."""

_OURS = f"{TEMPORARY}-templax-"

_TOKEN = re.compile(r"(?P<host>[0-9a-f]{8})-[0-9a-f]{16}")

_HOST_BYTES, _RANDOM_BYTES, _DIGEST_BYTES = 8, 16, 16

_TOKEN_BYTES = _HOST_BYTES + 1 + _RANDOM_BYTES

_LONGEST_NAME = 255


def absolute_path(path: str | os.PathLike[str]) -> str:
    """The absolute path of one that a user gave; `~` is expanded, as in `storage.Local`."""
    text = os.fspath(path)
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise UsageError(f"Expected a path, got {text!r}, which no file can be called") from error
    if "\0" in text:
        raise UsageError(f"Expected a path, got {text!r}")
    return os.path.abspath(os.path.expanduser(text))


def temporary_path(path: str) -> str:
    """A fresh name next to `path` and tied to it, for what is not, or no longer, a checkpoint."""
    return f"{_stem(path)}{_OURS}{_host()}-{os.urandom(_RANDOM_BYTES // 2).hex()}"


def _stem(path: str) -> str:
    """What the temporary names of `path` begin with: `path` itself, unless it is too long."""
    parent, name = os.path.split(path)
    try:
        longest = os.pathconf(parent, "PC_NAME_MAX")
    except (OSError, ValueError):
        longest = _LONGEST_NAME
    raw = os.fsencode(name)
    room = longest - len(_OURS) - _TOKEN_BYTES
    if len(raw) <= room:
        return path
    head = raw[: max(0, room - _DIGEST_BYTES - 1)].decode(errors="ignore")
    return os.path.join(parent, f"{head}~{_digest(raw, _DIGEST_BYTES)}")


def _digest(data: bytes, length: int) -> str:
    from hashlib import blake2b  # costs 2 ms, which a reader need not pay

    return blake2b(data, digest_size=length // 2).hexdigest()


@functools.cache
def _host() -> str:
    """Tells machines apart, which don't see each other's locks; the same in all its containers."""
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            name = file.read()
    except OSError:
        name = os.fsencode(os.uname().nodename)
    return _digest(name, _HOST_BYTES)


def find_abandoned(path: str | os.PathLike[str], disk: Disk = DISK) -> list[str]:
    """What killed saves to `path` left behind, templax's own only.

    Each can be given to `remove_directory`.

    It is what had been written, or the replaced or pruned checkpoint if the save or the pruning
    was killed while it removed that.

    A save in progress holds a lock on its directory. Locks on directories are known to this
    machine only, and some file systems have none: what another machine writes to a network file
    system, or a directory that can't be locked or opened, counts as left only when nothing in it
    was written for a day.

    Raises:
        SaveError: The directory of `path` can't be listed, or the file system fails.
    """
    parent, name = os.path.split(_stem(absolute_path(path)))
    return _left(parent, name, disk)


def find_abandoned_in(directory: str | os.PathLike[str], disk: Disk = DISK) -> list[str]:
    """What `find_abandoned` gives of all there is, or was, in a directory.

    Raises:
        SaveError: See `find_abandoned`.
    """
    return _left(absolute_path(directory), None, disk)


def _left(parent: str, name: str | None, disk: Disk) -> list[str]:
    """Args: name: What temporary names begin with; None for all."""
    try:
        names = os.listdir(parent)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise save_error("list", parent, error) from error
    found: list[str] = []
    for each in names:
        stem, ours, token = each.rpartition(_OURS)
        if ours and name in (None, stem) and _TOKEN.fullmatch(token):
            found.append(os.path.join(parent, each))
    try:
        return sorted(path for path in found if _is_left(path, disk))
    except OSError as error:
        raise save_error("look for what saves left in", parent, error) from error


def is_abandoned(path: str | os.PathLike[str], disk: Disk = DISK) -> bool:
    """Whether no process writes any more to what a save left, by templax or another program.

    Raises:
        SaveError: The file system fails.
    """
    path = absolute_path(path)
    if _TOKEN.fullmatch(path, max(len(path) - _TOKEN_BYTES, 0)) is None:
        return _is_quiet(path)  # others take no locks
    try:
        return _is_left(path, disk)
    except OSError as error:
        raise save_error("look at", path, error) from error


def _is_left(path: str, disk: Disk) -> bool:
    """Whether no process writes to a temporary directory of templax any more."""
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            return True  # a link or a file that was to be removed
        fd = disk.open_directory(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return _is_quiet(path)
    try:
        free = try_lock(fd, disk, shared=True)  # two who ask at once must not see each other
    finally:
        disk.close(fd)
    if free is False:
        return False
    return bool(free and _locks_tell(path)) or _is_quiet(path)


def _locks_tell(path: str) -> bool:
    """Whether a lock would be seen here, whoever holds it."""
    token = _TOKEN.fullmatch(path, len(path) - _TOKEN_BYTES)
    return (token is not None and token["host"] == _host()) or on_this_machine(path)


def _is_quiet(path: str) -> bool:
    """Whether nothing in a tree was written for `QUIET_S`."""

    def changed(path: str) -> float:
        return os.lstat(path).st_mtime

    try:
        newest = changed(path)
        for directory, _, files in os.walk(path, onerror=_raise):
            newest = max(newest, changed(directory))
            newest = max([newest, *(changed(os.path.join(directory, f)) for f in files)])
    except OSError:
        return False
    return time.time() - newest > QUIET_S


def _raise(error: OSError) -> None:
    raise error


def remove_directory(directory: str | os.PathLike[str], disk: Disk = DISK) -> None:
    """Deletes a tree (or a file, or a link, not what it points to) for good.

    Killed in the middle, what is left has a temporary name and is removed by another call. Nothing
    there is no error.

    Raises:
        SaveError: A save writes to it, or the file system refuses.
    """
    path = absolute_path(directory)
    parent, name = os.path.split(path)
    if TEMPORARY not in name:
        if not delete_checkpoint(path, disk):
            raise SaveError("Expected what nobody uses, found a lock on it", file=path)
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
                    "Expected what a save left, found one that goes on",
                    file=path,
                    hint="wait for it, or end that process",
                )
            if not (free and _locks_tell(path)):
                # Should somebody write to it after all, he must not find it in its place when he
                # finishes, cut to pieces.
                old, path = path, temporary_path(os.path.join(parent, name.partition(_OURS)[0]))
                disk.rename(old, path)
            # It may be what a save replaced that was killed before its move was there to stay.
            sync_names(parent, disk)
            delete_tree(path, disk)
        finally:
            disk.close(fd)
    except FileNotFoundError:
        return
    except OSError as error:
        raise save_error("remove", path, error) from error


def delete_checkpoint(path: str | os.PathLike[str], disk: Disk = DISK) -> bool:
    """Deletes a checkpoint: first its name, at once and for good, then what was in it.

    So half of it is never read, whenever this is killed or the power fails.

    Returns:
        Whether it is gone: False, and untouched, if somebody holds a lock on the directory, as who
        restores a step does.

    Raises:
        SaveError: The file system refuses. Whole or in part it may lie under a temporary name.
    """
    path = absolute_path(path)
    gone = temporary_path(path)
    held: Descriptor | None = None
    try:
        with suppress(NotADirectoryError):
            held = Descriptor(disk, disk.open_directory(path))
        try:
            if held is not None and try_lock(held.fd, disk) is False:
                return False
            disk.rename(path, gone)
            sync_names(os.path.dirname(path), disk)
            delete_tree(gone, disk)  # under the lock: who waits for it to read is told afterwards
        finally:
            if held is not None:
                held.close()
    except FileNotFoundError:
        return True
    except OSError as error:
        raise save_error("remove", path, error) from error
    return True


def sync_names(directory: str, disk: Disk) -> None:
    """Syncs the names in a directory."""
    fd = disk.open_directory(directory)
    try:
        sync_directory(fd, disk)
    finally:
        disk.close(fd)


def delete_tree(top: str, disk: Disk) -> None:
    """Deletes a tree, file or link. Whatever another process deletes meanwhile is not an error."""
    try:
        if not stat.S_ISDIR(os.lstat(top).st_mode):
            disk.unlink(top)
            return
    except FileNotFoundError:
        return
    pending = [top]
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
                _unless_gone(disk.unlink, entry.path)
        if not below:
            _unless_gone(disk.rmdir, pending.pop())
        pending += below


def _unless_gone(remove: Callable[[str], None], path: str) -> None:
    with suppress(FileNotFoundError):
        remove(path)
