"""What may be at the final location of a checkpoint when it is saved."""

from __future__ import annotations

import os
import stat

from ..errors import AlreadyExists, SaveError


def check_target(path: str, *, overwrite: bool) -> bool:
    """Checks that a checkpoint may be saved to `path`; returns whether it replaces something.

    Args:
        path: Final location of the checkpoint.
        overwrite: Whether an existing directory may be replaced.

    Returns:
        Whether there is a directory that is not empty.

    Raises:
        AlreadyExists: There is something, other than an empty directory, and `overwrite` is False.
        SaveError: There is a mount point, or `overwrite` is True and there is a file or a link.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode):
        if os.path.ismount(path):
            raise SaveError(
                "Expected a directory that can be replaced, found a mount point",
                file=path,
                hint="save below it",
            )
        with os.scandir(path) as listing:
            if next(listing, None) is None:
                return False
        if overwrite:
            return True
        raise AlreadyExists(
            "Expected nothing or an empty directory, found one that is not empty",
            file=path,
            hint="overwrite=True replaces a checkpoint; or save under another name",
        )
    raise _wrong_kind_error("nothing or a directory", path, mode, overwrite)


def check_file(path: str, *, overwrite: bool) -> bool:
    """Checks that a checkpoint may be saved as a file at `path`; returns whether one is there.

    Raises:
        AlreadyExists: There is something, and `overwrite` is False.
        SaveError: `overwrite` is True, and there is something else than a file.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(mode):
        raise _wrong_kind_error("nothing or a file", path, mode, overwrite)
    if overwrite:
        return True
    raise AlreadyExists(
        "Expected nothing, found a file",
        file=path,
        hint="overwrite=True replaces it; or save under another name",
    )


def _wrong_kind_error(expected: str, path: str, mode: int, overwrite: bool) -> SaveError:
    hint = "save under another name"
    if stat.S_ISLNK(mode):
        found = f"a symbolic link to `{os.readlink(path)}`"
        hint = "save to the path that it points to, or under another name"
    else:
        found = "a directory" if stat.S_ISDIR(mode) else "a file"
    error = SaveError if overwrite else AlreadyExists
    return error(f"Expected {expected}, found {found}", file=path, hint=hint)
