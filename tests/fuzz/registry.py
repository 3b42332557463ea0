"""All targets by name. Importing this registers them."""

from __future__ import annotations

from . import (
    arrays,
    checkpoints,
    codecs,
    containers,
    documents,
    gguf_files,
    journals,
    mappings,
    pytorch,
    saves,
)
from .targets import TARGETS

__all__ = [
    "TARGETS",
    "arrays",
    "checkpoints",
    "codecs",
    "containers",
    "documents",
    "gguf_files",
    "journals",
    "mappings",
    "pytorch",
    "saves",
]
