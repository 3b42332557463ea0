"""Orbax over templax: existing code that saves and restores changes one import.

`import templax.compat.orbax as ocp` stands for `import orbax.checkpoint as ocp`, and
`from templax.compat.orbax import v1 as ocp` for Orbax's v1 API. Orbax is neither imported nor
needed. Names and arguments are mapped onto `templax.save`, whose checkpoints Orbax restores, and
`templax.restore`, which holds a checkpoint to the template; `docs/reference/orbax-differences.md` lists where
that differs from Orbax. What isn't mapped raises `NotImplementedError` with the native way to say
it. Options that only tune are accepted and have no effect.
"""

from __future__ import annotations

from typing import Any, NoReturn

import jax
import numpy as np

from . import args, options, v1
from .args import PLACEHOLDER, ArrayRestoreArgs, RestoreArgs, SaveArgs, construct_restore_args
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
from .manager import CheckpointManager
from .options import AsyncOptions, CheckpointManagerOptions
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
        >>> empty_array((2, 3), np.float32)
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


def __getattr__(name: str) -> NoReturn:
    raise AttributeError(
        f"templax.compat.orbax has no `{name}`; "
        f"hint: templax.save(path, tree) and templax.restore(path, template)"
    )
