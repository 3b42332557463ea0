"""Orbax's `handlers`: what saves and restores items, and their registries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..unmapped import unmapped_attribute

if TYPE_CHECKING:
    from .composite import CompositeCheckpointHandler, CompositeOptions
    from .documents import JsonCheckpointHandler, ProtoCheckpointHandler
    from .protocol import AsyncCheckpointHandler, CheckpointHandler
    from .random_keys import JaxRandomKeyCheckpointHandler, NumpyRandomKeyCheckpointHandler
    from .registration import (
        CheckpointHandlerRegistry,
        DefaultCheckpointHandlerRegistry,
        create_default_handler_registry,
    )
    from .trees import (
        ArrayCheckpointHandler,
        BasePyTreeCheckpointHandler,
        PyTreeCheckpointHandler,
        StandardCheckpointHandler,
    )

__all__ = [
    "ArrayCheckpointHandler",
    "AsyncCheckpointHandler",
    "BasePyTreeCheckpointHandler",
    "CheckpointHandler",
    "CheckpointHandlerRegistry",
    "CompositeCheckpointHandler",
    "CompositeOptions",
    "DefaultCheckpointHandlerRegistry",
    "JaxRandomKeyCheckpointHandler",
    "JsonCheckpointHandler",
    "NumpyRandomKeyCheckpointHandler",
    "ProtoCheckpointHandler",
    "PyTreeCheckpointHandler",
    "StandardCheckpointHandler",
    "create_default_handler_registry",
]

_MODULES = {
    "composite": ("CompositeCheckpointHandler", "CompositeOptions"),
    "documents": ("JsonCheckpointHandler", "ProtoCheckpointHandler"),
    "protocol": ("AsyncCheckpointHandler", "CheckpointHandler"),
    "random_keys": ("JaxRandomKeyCheckpointHandler", "NumpyRandomKeyCheckpointHandler"),
    "registration": (
        "CheckpointHandlerRegistry",
        "DefaultCheckpointHandlerRegistry",
        "create_default_handler_registry",
    ),
    "trees": (
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

__getattr__ = unmapped_attribute(
    "handlers.",
    {name: f"handlers.{module}" for module, names in _MODULES.items() for name in names}
    | _ARGS
    | {"handler_registration": "handlers.registration:"},
)


def __dir__() -> list[str]:
    return sorted(__all__)
