"""Orbax's v1 `Context`: the options of all calls inside its `with` block."""

from __future__ import annotations

import copy
from typing import Any

from . import options as groups
from .options import active_contexts, check_not_frozen

_GROUPS: dict[str, type[Any]] = {
    "pytree": groups.PyTreeOptions,
    "array": groups.ArrayOptions,
    "asynchronous": groups.AsyncOptions,
    "multiprocessing": groups.MultiprocessingOptions,
    "file": groups.FileOptions,
    "checkpointables": groups.CheckpointablesOptions,
    "pathways": groups.PathwaysOptions,
    "deletion": groups.DeletionOptions,
    "memory": groups.MemoryOptions,
    "safetensors": groups.SafetensorsOptions,
    "atomicity": groups.AtomicityOptions,
}

_ALIASES = {
    "async_options" if name == "asynchronous" else f"{name}_options": name for name in _GROUPS
}
"""The older name of each group, which is also that of the argument of `Context`."""


class Context:
    """The options of all calls inside its `with` block, in this thread or task.

    Set them before the block: inside it, they can't be changed.

    Args:
        context: Another context, whose options are copied; otherwise they are Orbax's own.
        checkpoint_layout: A `CheckpointLayout`, or its value such as "safetensors".
        **options: Option groups under Orbax's older names, such as `pytree_options`.

    Attributes:
        pytree, array, asynchronous, multiprocessing, file, checkpointables, pathways, deletion,
        memory, safetensors, atomicity: The groups; see `templax.compat.orbax.v1.options`.

    Example:
        >>> import os, tempfile, numpy as np
        >>> from templax.compat.orbax import v1 as ocp
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> ocp.save(path, {"w": np.ones(3), "step": 7})
        >>> context = ocp.Context()
        >>> context.pytree.loading.partial_load = True
        >>> with context:
        ...     ocp.load(path, {"step": 0})
        {'step': 7}
    """

    pytree: groups.PyTreeOptions
    array: groups.ArrayOptions
    asynchronous: groups.AsyncOptions
    multiprocessing: groups.MultiprocessingOptions
    file: groups.FileOptions
    checkpointables: groups.CheckpointablesOptions
    pathways: groups.PathwaysOptions
    deletion: groups.DeletionOptions
    memory: groups.MemoryOptions
    safetensors: groups.SafetensorsOptions
    atomicity: groups.AtomicityOptions

    def __init__(
        self,
        context: Context | None = None,
        *,
        checkpoint_layout: groups.CheckpointLayout | str | None = None,
        **options: Any,
    ) -> None:
        unknown = sorted(set(options) - set(_ALIASES))
        if unknown:
            raise TypeError(f"Context() has no argument {unknown[0]!r}")
        values = vars(self)
        for alias, name in _ALIASES.items():
            given = options.get(alias)
            if given is None and context is not None:
                given = getattr(context, name)
            values[name] = _GROUPS[name]() if given is None else copy.deepcopy(given)
        if checkpoint_layout is None:
            checkpoint_layout = getattr(context, "checkpoint_layout", "orbax")
        values["checkpoint_layout"] = groups.CheckpointLayout(checkpoint_layout)

    def __setattr__(self, name: str, value: Any) -> None:
        check_not_frozen(self)
        if name != "checkpoint_layout":
            raise AttributeError(f"Expected an option of a group to be set, got {name!r} itself")
        vars(self)[name] = groups.CheckpointLayout(value)

    def __getattr__(self, name: str) -> Any:
        if name in _ALIASES:
            return getattr(self, _ALIASES[name])
        raise AttributeError(f"Context has no options {name!r}")

    def __enter__(self) -> Context:
        active_contexts.set((*active_contexts.get(), self))
        return self

    def __exit__(self, *exc: object) -> None:
        active_contexts.set(active_contexts.get()[:-1])


def get_context(default: Context | None = None) -> Context:
    """The active context; outside of one, `default`, or a new one."""
    active = active_contexts.get()
    if active:
        return active[-1]
    return Context() if default is None else default
