"""How a checkpoint is laid out: one protocol, one file per layout."""

from __future__ import annotations

from typing import Literal, Protocol

from .._catalog import Catalog, Chunk, Extent, LeafEntry
from .._errors import Uncommitted
from ..sources import Source
from ._orbax import Orbax
from ._safetensors import Safetensors
from ._unknown import explain

__all__ = ["Catalog", "Chunk", "Extent", "Format", "LeafEntry", "open_catalog"]


class Format(Protocol):
    """A checkpoint layout. Stateless.

    A format reads metadata and indexes; the array bytes it points to are read by the engine.
    """

    name: str

    def detect(self, source: Source) -> str | None:
        """Why `source` is in this layout, as words for a person; None if it isn't.

        Costs a listing and a few small reads at most. Must not raise for what is merely foreign.
        """
        ...

    def open(self, source: Source) -> Catalog:
        """All leaves and metadata of `source`, which `detect` recognised.

        Raises:
            Damaged: Metadata unreadable, contradictory, or larger than its file allows.
            Unsupported: A codec, dtype or option by its name.
            UnknownFormat: A directory of checkpoints, or of several items: lists what to open.
        """
        ...


FORMATS: tuple[Format, ...] = (Safetensors(), Orbax())


def open_catalog(source: Source, *, uncommitted: Literal["error", "allow"] = "error") -> Catalog:
    """The catalog of whatever is at `source`: the first format with evidence opens it.

    Raises:
        NotFound: Nothing is there.
        UnknownFormat: No format recognises it; says what it is instead.
        Uncommitted: The save never finished, unless `uncommitted="allow"`.
        Damaged, Unsupported: As `Format.open`.
    """
    for format in FORMATS:
        if format.detect(source) is not None:
            catalog = format.open(source)
            break
    else:
        raise explain(source)
    if catalog.uncommitted is not None and uncommitted == "error":
        raise Uncommitted(
            f"{catalog.url} is not a committed checkpoint: {catalog.uncommitted}",
            hint="to read it all the same, restore from "
            f'tx.open("{catalog.url}", uncommitted="allow")',
        )
    return catalog
