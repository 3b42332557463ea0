"""How checkpoints are laid out: one protocol, one module or package per layout."""

from .._catalog.catalog import Catalog
from .._catalog.entry import Chunk, Extent, LeafEntry
from .protocol import Format
from .registry import open_catalog

__all__ = ["Catalog", "Chunk", "Extent", "Format", "LeafEntry", "open_catalog"]
