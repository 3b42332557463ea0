"""Loads names when they are used, and makes the errors about those that are not mapped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

_ROOT = "templax.compat.orbax"

_HINTS = {
    "v1.": "save(path, tree) and load(path, abstract_tree) of templax.compat.orbax.v1",
    "": "Checkpointer, CheckpointManager and args.StandardSave, args.StandardRestore of"
    " templax.compat.orbax; or templax.save(path, tree) and templax.restore(path, template)",
}
"""Start of a name below `templax.compat.orbax` → what can be used instead; the longest counts."""


def unmapped_argument(argument: str, instead: str) -> NotImplementedError:
    """The error about an argument that is not mapped.

    Args:
        argument: The argument as the caller wrote it.
        instead: What to write instead: an argument of the same call, or a whole native call.
    """
    return NotImplementedError(f"{_ROOT} does not map `{argument}`; hint: {instead}")


def unmapped_attribute(
    prefix: str = "", homes: Mapping[str, str] | None = None
) -> Callable[[str], object]:
    """A module's `__getattr__`, which loads names when they are used and refuses all others.

    Args:
        prefix: The module below `templax.compat.orbax`, with a dot at the end.
        homes: Name → the module below `templax.compat.orbax` that defines it, which is a dotted
            path; a module stands for itself: `{"args": "args", "Checkpointer": "checkpointers"}`.
    """

    def __getattr__(name: str) -> object:
        home = (homes or {}).get(name)
        if home is not None:
            module = import_module(f"{_ROOT}.{home}")
            return module if home.rpartition(".")[2] == name else getattr(module, name)
        full = f"{prefix.removeprefix('experimental.')}{name}"
        hint = next(_HINTS[start] for start in _HINTS if full.startswith(start))
        # No AttributeError with a hint about what Python itself looks for.
        more = "" if name.startswith("__") else f"; hint: {hint}"
        raise AttributeError(f"{_ROOT} has no `{prefix}{name}`{more}")

    return __getattr__
