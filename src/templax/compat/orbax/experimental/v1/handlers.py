"""Orbax's v1 `handlers`: who saves and loads which checkpointable."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...unmapped import unmapped_attribute

if TYPE_CHECKING:
    from .checkpointable import (
        AbstractCheckpointable,
        Checkpointable,
        CheckpointableHandler,
        StatefulCheckpointable,
    )
    from .json_handler import JsonHandler
    from .proto_handler import ProtoHandler
    from .pytree_handler import PyTreeHandler
    from .registration import (
        CheckpointableHandlerRegistry,
        global_registry,
        local_registry,
        register_handler,
    )

__all__ = [
    "AbstractCheckpointable",
    "Checkpointable",
    "CheckpointableHandler",
    "CheckpointableHandlerRegistry",
    "JsonHandler",
    "ProtoHandler",
    "PyTreeHandler",
    "StatefulCheckpointable",
    "global_registry",
    "local_registry",
    "register_handler",
]

_MODULES = {
    "checkpointable": (
        "AbstractCheckpointable",
        "Checkpointable",
        "CheckpointableHandler",
        "StatefulCheckpointable",
    ),
    "json_handler": ("JsonHandler",),
    "proto_handler": ("ProtoHandler",),
    "pytree_handler": ("PyTreeHandler",),
    "registration": (
        "CheckpointableHandlerRegistry",
        "global_registry",
        "local_registry",
        "register_handler",
    ),
}

__getattr__ = unmapped_attribute(
    "experimental.v1.handlers.",
    homes={
        name: f"experimental.v1.{module}" for module, names in _MODULES.items() for name in names
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
