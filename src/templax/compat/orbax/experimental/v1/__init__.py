"""Orbax's v1 API, `orbax.checkpoint.experimental.v1`. Names are loaded when they are used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...unmapped import unmapped_attribute

if TYPE_CHECKING:
    from . import arrays, errors, handlers, multihost, options, partial, path, training, tree
    from .checkpoint_metadata import (
        CheckpointMetadata,
        PyTreeMetadata,
        checkpointables_metadata,
        metadata,
        pytree_metadata,
    )
    from .checkpointable import (
        AbstractCheckpointable,
        Checkpointable,
        CheckpointableHandler,
        StatefulCheckpointable,
    )
    from .context import Context
    from .deletion import delete, delete_async
    from .layout import is_orbax_checkpoint
    from .loading import (
        load,
        load_async,
        load_checkpointables,
        load_checkpointables_async,
        load_pytree,
        load_pytree_async,
    )
    from .response import AsyncResponse
    from .saving import (
        save,
        save_async,
        save_checkpointables,
        save_checkpointables_async,
        save_pytree,
        save_pytree_async,
    )
    from .tree import PLACEHOLDER

__all__ = [
    "PLACEHOLDER",
    "AbstractCheckpointable",
    "AsyncResponse",
    "CheckpointMetadata",
    "Checkpointable",
    "CheckpointableHandler",
    "Context",
    "PyTreeMetadata",
    "StatefulCheckpointable",
    "arrays",
    "checkpointables_metadata",
    "delete",
    "delete_async",
    "errors",
    "handlers",
    "is_orbax_checkpoint",
    "load",
    "load_async",
    "load_checkpointables",
    "load_checkpointables_async",
    "load_pytree",
    "load_pytree_async",
    "metadata",
    "multihost",
    "options",
    "partial",
    "path",
    "pytree_metadata",
    "save",
    "save_async",
    "save_checkpointables",
    "save_checkpointables_async",
    "save_pytree",
    "save_pytree_async",
    "training",
    "tree",
]

_MODULES = {
    "arrays": ("arrays",),
    "checkpoint_metadata": (
        "CheckpointMetadata",
        "PyTreeMetadata",
        "checkpointables_metadata",
        "metadata",
        "pytree_metadata",
    ),
    "checkpointable": (
        "AbstractCheckpointable",
        "Checkpointable",
        "CheckpointableHandler",
        "StatefulCheckpointable",
    ),
    "context": ("Context",),
    "deletion": ("delete", "delete_async"),
    "errors": ("errors",),
    "handlers": ("handlers",),
    "layout": ("is_orbax_checkpoint",),
    "loading": (
        "load",
        "load_async",
        "load_checkpointables",
        "load_checkpointables_async",
        "load_pytree",
        "load_pytree_async",
    ),
    "multihost": ("multihost",),
    "options": ("options",),
    "partial": ("partial",),
    "path": ("path",),
    "response": ("AsyncResponse",),
    "saving": (
        "save",
        "save_async",
        "save_checkpointables",
        "save_checkpointables_async",
        "save_pytree",
        "save_pytree_async",
    ),
    "training": ("training",),
    "tree": ("PLACEHOLDER", "tree"),
}
"""Where each name is defined. A module of Orbax is one of the same name here."""

__getattr__ = unmapped_attribute(
    "v1.",
    homes={
        name: f"experimental.v1.{module}" for module, names in _MODULES.items() for name in names
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
