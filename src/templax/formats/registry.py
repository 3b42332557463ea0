"""The formats that templax reads, and opening a checkpoint of whichever format it has."""

from __future__ import annotations

import os
from typing import Literal, Protocol, runtime_checkable

from .._catalog.catalog import Catalog
from ..errors import Uncommitted, UsageError
from ..storage.open import open_source
from ..storage.source import Source
from .diagnose import diagnose_source
from .orbax.format import Orbax
from .protocol import Format
from .safetensors import Safetensors

FORMATS: tuple[Format, ...] = (Safetensors(), Orbax())


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
    for format in FORMATS:
        if format.detect(source) is not None:
            catalog = format.open(source)
            break
    else:
        raise diagnose_source(source)
    if catalog.uncommitted is not None and uncommitted == "error":
        raise Uncommitted(
            f"{catalog.url} is not a committed checkpoint: {catalog.uncommitted}",
            hint="to read it all the same, restore from "
            f'tx.open("{catalog.url}", uncommitted="allow")',
        )
    return catalog


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
    if uncommitted not in ("error", "allow"):
        raise UsageError(f'Expected uncommitted="error" or "allow", got {uncommitted!r}')
    if isinstance(checkpoint, (str, os.PathLike, Source)):
        return open_catalog(open_source(checkpoint), uncommitted=uncommitted)
    if isinstance(checkpoint, SupportsCatalog):
        return checkpoint.catalog()
    raise UsageError(
        f"Expected a path, Source, Catalog or Recipe as checkpoint, got {type(checkpoint).__name__}"
    )
