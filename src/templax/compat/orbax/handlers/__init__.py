"""Orbax's `handlers`: what saves and restores items, and their registries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..unmapped import load_lazily

if TYPE_CHECKING:
    from .composite import CompositeCheckpointHandler as CompositeCheckpointHandler
    from .composite import CompositeOptions as CompositeOptions
    from .documents import JsonCheckpointHandler as JsonCheckpointHandler
    from .documents import ProtoCheckpointHandler as ProtoCheckpointHandler
    from .protocol import AsyncCheckpointHandler as AsyncCheckpointHandler
    from .protocol import CheckpointHandler as CheckpointHandler
    from .random_keys import JaxRandomKeyCheckpointHandler as JaxRandomKeyCheckpointHandler
    from .random_keys import NumpyRandomKeyCheckpointHandler as NumpyRandomKeyCheckpointHandler
    from .registration import CheckpointHandlerRegistry as CheckpointHandlerRegistry
    from .registration import DefaultCheckpointHandlerRegistry as DefaultCheckpointHandlerRegistry
    from .registration import create_default_handler_registry as create_default_handler_registry
    from .trees import ArrayCheckpointHandler as ArrayCheckpointHandler
    from .trees import BasePyTreeCheckpointHandler as BasePyTreeCheckpointHandler
    from .trees import PyTreeCheckpointHandler as PyTreeCheckpointHandler
    from .trees import StandardCheckpointHandler as StandardCheckpointHandler

_MODULES = {
    "handlers.composite": ("CompositeCheckpointHandler", "CompositeOptions"),
    "handlers.documents": ("JsonCheckpointHandler", "ProtoCheckpointHandler"),
    "handlers.protocol": ("AsyncCheckpointHandler", "CheckpointHandler"),
    "handlers.random_keys": ("JaxRandomKeyCheckpointHandler", "NumpyRandomKeyCheckpointHandler"),
    "handlers.registration": (
        "CheckpointHandlerRegistry",
        "DefaultCheckpointHandlerRegistry",
        "create_default_handler_registry",
    ),
    "handlers.trees": (
        "ArrayCheckpointHandler",
        "BasePyTreeCheckpointHandler",
        "PyTreeCheckpointHandler",
        "StandardCheckpointHandler",
    ),
}
"""Where each name is defined."""

_ARGS = {
    f"{kind}{way}Args": f"args:{kind}{way}"
    for kind in ("Array", "JaxRandomKey", "Json", "NumpyRandomKey", "Proto", "PyTree", "Standard")
    for way in ("Save", "Restore")
} | {"CompositeArgs": "args:Composite", "CompositeResults": "args:Composite"}
"""Orbax's other names of args."""

__getattr__, __dir__ = load_lazily(
    "handlers.", _MODULES, _ARGS | {"handler_registration": "handlers.registration:"}
)
