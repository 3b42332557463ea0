"""Orbax's reading half over templax: existing code changes one import.

`import templax.compat.orbax as ocp` stands for `import orbax.checkpoint as ocp` in code that
restores, and `from templax.compat.orbax import v1 as ocp` for Orbax's v1 API. Orbax is neither
imported nor needed. Names and arguments are mapped onto `templax.restore`, which holds the
checkpoint to the template; `docs/orbax_differences.md` lists where that differs from Orbax. What
isn't mapped raises `NotImplementedError` with the native way to say it. Options that concern saving
are accepted and have no effect. Nothing is saved here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import jax
import numpy as np

import templax as tx

from ..formats import _orbax_root
from ..sources import open_source
from . import _orbax_args as args
from ._orbax_args import (
    ArrayRestoreArgs,
    Composite,
    JsonRestore,
    PyTree,
    PyTreeRestore,
    RestoreArgs,
    StandardRestore,
    TreeMetadata,
    construct_restore_args,
    items_in,
)

__all__ = [
    "PLACEHOLDER",
    "ArrayRestoreArgs",
    "AsyncCheckpointer",
    "CheckpointManager",
    "CheckpointManagerOptions",
    "Checkpointer",
    "CompositeCheckpointHandler",
    "JsonCheckpointHandler",
    "PyTreeCheckpointHandler",
    "PyTreeCheckpointer",
    "RestoreArgs",
    "StandardCheckpointHandler",
    "StandardCheckpointer",
    "args",
    "checkpoint_utils",
    "load",
    "type_handlers",
    "utils",
    "v1",
]

PathLike = str | os.PathLike[str]

PLACEHOLDER = ...
"""A template leaf or subtree that is not restored."""


@dataclass(frozen=True)
class StepMetadata:
    """What `metadata` returns; `item_metadata.tree` has the shapes and dtypes."""

    item_metadata: Any
    custom_metadata: Any


def _metadata(directory: str) -> StepMetadata:
    catalog = tx.open(directory)
    return StepMetadata(TreeMetadata(catalog.template()), catalog.metadata.get("custom_metadata"))


class _Reader:
    """What checkpointers and managers share: nothing to close, nothing to wait for, no saving."""

    def save(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not there yet."""
        raise NotImplementedError(
            "templax.compat.orbax restores only; hint: save with orbax.checkpoint, templax reads it"
        )

    def wait_until_finished(self) -> None:
        """Nothing runs in the background."""

    def check_for_errors(self) -> None:
        """Nothing runs in the background."""

    def close(self) -> None:
        """Holds nothing."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class PyTreeCheckpointHandler:
    """Names what a `Checkpointer` restores; options concern saving and have no effect."""

    restore_args: type[Any] = PyTreeRestore

    def __init__(self, **options: Any) -> None:
        del options


class StandardCheckpointHandler(PyTreeCheckpointHandler):
    """Names what a `Checkpointer` restores."""

    restore_args = StandardRestore


class JsonCheckpointHandler(PyTreeCheckpointHandler):
    """Names what a `Checkpointer` restores."""

    restore_args = JsonRestore


class CompositeCheckpointHandler(PyTreeCheckpointHandler):
    """Names what a `Checkpointer` restores."""

    restore_args = Composite


class Checkpointer(_Reader):
    """Restores what its handler names.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> ckptr = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        >>> tree = ckptr.restore("tests/corpus/orbax-0.12.8-default/ckpt")
        >>> tree["state"]["params"]["layers"][0]["w"].shape
        (8, 6)
    """

    def __init__(self, handler: PyTreeCheckpointHandler, **options: Any) -> None:
        self.handler = handler

    def restore(self, directory: PathLike, *positional: Any, args: Any = None, **named: Any) -> Any:
        """Restores a checkpoint.

        Args:
            directory: Any path, relative ones too.
            *positional, **named: As of `PyTreeRestore` or `StandardRestore`, by the handler.
            args: One of `ocp.args`, instead of them.

        Raises:
            TemplateError: The checkpoint does not fit the template; lists every leaf.
            CheckpointError: There is no readable checkpoint.
            NotImplementedError: An argument that isn't mapped; the text says what to use.
        """
        if args is None:
            args = self.handler.restore_args(*positional, **named)
        return args.restore(os.fspath(directory))

    def metadata(self, directory: PathLike) -> StepMetadata:
        """Shapes and dtypes of a checkpoint; no array is read."""
        return _metadata(os.fspath(directory))


class AsyncCheckpointer(Checkpointer):
    """A `Checkpointer`: restoring is synchronous in Orbax too."""


class PyTreeCheckpointer(Checkpointer):
    """Restores a tree: `restore(directory, item=template, restore_args=..., transforms={})`.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> ckptr = ocp.PyTreeCheckpointer()
        >>> path = "tests/corpus/orbax-0.12.8-default/ckpt"
        >>> template = jax.tree.map(lambda _: ..., ckptr.metadata(path).item_metadata.tree)
        >>> template["state"]["step"] = ocp.utils.empty_array((), np.int32)
        >>> ckptr.restore(path, item=template)["state"]["step"].dtype
        dtype('int32')
    """

    def __init__(
        self,
        primary_host: int | None = 0,
        use_ocdbt: bool = True,
        use_zarr3: bool = False,
        use_compression: bool = True,
    ) -> None:
        super().__init__(PyTreeCheckpointHandler())


class StandardCheckpointer(Checkpointer):
    """Restores a tree: `restore(directory, target)`.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> with ocp.StandardCheckpointer() as ckptr:
        ...     tree = ckptr.restore("tests/corpus/orbax-0.12.8-default/ckpt")
        >>> sorted(tree)
        ['extra', 'state']
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(StandardCheckpointHandler())


