"""Orbax's v1 API, `orbax.checkpoint.experimental.v1`. Names are loaded when they are used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...unmapped import load_lazily

if TYPE_CHECKING:
    from . import arrays as arrays
    from . import errors as errors
    from . import handlers as handlers
    from . import multihost as multihost
    from . import options as options
    from . import partial as partial
    from . import path as path
    from . import training as training
    from . import tree as tree
    from .checkpoint_metadata import CheckpointMetadata as CheckpointMetadata
    from .checkpoint_metadata import PyTreeMetadata as PyTreeMetadata
    from .checkpoint_metadata import checkpointables_metadata as checkpointables_metadata
    from .checkpoint_metadata import metadata as metadata
    from .checkpoint_metadata import pytree_metadata as pytree_metadata
    from .checkpointable import AbstractCheckpointable as AbstractCheckpointable
    from .checkpointable import Checkpointable as Checkpointable
    from .checkpointable import CheckpointableHandler as CheckpointableHandler
    from .checkpointable import StatefulCheckpointable as StatefulCheckpointable
    from .context import Context as Context
    from .deletion import delete as delete
    from .deletion import delete_async as delete_async
    from .layout import is_orbax_checkpoint as is_orbax_checkpoint
    from .loading import load as load
    from .loading import load_async as load_async
    from .loading import load_checkpointables as load_checkpointables
    from .loading import load_checkpointables_async as load_checkpointables_async
    from .loading import load_pytree as load_pytree
    from .loading import load_pytree_async as load_pytree_async
    from .response import AsyncResponse as AsyncResponse
    from .saving import save as save
    from .saving import save_async as save_async
    from .saving import save_checkpointables as save_checkpointables
    from .saving import save_checkpointables_async as save_checkpointables_async
    from .saving import save_pytree as save_pytree
    from .saving import save_pytree_async as save_pytree_async
    from .tree import PLACEHOLDER as PLACEHOLDER

_MODULES = {
    "experimental.v1.arrays": ("arrays",),
    "experimental.v1.checkpoint_metadata": (
        "CheckpointMetadata",
        "PyTreeMetadata",
        "checkpointables_metadata",
        "metadata",
        "pytree_metadata",
    ),
    "experimental.v1.checkpointable": (
        "AbstractCheckpointable",
        "Checkpointable",
        "CheckpointableHandler",
        "StatefulCheckpointable",
    ),
    "experimental.v1.context": ("Context",),
    "experimental.v1.deletion": ("delete", "delete_async"),
    "experimental.v1.errors": ("errors",),
    "experimental.v1.handlers": ("handlers",),
    "experimental.v1.layout": ("is_orbax_checkpoint",),
    "experimental.v1.loading": (
        "load",
        "load_async",
        "load_checkpointables",
        "load_checkpointables_async",
        "load_pytree",
        "load_pytree_async",
    ),
    "experimental.v1.multihost": ("multihost",),
    "experimental.v1.options": ("options",),
    "experimental.v1.partial": ("partial",),
    "experimental.v1.path": ("path",),
    "experimental.v1.response": ("AsyncResponse",),
    "experimental.v1.saving": (
        "save",
        "save_async",
        "save_checkpointables",
        "save_checkpointables_async",
        "save_pytree",
        "save_pytree_async",
    ),
    "experimental.v1.training": ("training",),
    "experimental.v1.tree": ("PLACEHOLDER", "tree"),
}
"""Where each name is defined. A module of Orbax is one of the same name here."""

__getattr__, __dir__ = load_lazily("v1.", _MODULES)
