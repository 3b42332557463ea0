"""Loads names on first use, and makes the errors about names that are not mapped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

_ROOT = "templax.compat.orbax"

_SAME = {
    "": {"future": "Future"},
    "checkpoint_args.": {"handlers.protocol": "CheckpointHandler"},
    "checkpoint_manager.": {
        "checkpoint_args": "CheckpointArgs",
        "handlers": "CheckpointHandler CheckpointHandlerRegistry CompositeCheckpointHandler"
        " JsonCheckpointHandler ProtoCheckpointHandler",
    },
    "handlers.registration.": {
        "checkpoint_args": "CheckpointArgs",
        "handlers.protocol": "CheckpointHandler",
    },
    "transform_utils.": {"leaf_args": "RestoreArgs"},
    "utils.": {
        "multihost": "broadcast_one_to_all is_primary_host reached_preemption"
        " sync_global_processes",
        "path.step": "any_checkpoint_step checkpoint_steps checkpoint_steps_paths"
        " get_save_directory is_checkpoint_finalized is_tmp_checkpoint step_from_checkpoint_name"
        " tmp_checkpoints",
    },
}
"""Module → names that Orbax has there as well: the module that defines them here → the names."""

_NATIVE = "templax.save(path, tree) and templax.restore(path, template)"

_HANDLER = (
    "leave it out: templax reads and writes arrays, numbers and strings itself; for other values,"
    " args.register_with_handler and a CheckpointHandler of your own"
)

_COMMIT = "leave it out: a checkpoint of templax is whole or absent, and appears by one rename"

_HINTS = {
    "aggregate_handlers": _HANDLER,
    "type_handlers.": _HANDLER,
    "serialization": f"{_NATIVE}, which need no TensorStore",
    "path.atomicity": _COMMIT,
    "path.deleter": "CheckpointManager.delete(step), or `templax prune`",
    "path.format_utils": "templax.open(path).format says what a directory holds",
    "pathways": "templax does not run on Pathways",
    "multihost.": "jax.process_index(), jax.process_count() and jax.experimental.multihost_utils",
    "test_utils.": "pytest, numpy.testing and jax.tree.map",
    "utils.": "jax.tree_util, and the modules `tree`, `path.step` and `multihost` beside this one",
    "tree.": "jax.tree_util",
    "logging.": "leave it out: templax.last_restore() says what a restore took",
    "metadata.": "metadata.value and metadata.sharding have the classes of leaves",
    "handlers.registration.": "ValueError, which CheckpointHandlerRegistry raises",
    "checkpoint_manager.": "CheckpointManager and CheckpointManagerOptions, and metadata()",
    "checkpoint_utils.": "isinstance(leaf, (jax.Array, numpy.ndarray))",
    "v1.training.pathways": "templax does not run on Pathways",
    "v1.errors.": "OSError: what a deletion could not remove is named by templax.SaveError",
    "v1.": "save(path, tree) and load(path, abstract_tree) of templax.compat.orbax.v1",
    "": "Checkpointer, CheckpointManager and args.StandardSave, args.StandardRestore of"
    f" {_ROOT}; or {_NATIVE}",
}
"""Start of a name below `templax.compat.orbax` → what can be used instead; the first counts."""


def make_unmapped_error(argument: str, instead: str) -> NotImplementedError:
    """The error about an argument that is not mapped.

    Args:
        argument: The argument as the caller wrote it.
        instead: What to write instead: an argument of the same call, or a whole native call.
    """
    return NotImplementedError(f"{_ROOT} does not map `{argument}`; hint: {instead}")


def make_getattr(
    prefix: str = "", homes: Mapping[str, str] | None = None
) -> Callable[[str], object]:
    """A module's `__getattr__`, which loads names when they are used and refuses all others.

    Args:
        prefix: The module below `templax.compat.orbax`, with a dot at the end.
        homes: Name → the module below `templax.compat.orbax` that defines it, which is a dotted
            path; a module stands for itself: `{"args": "args", "Checkpointer": "checkpointers"}`.
            After a colon, the name that it has there; nothing, for the module itself.
    """

    def __getattr__(name: str) -> object:
        home = (homes or {}).get(name) or _find_same(prefix, name)
        if home is not None:
            path, is_renamed, there = home.partition(":")
            module = import_module(f"{_ROOT}.{path}")
            is_module = not there if is_renamed else path.rpartition(".")[2] == name
            return module if is_module else getattr(module, there or name)
        full = f"{prefix.removeprefix('experimental.')}{name}"
        hint = next(_HINTS[start] for start in _HINTS if full.startswith(start))
        # Python itself looks for such names: no hint about them.
        more = "" if name.startswith("__") else f"; hint: {hint}"
        raise AttributeError(f"{_ROOT} has no `{prefix}{name}`{more}")

    return __getattr__


def load_lazily(
    prefix: str, modules: Mapping[str, tuple[str, ...]], others: Mapping[str, str] | None = None
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """The `__getattr__` and the `__dir__` of a package whose names are loaded when they are used.

    The package has an `__all__` of them. To type checkers, imports under `TYPE_CHECKING` say the
    same; a test compares the two.

    Args:
        prefix: The package below `templax.compat.orbax`, with a dot at the end.
        modules: Module below `templax.compat.orbax` → the names that it defines, its own included.
        others: Further names, which are not listed, as `homes` of `make_getattr`.
    """
    homes = {name: module for module, names in modules.items() for name in names}
    load = make_getattr(prefix, {**homes, **(others or {})})

    def __getattr__(name: str) -> object:
        return sorted(homes) if name == "__all__" else load(name)

    return __getattr__, lambda: sorted(homes)


def _find_same(prefix: str, name: str) -> str | None:
    """The module below `templax.compat.orbax` that defines a name which Orbax has in several."""
    same = _SAME.get(prefix, {})
    return next((home for home, names in same.items() if name in names.split()), None)
