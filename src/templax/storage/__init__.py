"""Where checkpoints are read from and written to: two protocols, and one module per kind of store.

`Source` is the protocol for reading, `Sink` the one for writing.
"""

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