class CheckpointManagerOptions:
    """Options of saving; accepted, without effect. No directory is made or cleaned."""

    def __init__(self, **options: Any) -> None:
        del options


class CheckpointManager(_Reader):
    """Reads a directory of steps, whatever their prefix and padding.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> manager = ocp.CheckpointManager("tests/corpus/orbax-0.12.8-manager/ckpt")
        >>> manager.all_steps(), manager.latest_step()
        ([10, 20], 20)
        >>> step = manager.restore(10, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        >>> step.meta["step"]
        10
    """

    def __init__(
        self,
        directory: PathLike,
        checkpointers: Any = None,
        options: CheckpointManagerOptions | None = None,
        metadata: Mapping[str, Any] | None = None,
        item_names: Any = None,
        item_handlers: Any = None,
        **others: Any,
    ) -> None:
        self.directory = directory
        # Old code names its items by a dict of checkpointers; `items` and `restore_kwargs` follow.
        self._by_name = isinstance(checkpointers, Mapping)

    def all_steps(self, read: bool = False) -> list[int]:
        """Committed steps, ascending; listed anew by each call."""
        return sorted(self._steps(os.fspath(self.directory)))

    def latest_step(self) -> int | None:
        """The highest committed step, or None."""
        return max(self.all_steps(), default=None)

    def reload(self) -> None:
        """Nothing is cached."""

    def restore(
        self,
        step: int | None = None,
        items: Any = None,
        restore_kwargs: Any = None,
        directory: PathLike | None = None,
        args: Any = None,
    ) -> Any:
        """Restores one step.

        Args:
            step: None is the latest.
            items, restore_kwargs: Older spelling of `args=PyTreeRestore(items, **restore_kwargs)`;
                by item name where the manager was given a dict of checkpointers.
            directory: Read instead of the manager's own.
            args: `StandardRestore` or `PyTreeRestore` of the only tree, or a `Composite`. None
                restores every item as it was saved.

        Returns:
            The tree, or a `Composite` where several items were asked for.
        """
        path = self._step_directory(step, directory)
        if args is None and self._by_name and items is not None:
            more = restore_kwargs or {}
            args = Composite(**{n: PyTreeRestore(i, **more.get(n, {})) for n, i in items.items()})
        elif args is None and (items is not None or restore_kwargs):
            args = PyTreeRestore(items, **(restore_kwargs or {}))
        elif args is None:
            there = items_in(path)
            several = set(there) - {"default", "metrics"}
            args = Composite(**dict.fromkeys(there)) if several else StandardRestore()
        return args.restore(path)

    def item_metadata(self, step: int) -> Any:
        """Shapes and dtypes of a step; of several items a `Composite`, None for a JSON item."""
        path = self._step_directory(step, None)
        there = items_in(path)
        if not set(there) - {"default", "metrics"}:
            return _metadata(path).item_metadata
        return Composite(
            **{
                name: _metadata(f"{path}/{name}").item_metadata if kind == "pytree" else None
                for name, kind in there.items()
            }
        )

    def _step_directory(self, step: int | None, directory: PathLike | None) -> str:
        root = os.fspath(self.directory if directory is None else directory)
        steps = self._steps(root)
        if step is None and not steps:
            raise tx.NotFound("Expected a committed step, found none", file=root)
        step = max(steps) if step is None else step
        return f"{root}/{steps.get(step, step)}"

    @staticmethod
    def _steps(root: str) -> dict[int, str]:
        return {s.step: s.key for s in _orbax_root.steps(open_source(root)) if s.committed}


def empty_array(shape: tuple[int, ...], dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
    """An abstract leaf of a template; it takes no memory.

    Example:
        >>> empty_array((2, 3), np.float32)
        ShapeDtypeStruct(shape=(2, 3), dtype=float32)
    """
    return jax.ShapeDtypeStruct(shape, dtype)


def load(
    path: PathLike, abstract_state: PyTree = None, *, checkpointable_name: str | None = "AUTO"
) -> Any:
    """Orbax's v1 `load`.

    Args:
        path: The checkpoint, or the item itself.
        abstract_state: The template; None is the checkpoint's own tree.
        checkpointable_name: An item. "AUTO" (the only tree) and None (`path` is the item) are one.

    Example:
        >>> tree = load("tests/corpus/orbax-0.12.8-v1/ckpt")
        >>> tree["state"]["params"]["layers"][0]["w"].shape
        (8, 6)
    """
    directory = os.fspath(path)
    if checkpointable_name not in ("AUTO", None):
        directory = f"{directory}/{checkpointable_name}"
    return StandardRestore(abstract_state).restore(directory)


class utils:
    """`ocp.utils`."""

    empty_array = staticmethod(empty_array)


class checkpoint_utils:
    """`ocp.checkpoint_utils`."""

    construct_restore_args = staticmethod(construct_restore_args)


class type_handlers:
    """`ocp.type_handlers`."""

    RestoreArgs = RestoreArgs
    ArrayRestoreArgs = ArrayRestoreArgs


class v1:
    """`ocp.v1`, which is `orbax.checkpoint.experimental.v1`."""

    PLACEHOLDER = PLACEHOLDER
    load = staticmethod(load)
    load_pytree = staticmethod(load)


def __getattr__(name: str) -> NoReturn:
    raise AttributeError(
        f"templax.compat.orbax has no `{name}`: it is Orbax's reading half; "
        f"hint: templax.restore(path, template)"
    )
