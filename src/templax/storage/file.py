"""Reads and writes single files that a user names, such as a template."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
from contextlib import suppress
from io import UnsupportedOperation
from typing import IO

from ..errors import NotFound, SaveError, SourceError

MAX_BYTES = 1 << 28
"""Maximum size of a file that is read whole, in bytes."""

_BLOCK_BYTES = 1 << 20


def read_file(path: str, what: str) -> bytes:
    """Reads a file or a pipe to its end.

    Args:
        path: The file; "-" is standard input.
        what: What it should hold, for the errors: "a template file".

    Raises:
        NotFound: It does not exist.
        SourceError: It can't be read; it is a directory, a device or too large; or it is a named
            pipe without a writer.
    """
    try:
        if path == "-":
            return _read_to_end(sys.stdin.buffer, path, what)
        with open(os.path.expanduser(path), "rb", buffering=0, opener=_open_now) as file:
            return _read_to_end(file, path, what)
    except SourceError:
        raise
    except FileNotFoundError as error:
        raise NotFound(f"Expected {what}, found nothing", file=path) from error
    except (OSError, ValueError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise SourceError(f"can't read `{path}`: {reason}") from error


def _open_now(path: str, flags: int) -> int:
    """Opens a file, without waiting for a writer if it is a named pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _read_to_end(file: IO[bytes], path: str, what: str) -> bytes:
    pipe, found = False, None
    with suppress(UnsupportedOperation):  # a test may replace standard input by an object in memory
        status = os.fstat(file.fileno())
        mode, pipe = status.st_mode, stat.S_ISFIFO(status.st_mode) and path != "-"
        if (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)) and not file.isatty():
            found = "a device"
        elif status.st_size > MAX_BYTES:
            found = f"{status.st_size} bytes, more than {MAX_BYTES}"
    blocks: list[bytes] = []
    total = 0
    while found is None:
        block: bytes | None = file.read(_BLOCK_BYTES)
        if block is None:
            os.set_blocking(file.fileno(), True)  # the pipe has a writer, which will close it
            continue
        total += len(block)
        if total > MAX_BYTES:
            found = f"more than {MAX_BYTES} bytes"
        elif block:
            blocks.append(block)
        elif pipe and not blocks:
            found = "a pipe to which nobody writes"
        else:
            return b"".join(blocks)
    raise SourceError(f"can't read `{path}`: expected {what}, got {found}")


def write_file(path: str, data: bytes) -> None:
    """Writes a file atomically: one that exists is replaced as a whole or not at all.

    A device, a pipe or a link is written to and stays what it is.

    Raises:
        SaveError: It is a directory, or the file system refused.
    """
    path = os.path.expanduser(path)
    try:
        if os.path.islink(path) or (os.path.exists(path) and not os.path.isfile(path)):
            with open(path, "wb") as file:
                file.write(data)
        else:
            _replace_file(path, data)
    except OSError as error:
        hint = "make its directory first" if error.errno == errno.ENOENT else None
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise SaveError(f"can't write: {reason}", file=path, hint=hint) from error
    except ValueError as error:  # such as a name that can't be encoded
        raise SaveError(f"can't write: {error}", file=path) from error


def _replace_file(path: str, data: bytes) -> None:
    parent, name = os.path.split(path)
    if not name:
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    # An unpredictable name, since others may be able to write to the directory.
    partial = os.path.join(parent, f".{os.urandom(8).hex()}.templax")
    try:
        with open(partial, "xb") as file:
            file.write(data)
        if os.path.exists(path):
            shutil.copymode(path, partial)
        os.replace(partial, path)
    finally:
        with suppress(OSError):
            os.unlink(partial)
