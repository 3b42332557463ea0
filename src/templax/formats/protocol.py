"""What a checkpoint layout implements."""

from __future__ import annotations

from typing import Protocol

from .._catalog.catalog import Catalog
from ..storage.source import Source


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
            Corrupted: Metadata unreadable, contradictory, or larger than its file allows.
            Unsupported: A codec, dtype or option by its name.
            UnknownFormat: A directory of checkpoints, or of several items: lists what to open.
        """
        ...
