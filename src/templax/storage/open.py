"""Finds the source or sink for a path or URL."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

from ..errors import SourceError, UsageError
from .file_staging import FileStaging
from .leftovers import Leftover
from .local import Local
from .sink import Sink
from .source import Source
from .staging import Staging

_MANGLED_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
"""A URL after `pathlib.Path`, which joins its two slashes. `C:/` is a drive: a single letter."""

_MANGLED_ABSOLUTE_URL = re.compile(
    r"(.*/(file|gs|gcs|s3|s3a|r2|oss|az|abfss?|wasbs?|hdfs|https?|ftp):)/+(.*)", re.DOTALL
)
"""A URL after `os.path.abspath` or `pathlib.Path.absolute`, which put a directory before it."""


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
    return Local(local_path(url, "reads", "copy the checkpoint to a local directory"))


def open_staging(
    url: str | os.PathLike[str] | Sink,
    *,
    overwrite: bool,
    single: bool = False,
    leftover: Leftover | None = None,
) -> Sink:
    """Returns a sink that writes a checkpoint to a path or URL; a sink is returned unchanged.

    Args:
        url: A path or `file://` URL as for `open_source`, or a `Sink`.
        overwrite: Whether an existing checkpoint may be replaced.
        single: Whether the checkpoint is a single file at the path, rather than a directory.
        leftover: See `Staging`.

    Raises:
        AlreadyExists: The path is taken, and `overwrite` is False.
        SaveError: The existing directory can't be replaced, or nothing can be written there.
        SourceError: The scheme or host of the URL is not supported.
        UsageError: The path is empty, since an unset variable must not mean the current directory.
    """
    if isinstance(url, Sink) and not isinstance(url, (str, os.PathLike)):
        return url
    hint = "save to a local directory, then copy that"
    make = FileStaging if single else Staging
    return make(local_path(url, "writes", hint), overwrite=overwrite, leftover=leftover)


def local_path(url: str | os.PathLike[str], does: str, hint: str) -> str:
    """Returns the local path for a path or a `file://` URL.

    Args:
        url: As given by the user.
        does: What templax does to files, for the messages: "reads" or "writes".
        hint: What to do instead for another scheme.

    Raises:
        SourceError: The scheme or host of the URL is not supported.
        UsageError: It is empty, or no path.
    """
    path = os.fspath(url)
    if not isinstance(path, str) or "\0" in path:
        raise UsageError(f"Expected a path (str), got {path!r}")
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        what = f"Expected a path, got {path!r}, which is not a valid file name"
        raise UsageError(what) from error
    scheme, rest = _split_scheme(path)
    if scheme.lower() == "file":
        host, _, rest = rest.partition("/")
        if host not in ("", "localhost"):
            raise SourceError(f"templax {does} local files, not those of host `{host}`")
        scheme, rest = "", unquote(f"/{rest}") if rest else ""
    if scheme:
        if "://" not in path and os.path.lexists(path):
            hint += f'; the local directory of that name is "{os.path.abspath(path)}"'
        raise SourceError(
            f"templax {does} local files; `{scheme}://` is not served by this version; hint: {hint}"
        )
    if not rest or rest.startswith("://"):
        raise UsageError(f'Expected a path, got "{path}"')
    return rest


def _split_scheme(path: str) -> tuple[str, str]:
    """Splits a URL into its scheme and what follows `://`; a path has an empty scheme.

    What `pathlib` or `os.path` made of a URL counts as the URL that it was. With a directory before
    it, it is a local path if that exists, or begins with `./`.

    >>> _split_scheme("gs://bucket/run"), _split_scheme("gs:/bucket/run"), _split_scheme("C:/run")
    (('gs', 'bucket/run'), ('gs', 'bucket/run'), ('', 'C:/run'))
    """
    scheme, colon, rest = path.partition("://")
    if colon and scheme:
        return scheme.rpartition("/")[2] or scheme, rest
    if found := _MANGLED_URL.fullmatch(path):
        scheme, rest = found.groups()
    elif (
        not path.startswith("./")
        and (found := _MANGLED_ABSOLUTE_URL.fullmatch(path))
        and not os.path.lexists(found[1])
    ):
        _, scheme, rest = found.groups()
    else:
        return "", path
    return scheme, f"/{rest}" if scheme.lower() == "file" else rest
