"""Finds the sink for a path or URL. `open.py` finds sources, without importing what writes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import SaveError
from .file_staging import FileStaging
from .keeping import KeepingStaging
from .leftovers import Leftover
from .open import find_remote, is_remote, local_path
from .sink import SharedSink, Sink
from .source import Source
from .staging import Staging

if TYPE_CHECKING:
    from .stores import Store


def open_staging(
    url: str | os.PathLike[str] | Sink,
    *,
    overwrite: bool,
    single: bool = False,
    leftover: Leftover | None = None,
    others: Callable[[Source], list[str]] | None = None,
    keeps: bool = False,
    storage: Store | None = None,
) -> Sink:
    """Returns a sink that writes a checkpoint to a path or URL; a sink is returned unchanged.

    Args:
        url: A path or URL as for `open_source`, or a `Sink`.
        overwrite: Whether an existing checkpoint may be replaced.
        single: Whether the checkpoint is a single file at the path, rather than a directory.
        leftover: See `Staging`.
        others: Lists the names that others put beside the checkpoint that is replaced.
        keeps: Whether these names are kept. Otherwise they are an error in an object store; on a
            disk, the caller has looked.
        storage: See `open_source`.

    Raises:
        AlreadyExists: The path is taken, and `overwrite` is False.
        SaveError: The existing directory can't be replaced, or nothing can be written there.
        SourceError: The scheme or host of the URL is not supported.
        UsageError: The path is empty, since an unset variable must not mean the current directory.
    """
    if isinstance(url, Sink) and not isinstance(url, (str, os.PathLike)):
        return url
    remote = find_remote(url, storage)
    if remote is not None:
        from .object_sink import ObjectSink

        if single or leftover is not None:
            raise SaveError(
                "templax writes single files to local disks only",
                file=remote[1],
                hint="save to a local path and copy the file",
            )
        return ObjectSink(*remote, overwrite=overwrite, others=others, keeps=keeps)
    hint = "save to a local directory, then copy that"
    path = local_path(url, "writes", hint)
    if others is not None and keeps:
        return KeepingStaging(path, overwrite=overwrite, others=others)
    make = FileStaging if single else Staging
    return make(path, overwrite=overwrite, leftover=leftover)


def join_staging(path: str, directory: str, storage: Store | None = None) -> SharedSink:
    """A sink that adds files to a save that another process has begun with `open_staging`.

    Args:
        path, directory: The attributes of that process's sink.
        storage: See `open_source`.
    """
    remote = find_remote(path, storage) if is_remote(path) else None
    if remote is None:
        return Staging.join(path, directory)
    from .object_sink import ObjectSink

    return ObjectSink.join(*remote, directory)
