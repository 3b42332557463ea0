"""Checkpoint formats: the protocol that a format implements, and opening a checkpoint of any."""

from .._catalog.catalog import Catalog
from .._catalog.entry import Chunk, Extent, LeafEntry
from .protocol import Format
from .registry import open_catalog

__all__ = ["Catalog", "Chunk", "Extent", "Format", "LeafEntry", "open_catalog"]
