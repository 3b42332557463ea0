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

from .unmapped import unmapped_attribute

if TYPE_CHECKING:
    from . import (
        abstract_checkpoint_manager,
        args,
        arrays,
        checkpoint_args,
        checkpoint_manager,
        checkpoint_managers,
        checkpoint_utils,
        checkpointers,
        experimental,
        future,
        handlers,
        logging,
        metadata,
        msgpack_utils,
        multihost,
        options,
        path,
        test_utils,
        transform_utils,
        tree,
        type_handlers,
        utils,
    )
    from .abstract_checkpoint_manager import AbstractCheckpointManager
    from .checkpoint_manager import CheckpointManager
    from .checkpointers import (
        AsyncCheckpointer,
        Checkpointer,
        PyTreeCheckpointer,
        StandardCheckpointer,
    )
    from .experimental import v1
    from .experimental.v1 import load
    from .handlers import (
        ArrayCheckpointHandler,
        AsyncCheckpointHandler,
        BasePyTreeCheckpointHandler,
        CheckpointHandler,
        CheckpointHandlerRegistry,
        CompositeCheckpointHandler,
        CompositeOptions,
        DefaultCheckpointHandlerRegistry,
        JaxRandomKeyCheckpointHandler,
        JsonCheckpointHandler,
        NumpyRandomKeyCheckpointHandler,
        ProtoCheckpointHandler,
        PyTreeCheckpointHandler,
        StandardCheckpointHandler,
    )
    from .leaf_args import PLACEHOLDER, ArrayRestoreArgs, RestoreArgs, SaveArgs
    from .options import AsyncOptions, CheckpointManagerOptions
    from .path import step
    from .transform_utils import (
        RestoreTransform,
        Transform,
        apply_transformations,
        merge_trees,
    )

__all__ = [
    "PLACEHOLDER",
    "AbstractCheckpointManager",
    "ArrayCheckpointHandler",
    "ArrayRestoreArgs",
    "AsyncCheckpointHandler",
    "AsyncCheckpointer",
    "AsyncOptions",
    "BasePyTreeCheckpointHandler",
    "CheckpointHandler",
    "CheckpointHandlerRegistry",
    "CheckpointManager",
    "CheckpointManagerOptions",
    "Checkpointer",
    "CompositeCheckpointHandler",
    "CompositeOptions",
    "DefaultCheckpointHandlerRegistry",
    "JaxRandomKeyCheckpointHandler",
    "JsonCheckpointHandler",
    "NumpyRandomKeyCheckpointHandler",
    "ProtoCheckpointHandler",
    "PyTreeCheckpointHandler",
    "PyTreeCheckpointer",
    "RestoreArgs",
    "RestoreTransform",
    "SaveArgs",
    "StandardCheckpointHandler",
    "StandardCheckpointer",
    "Transform",
    "abstract_checkpoint_manager",
    "apply_transformations",
    "args",
    "arrays",
    "checkpoint_args",
    "checkpoint_manager",
    "checkpoint_managers",
    "checkpoint_utils",
    "checkpointers",
    "experimental",
    "future",
    "handlers",
    "load",
    "logging",
    "merge_trees",
    "metadata",
    "msgpack_utils",
    "multihost",
    "options",
    "path",
    "step",
    "test_utils",
    "transform_utils",
    "tree",
    "type_handlers",
    "utils",
    "v1",
]

_MODULES = {
    "abstract_checkpoint_manager": ("AbstractCheckpointManager",),
    "checkpoint_manager": ("CheckpointManager",),
    "checkpointers": (
        "AsyncCheckpointer",
        "Checkpointer",
        "PyTreeCheckpointer",
        "StandardCheckpointer",
    ),
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
    ),
    "experimental.v1": ("v1", "load"),
    "leaf_args": ("PLACEHOLDER", "ArrayRestoreArgs", "RestoreArgs", "SaveArgs"),
    "options": ("AsyncOptions", "CheckpointManagerOptions"),
    "transform_utils": ("RestoreTransform", "Transform", "apply_transformations", "merge_trees"),
    "path.step": ("step",),
}
"""Where each name is defined. A module of Orbax is one of the same name here."""

_HOMES = {name: module for module, names in _MODULES.items() for name in names}

# Nothing is imported before it is used: the import is a program's first line.
__getattr__ = unmapped_attribute(
    homes={name: name for name in __all__ if name[0].islower()} | _HOMES
)

__version__ = "0.12.8"
"""The version of Orbax whose names and behaviour these modules follow."""


def __dir__() -> list[str]:
    return sorted(__all__)
