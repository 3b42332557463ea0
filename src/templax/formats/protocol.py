"""The protocol that a checkpoint format implements."""

from __future__ import annotations

from typing import Protocol

from .._catalog.catalog import Catalog
from ..errors import UnknownFormat
from ..storage.source import Source


class MixedDirectory(UnknownFormat):
    """A directory is of a format, but holds other checkpoints, too: what to open must be said.

    Attributes:
        url: The directory.
    """

    url = ""


class Format(Protocol):
    """A checkpoint format. Stateless.

    A format reads metadata and indexes and describes where the array bytes are; templax's engine
    reads the bytes. `templax.testing.FormatContract` tests an implementation.

    Attributes:
        name: Name of the format, such as "safetensors"; becomes `Catalog.format`.
    """

    name: str

    def detect(self, source: Source) -> str | None:
        """Evidence, in words, that `source` has this format; None if it doesn't.

        Costs at most a listing and a few small reads. Must not raise for a source of another
        format.
        """
        ...

    def open(self, source: Source) -> Catalog:
        """Opens a source that `detect` recognised.

        Returns:
            Its leaves and metadata.

        Raises:
            Corrupted: Metadata is unreadable, inconsistent, or larger than its file allows.
            Unsupported: A codec, dtype or option that templax does not read; the error names it.
            UnknownFormat: A directory of several checkpoints or items; lists what to open.
        """
        ...
