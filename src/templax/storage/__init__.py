"""Where checkpoints are read from and written to: two protocols, and one module per kind of store.

`Source` is the protocol for reading, `Sink` the one for writing. `S3`, `GCS`, `Azure`, `HTTP` and
`HuggingFace` say how to reach a store.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .hub import HuggingFace
    from .local import Local
    from .memory import Memory
    from .object_store import ObjectSource
    from .open import open_source
    from .open_sink import open_staging
    from .sink import Sink, SinkFile
    from .source import ObjectInfo, Source
    from .staging import Staging
    from .stores import GCS, HTTP, S3, Azure, Store

_HOME = {
    "Azure": "stores",
    "GCS": "stores",
    "HTTP": "stores",
    "HuggingFace": "hub",
    "Local": "local",
    "Memory": "memory",
    "ObjectInfo": "source",
    "ObjectSource": "object_store",
    "S3": "stores",
    "Sink": "sink",
    "SinkFile": "sink",
    "Source": "source",
    "Staging": "staging",
    "Store": "stores",
    "open_source": "open",
    "open_staging": "open_sink",
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
    if name in _HOME:  # opening a local file needs neither what writes nor what talks to stores
        from importlib import import_module

        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
