"""Watches what this process writes to the file system, through Python's audit events."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .targets import Wrong

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

_PATHS = {
    "os.chmod": 1, "os.chown": 1, "os.link": 2, "os.mkdir": 1, "os.remove": 1, "os.rename": 2,
    "os.rmdir": 1, "os.symlink": 2, "os.truncate": 1, "os.utime": 1,
}  # fmt: skip
"""Event → how many of its arguments are paths that change."""

_allowed: str | None = None

_found: list[str] = []

_installed = False


@contextmanager
def only_writing_to(directory: str | os.PathLike[str] | None) -> Iterator[None]:
    """Fails if anything outside the directory is written meanwhile; with None, if anything is.

    Writes through the descriptors of files that are already open are not seen.
    """
    global _allowed, _installed
    if not _installed:
        sys.addaudithook(_notice)
        _installed = True
    _found.clear()
    _allowed = "/nowhere" if directory is None else os.path.realpath(directory)
    try:
        yield
    finally:
        _allowed = None
    if _found:
        raise Wrong(f"written outside {directory}: {_found[:5]}")


def _notice(event: str, arguments: tuple[Any, ...]) -> None:
    if _allowed is None:
        return
    if event == "open":
        path, _, flags = arguments
        if isinstance(flags, int) and flags & _WRITING:
            _record(event, path)
    elif event in _PATHS:
        for path in arguments[: _PATHS[event]]:
            _record(event, path)


def _record(event: str, path: Any) -> None:
    if not isinstance(path, (str, bytes, os.PathLike)):
        return  # a descriptor
    text = os.path.abspath(os.fsdecode(path))
    parent = os.path.realpath(os.path.dirname(text))
    inside = f"{parent}/".startswith(f"{_allowed}/")
    if not inside and text != os.devnull:
        _found.append(f"{event} {text}")
