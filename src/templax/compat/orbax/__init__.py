"""Orbax over templax: existing code that saves and restores changes one import.

`import templax.compat.orbax as ocp` replaces `import orbax.checkpoint as ocp`, and
`from templax.compat.orbax import v1 as ocp` replaces Orbax's v1 API. Orbax is neither imported nor
needed. Names and arguments are mapped onto `templax.save`, whose checkpoints Orbax restores, and
`templax.restore`, which requires the checkpoint to fit the template. The differences from Orbax are
listed in `docs/reference/orbax-differences.md`. Arguments that are not mapped raise
`NotImplementedError`, which names the native way. Options that only tune are accepted and have no
effect.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from . import args, options, v1
from .checkpointers import (
    AsyncCheckpointer,
    Checkpointer,
    CompositeCheckpointHandler,
    JsonCheckpointHandler,
    PyTreeCheckpointer,
    PyTreeCheckpointHandler,
    StandardCheckpointer,
    StandardCheckpointHandler,
)
from .leaf_args import (
    PLACEHOLDER,
    ArrayRestoreArgs,
    RestoreArgs,
    SaveArgs,
    construct_restore_args,
)
from .manager import CheckpointManager
from .options import AsyncOptions, CheckpointManagerOptions
from .unmapped import unmapped_attribute
from .v1 import load

__all__ = [
    "PLACEHOLDER",
    "ArrayRestoreArgs",
    "AsyncCheckpointer",
    "AsyncOptions",
    "CheckpointManager",
    "CheckpointManagerOptions",
    "Checkpointer",
    "CompositeCheckpointHandler",
    "JsonCheckpointHandler",
    "PyTreeCheckpointHandler",
    "PyTreeCheckpointer",
    "RestoreArgs",
    "SaveArgs",
    "StandardCheckpointHandler",
    "StandardCheckpointer",
    "args",
    "checkpoint_utils",
    "load",
    "options",
    "type_handlers",
    "utils",
    "v1",
]


def empty_array(shape: tuple[int, ...], dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
    """An abstract leaf of a template; it takes no memory.

    Example:
        >>> import numpy as np
        >>> from templax.compat import orbax as ocp
        >>> ocp.utils.empty_array((2, 3), np.float32)
        ShapeDtypeStruct(shape=(2, 3), dtype=float32)
    """
    return jax.ShapeDtypeStruct(shape, dtype)


class utils:
    """`ocp.utils`."""

    empty_array = staticmethod(empty_array)


class checkpoint_utils:
    """`ocp.checkpoint_utils`."""

    construct_restore_args = staticmethod(construct_restore_args)


class type_handlers:
    """`ocp.type_handlers`."""

    SaveArgs = SaveArgs
    RestoreArgs = RestoreArgs
    ArrayRestoreArgs = ArrayRestoreArgs


__getattr__ = unmapped_attribute()
