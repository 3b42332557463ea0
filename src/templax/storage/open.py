"""Finds the source or sink for a path or URL."""

from __future__ import annotations

import os
from urllib.parse import unquote

from ..errors import SourceError, UsageError
from .local import Local
from .sink import Sink
from .source import Source
from .staging import Staging


def open_source(url: str | os.PathLike[str] | Source) -> Source:
    """Returns the source for a path or URL; a source is returned unchanged.

    Args:
        url: A local path (relative or absolute, `~` is expanded), a `file://` URL, or a `Source`.

    Raises:
        SourceError: The scheme or host of the URL is not supported.
        UsageError: The path is empty, since an unset variable must not mean the current directory.
    """
    if isinstance(url, Source) and not isinstance(url, (str, os.PathLike)):
        return url
    return Local(_local_path(url, "reads", "copy the checkpoint to a local directory"))


def open_staging(url: str | os.PathLike[str] | Sink, *, overwrite: bool) -> Sink:
    """Returns a sink that writes a checkpoint to a path or URL; a sink is returned unchanged.

    Args:
        url: A path or `file://` URL as for `open_source`, or a `Sink`.
        overwrite: Whether an existing checkpoint may be replaced.

    Raises:
        AlreadyExists: The path is taken, and `overwrite` is False.
        SaveError: The existing directory can't be replaced, or nothing can be written there.
        SourceError: The scheme or host of the URL is not supported.
        UsageError: The path is empty, since an unset variable must not mean the current directory.
    """
    if isinstance(url, Sink) and not isinstance(url, (str, os.PathLike)):
        return url
    hint = "save to a local directory, then copy that"
    return Staging(_local_path(url, "writes", hint), overwrite=overwrite)


def _local_path(url: str | os.PathLike[str], does: str, hint: str) -> str:
    """Returns the local path for a path or a `file://` URL.

    Args:
        url: As given by the user.
        does: What templax does to files, for the messages: "reads" or "writes".
        hint: What to do instead for another scheme.
    """
    path = os.fspath(url)
    if not isinstance(path, str) or "\0" in path:
        raise UsageError(f"Expected a path (str), got {path!r}")
    scheme, colon, rest = path.partition("://")
    if colon and scheme.lower() == "file":
        host, _, path = rest.partition("/")
        if host not in ("", "localhost"):
            raise SourceError(f"templax {does} local files, not those of host `{host}`")
        path = unquote(f"/{path}") if path else ""
        colon = ""
    if not path:
        raise UsageError(f'Expected a path, got "{os.fspath(url)}"')
    if colon:
        raise SourceError(
            f"templax {does} local files; `{scheme}://` is not served by this version; hint: {hint}"
        )
    return path
