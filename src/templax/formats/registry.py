"""The formats that templax reads, and opening a checkpoint of whichever format it has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from .._catalog.catalog import Catalog
from .._core.text import quote_text
from ..errors import TemplaxError, Uncommitted, UsageError
from ..storage.head import KeptHead
from ..storage.open import is_fsspec, open_source
from ..storage.source import ObjectInfo, Source
from .file_formats import iter_file_formats, iter_set_formats
from .protocol import Format, MixedDirectory

if TYPE_CHECKING:
    from ..storage.stores import Store


def _iter_formats(info: ObjectInfo | None) -> Iterator[Format]:
    """The formats that the file or directory at the root of a source may have; see `file_formats`.

    A path of which nothing is known may have any.
    """
    if info is None or not info.is_dir:
        yield from iter_file_formats()
    if info is None or info.is_dir:
        from .flax.arrays import FlaxArrays

        yield FlaxArrays()
        from .zarr_tree import ZarrTree

        yield ZarrTree()  # before Orbax, of which a database without its other files may be as well
        from .orbax.format import Orbax

        yield Orbax()
    yield from iter_set_formats()


def open_catalog(source: Source, *, uncommitted: Literal["error", "allow"] = "error") -> Catalog:
    """Opens the checkpoint at `source` with the first format that recognises it.

    Args:
        source: The root of the checkpoint.
        uncommitted: "allow" to open a checkpoint whose save never finished.

    Raises:
        NotFound: The source does not exist.
        UnknownFormat: No format recognises it; the error describes what it is instead.
        Uncommitted: The save never finished, unless `uncommitted="allow"`.
        Corrupted, Unsupported: See `Format.open`.
    """
    info = source.stat("")
    if info is not None and info.is_dir:
        from .orbax.directory import list_run_ahead, uncommitted_reason

        # Before the tree is read, which may be incomplete.
        reason = uncommitted_reason(source) if uncommitted == "error" else None
        if reason is not None:
            raise _uncommitted_error(source, reason)
        list_run_ahead(source)
    looked_at = KeptHead(source)
    format = next((f for f in _iter_formats(info) if f.detect(looked_at) is not None), None)
    if format is None:
        from .diagnose import diagnose_source

        raise diagnose_source(source)
    try:
        catalog = format.open(source)
    except MixedDirectory as error:
        if error.url != source.url:  # it is the only item in the directory
            raise
        from .diagnose import diagnose_source

        raise diagnose_source(source) from None  # which says what to open instead
    if catalog.uncommitted is not None and uncommitted == "error":
        raise _uncommitted_error(catalog.source, catalog.uncommitted)
    return catalog


def _uncommitted_error(source: Source, reason: str) -> Uncommitted:
    """The error for a save that never finished; hints at reading it if everything is there."""
    hint = None
    with suppress(TemplaxError):
        catalog = open_catalog(source, uncommitted="allow")
        catalog.locate(e for e in catalog.leaves.values() if e.kind != "string")
        opened = f'tx.open({quote_text(catalog.url)}, uncommitted="allow")'
        hint = f"to read it all the same, restore from {opened}"
    return Uncommitted(f"{source.url} is not a committed checkpoint: {reason}", hint=hint)


@runtime_checkable
class SupportsCatalog(Protocol):
    """An object usable in place of a checkpoint because it has a catalog, such as a `Recipe`."""

    def catalog(self) -> Catalog: ...


Checkpoint = str | os.PathLike[str] | Source | Catalog | SupportsCatalog


def open_checkpoint(
    checkpoint: Checkpoint, uncommitted: Literal["error", "allow"] = "error"
) -> Catalog:
    """The catalog of a checkpoint in any form that callers may pass; see `templax.open`."""
    if isinstance(checkpoint, Catalog):
        return checkpoint
    check_uncommitted(uncommitted)
    if isinstance(checkpoint, (str, os.PathLike, Source)) or is_fsspec(checkpoint):
        return open_catalog(open_source(checkpoint), uncommitted=uncommitted)
    if isinstance(checkpoint, SupportsCatalog):
        return checkpoint.catalog()
    raise UsageError(
        f"Expected a path, Source, Catalog or Recipe as checkpoint, got {type(checkpoint).__name__}"
    )


def with_storage(checkpoint: Checkpoint, storage: Store | None) -> Checkpoint:
    """The source of a URL that is reached as `storage` says; without one, the checkpoint as given.

    Raises:
        UsageError: The checkpoint is not a URL that such a store serves.
    """
    if storage is None:
        return checkpoint
    if isinstance(checkpoint, (str, os.PathLike, Source)) or is_fsspec(checkpoint):
        return open_source(checkpoint, storage)
    raise UsageError(f"Expected a URL beside storage=, got {type(checkpoint).__name__}")


def check_uncommitted(uncommitted: str) -> None:
    """Raises UsageError unless `uncommitted` is a choice that there is."""
    if uncommitted not in ("error", "allow"):
        raise UsageError(f'Expected uncommitted="error" or "allow", got {uncommitted!r}')
