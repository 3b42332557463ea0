"""Orbax over templax: existing code that saves and restores changes one import.

`import templax.compat.orbax as ocp` replaces `import orbax.checkpoint as ocp`, and `from
templax.compat.orbax import v1 as ocp` replaces Orbax's v1 API. Orbax is neither imported nor
needed. Names and arguments are mapped onto `templax.save`, whose checkpoints Orbax restores, and
`templax.restore`, which requires the checkpoint to fit the template. The differences from Orbax are
listed in `docs/reference/orbax-differences.md`. Arguments that are not mapped raise
`NotImplementedError`, which names the native way. Options that only tune performance are accepted
and have no effect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .unmapped import load_lazily

if TYPE_CHECKING:
    from . import abstract_checkpoint_manager as abstract_checkpoint_manager
    from . import args as args
    from . import arrays as arrays
    from . import checkpoint_args as checkpoint_args
    from . import checkpoint_manager as checkpoint_manager
    from . import checkpoint_managers as checkpoint_managers
    from . import checkpoint_utils as checkpoint_utils
    from . import checkpointers as checkpointers
    from . import experimental as experimental
    from . import future as future
    from . import handlers as handlers
    from . import logging as logging
    from . import metadata as metadata
    from . import msgpack_utils as msgpack_utils
    from . import multihost as multihost
    from . import options as options
    from . import path as path
    from . import test_utils as test_utils
    from . import transform_utils as transform_utils
    from . import tree as tree
    from . import type_handlers as type_handlers
    from . import utils as utils
    from .abstract_checkpoint_manager import AbstractCheckpointManager as AbstractCheckpointManager
    from .checkpoint_manager import CheckpointManager as CheckpointManager
    from .checkpointers import AsyncCheckpointer as AsyncCheckpointer
    from .checkpointers import Checkpointer as Checkpointer
    from .checkpointers import PyTreeCheckpointer as PyTreeCheckpointer
    from .checkpointers import StandardCheckpointer as StandardCheckpointer
    from .experimental import v1 as v1
    from .experimental.v1 import load as load
    from .handlers import ArrayCheckpointHandler as ArrayCheckpointHandler
    from .handlers import AsyncCheckpointHandler as AsyncCheckpointHandler
    from .handlers import BasePyTreeCheckpointHandler as BasePyTreeCheckpointHandler
    from .handlers import CheckpointHandler as CheckpointHandler
    from .handlers import CheckpointHandlerRegistry as CheckpointHandlerRegistry
    from .handlers import CompositeCheckpointHandler as CompositeCheckpointHandler
    from .handlers import CompositeOptions as CompositeOptions
    from .handlers import DefaultCheckpointHandlerRegistry as DefaultCheckpointHandlerRegistry
    from .handlers import JaxRandomKeyCheckpointHandler as JaxRandomKeyCheckpointHandler
    from .handlers import JsonCheckpointHandler as JsonCheckpointHandler
    from .handlers import NumpyRandomKeyCheckpointHandler as NumpyRandomKeyCheckpointHandler
    from .handlers import ProtoCheckpointHandler as ProtoCheckpointHandler
    from .handlers import PyTreeCheckpointHandler as PyTreeCheckpointHandler
    from .handlers import StandardCheckpointHandler as StandardCheckpointHandler
    from .leaf_args import PLACEHOLDER as PLACEHOLDER
    from .leaf_args import ArrayRestoreArgs as ArrayRestoreArgs
    from .leaf_args import RestoreArgs as RestoreArgs
    from .leaf_args import SaveArgs as SaveArgs
    from .options import AsyncOptions as AsyncOptions
    from .options import CheckpointManagerOptions as CheckpointManagerOptions
    from .path import step as step
    from .transform_utils import RestoreTransform as RestoreTransform
    from .transform_utils import Transform as Transform
    from .transform_utils import apply_transformations as apply_transformations
    from .transform_utils import merge_trees as merge_trees

_MODULES = {
    "abstract_checkpoint_manager": ("AbstractCheckpointManager", "abstract_checkpoint_manager"),
    "args": ("args",),
    "arrays": ("arrays",),
    "checkpoint_args": ("checkpoint_args",),
    "checkpoint_manager": ("CheckpointManager", "checkpoint_manager"),
    "checkpoint_managers": ("checkpoint_managers",),
    "checkpoint_utils": ("checkpoint_utils",),
    "checkpointers": (
        "AsyncCheckpointer",
        "Checkpointer",
        "PyTreeCheckpointer",
        "StandardCheckpointer",
        "checkpointers",
    ),
    "experimental": ("experimental",),
    "experimental.v1": ("v1", "load"),
    "future": ("future",),
    "handlers": (
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
        "handlers",
    ),
    "leaf_args": ("PLACEHOLDER", "ArrayRestoreArgs", "RestoreArgs", "SaveArgs"),
    "logging": ("logging",),
    "metadata": ("metadata",),
    "msgpack_utils": ("msgpack_utils",),
    "multihost": ("multihost",),
    "options": ("AsyncOptions", "CheckpointManagerOptions", "options"),
    "path": ("path",),
    "path.step": ("step",),
    "test_utils": ("test_utils",),
    "transform_utils": (
        "RestoreTransform",
        "Transform",
        "apply_transformations",
        "merge_trees",
        "transform_utils",
    ),
    "tree": ("tree",),
    "type_handlers": ("type_handlers",),
    "utils": ("utils",),
}
"""Where each name is defined. A module of Orbax is one of the same name here."""

# Nothing is imported before it is used: the import is a program's first line.
__getattr__, __dir__ = load_lazily("", _MODULES)

__version__ = "0.12.8"
"""The version of Orbax whose names and behaviour these modules follow."""
