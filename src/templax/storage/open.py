"""Finds the source for a path or URL."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import SourceError, UsageError
from .local import Local
from .source import Source

if TYPE_CHECKING:
    from typing_extensions import TypeIs

    from .stores import Store

_MANGLED_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
"""A URL after `pathlib.Path`, which joins its two slashes. `C:/` is a drive: a single letter."""

_MANGLED_ABSOLUTE_URL = re.compile(
    r"(.*/(file|gs|gcs|s3|s3a|r2|oss|az|azure|abfss?|adl|wasbs?|hdfs|hf|memory|https?|ftp):)/+(.*)",
    re.DOTALL,
)
"""A URL after `os.path.abspath` or `pathlib.Path.absolute`, which put a directory before it."""


def open_source(url: str | os.PathLike[str] | Source, storage: Store | None = None) -> Source:
    """Returns the source for a path or URL; a source is returned unchanged.

    Args:
        url: A local path (relative or absolute, `~` is expanded), a URL (`file://`, `s3://`,
            `gs://`, `az://`, `https://` and others), or a `Source`. A path of fsspec, UPath or
            etils.epath counts as the URL that it names.
        storage: How to reach an object store; by default as the environment says.

    Raises:
        MissingPackage: The URL needs an extra that is not installed.
        SourceError: The scheme or host of the URL is not supported.
        UsageError: The path is empty, since an unset variable must not mean the current directory;
            or `storage` does not serve it.
    """
    if is_source(url):
        if storage is not None:
            raise UsageError(
                "Expected a URL with storage=, got a Source, which has its own storage"
            )
        return url
    found = find_remote(url, storage)
    if found is not None:
        if found[1].startswith("hf://"):
            from .hub import open_repository

            return open_repository(*found)
        from .object_store import ObjectSource  # needs asyncio, which takes 20 ms to import

        return ObjectSource(*found)
    return Local(local_path(url, "reads", "copy the checkpoint to a local directory"))


def name_source(url: str | os.PathLike[str]) -> str:
    """The absolute path or the URL of a checkpoint, the same in all processes of a job."""
    found = find_remote(url)
    if found is not None:
        return found[1].rstrip("/")
    return spell_path(local_path(url, "reads", "copy the checkpoint to a local directory"))


def name_target(url: str | os.PathLike[str]) -> str:
    """A path as the caller wrote it, or the URL that it stands for."""
    if isinstance(url, str) and "://" not in url and ":/" not in url:
        return url  # the common case
    scheme, rest = _split_scheme(path_text(url, given=True))
    known = scheme not in ("", "file") and _find_kind(scheme) is not None
    return f"{scheme.lower()}://{rest}" if known else path_text(url, given=True)


def spell_path(path: str) -> str:
    """A path with links resolved, or a URL unchanged: the same in all processes of a job."""
    return path if is_remote(path) else os.path.realpath(path)


def is_remote(path: str) -> bool:
    """Whether a path from `spell_path` is a URL of an object store."""
    return "://" in path


def is_source(url: object) -> TypeIs[Source]:
    """Whether this is a source itself, rather than a path."""
    return isinstance(url, Source) and not isinstance(url, (str, os.PathLike))


def find_remote(
    url: str | os.PathLike[str], storage: Store | None = None
) -> tuple[Store, str] | None:
    """The store that serves a URL, and the URL with `://` restored; None for a local path.

    Raises:
        SourceError, UsageError: See `open_source`.
    """
    if storage is not None and not callable(getattr(type(storage), "locate", None)):
        raise UsageError(
            "Expected storage= to say how to reach a store, such as templax.storage.S3(…), got"
            f" {type(storage).__name__}"
        )
    path = path_text(url, given=storage is not None)
    scheme, rest = _split_scheme(path)
    kind = None if scheme in ("", "file") else _find_kind(scheme)
    if kind is None:
        if storage is not None and scheme:
            raise UsageError(f"storage={storage!r} does not serve `{scheme}://`")
        if storage is not None:
            raise UsageError(f'Expected a URL with storage=, got the path "{path}"')
        return None
    if "://" not in path and os.path.lexists(path):
        raise UsageError(
            f'"{path}" may be the local directory of that name, or {scheme}://{rest};'
            f' write "./{path}" or "{scheme}://{rest}"'
        )
    return (kind() if storage is None else storage), f"{scheme.lower()}://{rest}"


def _find_kind(scheme: str) -> Callable[[], Store] | None:
    if scheme.lower() == "hf":
        from .hub import HuggingFace

        return HuggingFace.from_environment
    from .stores import find_store

    return find_store(scheme)


def is_fsspec(url: object) -> TypeIs[os.PathLike[str]]:
    """Whether this is a UPath or an open file of fsspec: it has a file system and a path.

    Newer UPaths are `os.PathLike` only if they are local. All are treated as if they were.
    """
    return not isinstance(url, str) and hasattr(url, "fs") and hasattr(url, "path")


def path_text(url: object, *, given: bool = False) -> str:
    """The text of a path or URL, in any of the forms that callers pass.

    Args:
        url: A `str`, an `os.PathLike`, or an object of fsspec or UPath.
        given: Whether the caller passes `storage=`, so that settings of its own may be ignored.

    Raises:
        UsageError: It is none of these, or its settings would be lost.
    """
    if is_fsspec(url):
        fs: Any = getattr(url, "fs")  # noqa: B009
        options = getattr(fs, "storage_options", None)
        if options and not given:
            names = ", ".join(sorted(map(str, options)))
            raise UsageError(
                f"Expected a path without settings of its own, got one with {names}; hint: pass"
                " them as storage=, such as templax.storage.S3(…)"
            )
        return str(fs.unstrip_protocol(getattr(url, "path")))  # noqa: B009
    path: object = os.fspath(url) if isinstance(url, (str, os.PathLike)) else url
    if not isinstance(path, str) or "\0" in path:
        got = repr(path) if isinstance(path, str) else type(path).__name__
        raise UsageError(f"Expected a path (str), got {got}")
    return path


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
    path = path_text(url)
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
        scheme, rest = "", _decode_path(f"/{rest}") if rest else ""
    if scheme:
        if "://" not in path and os.path.lexists(path):
            hint += f'; the local directory of that name is "{os.path.abspath(path)}"'
        raise SourceError(
            f"templax {does} local files; `{scheme}://` is not served by this version; hint: {hint}"
        )
    if not rest or rest.startswith("://"):
        raise UsageError(f'Expected a path, got "{path}"')
    return rest


def _decode_path(path: str) -> str:
    """The path of a `file://` URL without its percent signs."""
    from urllib.parse import unquote  # takes some ms, and is rarely needed

    return unquote(path)


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
