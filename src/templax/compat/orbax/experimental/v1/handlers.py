"""Orbax's v1 `handlers`: who saves and loads which checkpointable."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...unmapped import load_lazily

if TYPE_CHECKING:
    from .checkpointable import AbstractCheckpointable as AbstractCheckpointable
    from .checkpointable import Checkpointable as Checkpointable
    from .checkpointable import CheckpointableHandler as CheckpointableHandler
    from .checkpointable import StatefulCheckpointable as StatefulCheckpointable
    from .json_handler import JsonHandler as JsonHandler
    from .proto_handler import ProtoHandler as ProtoHandler
    from .pytree_handler import PyTreeHandler as PyTreeHandler
    from .registration import CheckpointableHandlerRegistry as CheckpointableHandlerRegistry
    from .registration import global_registry as global_registry
    from .registration import local_registry as local_registry
    from .registration import register_handler as register_handler

_MODULES = {
    "experimental.v1.checkpointable": (
        "AbstractCheckpointable",
        "Checkpointable",
        "CheckpointableHandler",
        "StatefulCheckpointable",
    ),
    "experimental.v1.json_handler": ("JsonHandler",),
    "experimental.v1.proto_handler": ("ProtoHandler",),
    "experimental.v1.pytree_handler": ("PyTreeHandler",),
    "experimental.v1.registration": (
        "CheckpointableHandlerRegistry",
        "global_registry",
        "local_registry",
        "register_handler",
    ),
}
"""Where each name is defined."""

__getattr__, __dir__ = load_lazily("experimental.v1.handlers.", _MODULES)
