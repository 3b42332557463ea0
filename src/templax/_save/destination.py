"""Where a save goes, and what is refused there."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, NamedTuple

from .._core.text import is_unicode
from ..errors import SaveError, SourceError
from ..formats.one_file import find_only_file
from ..formats.orbax.extra_content import (
    describe_extra_content,
    describe_unkept_content,
    find_enclosing_item,
)
from ..formats.safetensors_set import SafetensorsSet
from ..storage.disk import save_error
from ..storage.marks import LEASE
from ..storage.open import open_source
from ..storage.request_errors import ObjectChanged
from ..storage.source import Source, find_cost
from .options import Url

if TYPE_CHECKING:
    from .._hosts.agreement import Hosts  # imports JAX
    from ..storage.stores import Store

_ATTEMPTS = 3
"""Most examinations of a destination that keeps changing."""

SEE_S = 5.0
"""How long a new directory may take to appear on the other hosts of a network file system."""


class Destination(NamedTuple):
    """Where a save goes, as process 0 decides.

    Attributes:
        url: The path to save to, or a sink.
        item: The name of the item that holds the tree; "" if the tree is the checkpoint itself.
    """

    url: Url
    item: str = ""


def check_destination(
    url: str | os.PathLike[str],
    storage: Store | None,
    *,
    replaces: bool,
    keeps: bool = False,
) -> None:
    """Refuses to save inside an item, and to replace a directory that holds more than one
    checkpoint: a run, a home directory, a collection.

    A directory in an object store that has a lease is not examined here: `ObjectSink` does that
    once it has the lease, which says what belongs to the save that began it.

    If another program replaces the destination during the examination, it is examined again. Which
    of the two saves wins is decided later, when they begin to write.

    Args:
        url: The destination.
        storage: See `open_source`.
        replaces: Whether a checkpoint there is replaced.
        keeps: Whether what others put beside it is kept.

    Raises:
        SaveError: The destination is refused, or cannot be examined.
    """
    for attempt in range(_ATTEMPTS):
        try:
            _examine(open_source(url, storage), replaces=replaces, keeps=keeps)
            return
        except SaveError as error:
            if not isinstance(error.__cause__, ObjectChanged) or attempt == _ATTEMPTS - 1:
                raise


def _examine(source: Source, *, replaces: bool, keeps: bool) -> None:
    check_path(source.url)
    try:
        # List first: then a store is asked for single files further up, and not for listings.
        is_empty = next(source.children(), None) is None
        around = find_enclosing_item(source)
        is_set = SafetensorsSet().is_only(source) or find_only_file(source) is not None
        replaces = replaces and not is_empty and (keeps or not is_set)
        if replaces and find_cost(source) is not None:
            replaces = source.stat(LEASE) is None
        describe = describe_unkept_content if keeps else describe_extra_content
        found = describe(source) if replaces else None
    except SourceError as error:
        cause = error.__cause__
        if isinstance(cause, OSError):
            raise save_error("examine the destination", source.url, cause) from error
        raise SaveError(f"can't examine the destination: {error}", file=source.url) from error
    if around is not None:
        what = f"Expected a place of its own, got one inside {around}"
        raise SaveError(what, file=source.url)
    if found is not None:
        raise SaveError(
            f"overwrite=True replaces one checkpoint, found {found}",
            file=source.url,
            hint="save under another name",
        )


def check_path(path: str) -> None:
    """Refuses a path that the files of a checkpoint can't contain, and that Orbax can't open.

    Raises:
        SaveError: The path is not valid Unicode.
    """
    if not is_unicode(path):
        shown = path.encode(errors="backslashreplace").decode()
        raise SaveError("Expected a path in UTF-8, got other bytes", file=shown)


def await_directory(directory: str, path: str, call: Hosts) -> None:
    """Waits until this process sees the directory that process 0 has made.

    Raises:
        SaveError: It does not within `SEE_S`; or another process failed meanwhile.
    """
    deadline = time.monotonic() + SEE_S
    while not os.path.isdir(directory):
        if time.monotonic() > deadline:
            raise SaveError(
                f"Process {call.index} does not see `{directory}`, which process 0 has made: it is"
                " not on a file system that they share",
                file=path,
                hint="save to a directory that all processes see",
            )
        call.check()  # process 0 removes it, if it gives up
        time.sleep(SEE_S / 100)
