"""How a checkpoint is laid out: one protocol, one file per layout."""

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
    """The catalog of whatever is at `source`: the first format with evidence opens it.

    Raises:
        NotFound: Nothing is there.
        UnknownFormat: No format recognises it; says what it is instead.
        Uncommitted: The save never finished, unless `uncommitted="allow"`.
        Corrupted, Unsupported: As `Format.open`.
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
    """What stands in for a checkpoint, such as a `Recipe`: it has a catalog of its own."""

    def catalog(self) -> Catalog: ...


Checkpoint = str | os.PathLike[str] | Source | Catalog | SupportsCatalog


def open_checkpoint(
    checkpoint: Checkpoint, uncommitted: Literal["error", "allow"] = "error"
) -> Catalog:
    """The catalog of whatever a caller gave; see `templax.open`."""
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
