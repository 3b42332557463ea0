"""Where checkpoints are read from and written to: two protocols, and one module per kind of store.

`Source` is the protocol for reading, `Sink` the one for writing. `S3`, `GCS`, `Azure`, `HTTP` and
`HuggingFace` say how to reach a store.
"""

from typing import TYPE_CHECKING, Any

from .local import Local
from .memory import Memory
from .open import open_source, open_staging
from .sink import Sink, SinkFile
from .source import ObjectInfo, Source
from .staging import Staging

if TYPE_CHECKING:
    from .hub import HuggingFace
    from .object_store import ObjectSource
    from .stores import GCS, HTTP, S3, Azure, Store

_REMOTE = {
    "Azure": "stores",
    "GCS": "stores",
    "HTTP": "stores",
    "HuggingFace": "hub",
    "ObjectSource": "object_store",
    "S3": "stores",
    "Store": "stores",
}

__all__ = [
    "GCS",
    "HTTP",
    "S3",
    "Azure",
    "HuggingFace",
    "Local",
    "Memory",
    "ObjectInfo",
    "ObjectSource",
    "Sink",
    "SinkFile",
    "Source",
    "Staging",
    "Store",
    "open_source",
    "open_staging",
]


def __getattr__(name: str) -> Any:
    if name in _REMOTE:  # they need asyncio, which takes 20 ms to import
        from importlib import import_module

        return getattr(import_module(f".{_REMOTE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
