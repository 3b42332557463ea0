"""The handlers that every registry of Orbax's v1 API has from the start."""

from __future__ import annotations

from .checkpointable import STATE
from .json_handler import JsonHandler, MetricsHandler
from .proto_handler import ProtoHandler
from .pytree_handler import PyTreeHandler
from .registration import CheckpointableHandlerRegistry
from .stateful_handler import StatefulCheckpointableHandler

_ORBAX = "orbax.checkpoint._src.handlers."

_PROTO = (f"{_ORBAX}proto_checkpoint_handler.ProtoCheckpointHandler",)

_JSON = (f"{_ORBAX}json_checkpoint_handler.JsonCheckpointHandler",)

_TREES = (
    f"{_ORBAX}pytree_checkpoint_handler.PyTreeCheckpointHandler",
    f"{_ORBAX}standard_checkpoint_handler.StandardCheckpointHandler",
)


def add_built_in_handlers(registry: CheckpointableHandlerRegistry) -> None:
    """Adds Orbax's own handlers, in its order."""
    registry.add(ProtoHandler, secondary_typestrs=_PROTO)
    registry.add(JsonHandler, secondary_typestrs=_JSON)
    registry.add(StatefulCheckpointableHandler)
    registry.add(MetricsHandler, checkpointable_name="metrics")
    registry.add(PyTreeHandler, secondary_typestrs=_TREES)
    registry.add(PyTreeHandler, checkpointable_name=STATE)
