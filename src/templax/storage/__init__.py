"""Where bytes are read from and written to: a protocol for each, one module per kind of store."""

from .local import Local
from .memory import Memory
from .open import open_source, open_staging
from .sink import Sink, SinkFile
from .source import ObjectInfo, Source
from .staging import Staging

__all__ = [
    "Local",
    "Memory",
    "ObjectInfo",
    "Sink",
    "SinkFile",
    "Source",
    "Staging",
    "open_source",
    "open_staging",
]
