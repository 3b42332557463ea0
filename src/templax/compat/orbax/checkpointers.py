"""JAX. Orbax's checkpointers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import templax as tx

from ..._core.arguments import PyTree
from ..._save.result import PendingSave
from ...formats.orbax.step_metadata import read_step_metadata
from ...storage.open import open_source
from .args import StandardRestore, StandardSave
from .handlers.built_in import is_replaced
from .handlers.calls import check_finished, close_handler, take_args
from .handlers.composite import (
    CompositeCheckpointHandler,
    find_metadata,
    make_content,
    restore_item,
)
from .handlers.trees import PyTreeCheckpointHandler, StandardCheckpointHandler
from .metadata.checkpoint import StepMetadata, make_step_metadata, read_metadata
from .options import AsyncOptions, check_tuning
from .saver import PathLike, Saver, begin_save
from .unmapped import make_getattr

_TUNING = frozenset(
    (
        "atomicity_options",
        "checkpoint_metadata_store",
        "file_options",
        "multiprocessing_options",
        "temporary_path_class",
    )
)
"""The options of Orbax's checkpointers that have no effect."""


class Checkpointer(Saver):
    """Saves and restores what its handler describes.

    Example:
        >>> import os, tempfile, numpy as np
        >>> from templax.compat import orbax as ocp
        >>> ckptr = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> ckptr.save(path, {"w": np.ones((8, 6), np.float32)})
        >>> ckptr.restore(path)["w"].shape
        (8, 6)
    """

    waits = True
    """Whether `save` returns only when the checkpoint is committed."""

    def __init__(
        self,
        handler: Any,
        timeout_secs: int | None = None,
        *,
        async_options: AsyncOptions | None = None,
        **options: Any,
    ) -> None:
        check_tuning(type(self).__name__, options, _TUNING)
        self.handler = self._handler = handler  # Flax reads the private name
        self._after = async_options and async_options.post_finalization_callback
        self.timeout_secs = timeout_secs or (async_options or AsyncOptions()).timeout_secs
        if self.timeout_secs <= 0:
            raise tx.UsageError(f"Expected timeout_secs= above 0, got {self.timeout_secs}")

    def save(
        self,
        directory: PathLike,
        *positional: Any,
        args: Any = None,
        force: bool = False,
        custom_metadata: Mapping[str, Any] | None = None,
        **named: Any,
    ) -> None:
        """Saves a checkpoint, which is either complete or absent.

        Args:
            directory: A path that does not exist yet, or an empty directory. May be relative.
            *positional, **named: The arguments of `PyTreeSave`, `StandardSave` or `JsonSave`,
                depending on the handler.
            args: One of `ocp.args`, instead of these arguments.
            force: Replaces an existing checkpoint, atomically.
            custom_metadata: JSON that is stored with the checkpoint.

        Raises:
            AlreadyExists: Something exists at `directory`.
            SaveError: A leaf cannot be saved (the message names it); the disk is full or failed; or
                the previous save, in the background, failed.
            NotImplementedError: An argument is not mapped; the message says what to use instead.
        """
        self.wait_until_finished()
        named = named if args is None else {"args": args, **named}
        given = take_args(self.handler, "save", positional, named)
        items: Mapping[str, Any]
        limit = self.timeout_secs
        if isinstance(self.handler, CompositeCheckpointHandler):
            items = self.handler.make_contents(given, timeout=limit)
        else:
            content = make_content(self.handler, given, background=not self.waits, timeout=limit)
            items = {"": content}
        self._pending = PendingSave(
            begin_save(os.fspath(directory), items, self.waits, custom_metadata, force, self._after)
        )

    def restore(self, directory: PathLike, *positional: Any, args: Any = None, **named: Any) -> Any:
        """Restores a checkpoint, after waiting for this object's save in the background.

        Args:
            directory: The path of the checkpoint. May be relative.
            *positional, **named: The arguments of `PyTreeRestore` or `StandardRestore`, depending
                on the handler.
            args: One of `ocp.args`, instead of these arguments.

        Raises:
            TemplateError: The checkpoint does not fit the template; lists every leaf.
            CheckpointError: The path holds no checkpoint, or one that is damaged or not finished.
            NotImplementedError: An argument is not mapped; the message says what to use instead.
        """
        self.wait_until_finished()
        named = named if args is None else {"args": args, **named}
        given = take_args(self.handler, "restore", positional, named)
        return restore_item(self.handler, os.fspath(directory), given)

    def metadata(self, directory: PathLike) -> StepMetadata:
        """Returns the metadata of a checkpoint; no array is read.

        Raises:
            CheckpointError: The path holds no checkpoint, or one that is damaged or not finished.
        """
        self.wait_until_finished()
        path = os.fspath(directory)
        if isinstance(self.handler, CompositeCheckpointHandler):
            return self.handler.metadata(path)
        if not is_replaced(self.handler, "metadata"):
            return read_metadata(path)
        check_finished(path)
        about = read_step_metadata(open_source(path))
        return make_step_metadata(about, find_metadata(self.handler, path))

    def close(self) -> None:
        """Waits like `wait_until_finished`, and closes the handler."""
        super().close()
        close_handler(self.handler)


class AsyncCheckpointer(Checkpointer):
    """A `Checkpointer` whose saves continue in the background once the values are safe.

    Example:
        >>> import os, tempfile, numpy as np
        >>> from templax.compat import orbax as ocp
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> with ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler()) as ckptr:
        ...     ckptr.save(path, args=ocp.args.StandardSave({"w": np.ones(3, np.float32)}))
        ...     ckptr.wait_until_finished()
        >>> os.path.exists(path)
        True
    """

    waits = False


class PyTreeCheckpointer(Checkpointer):
    """Saves and restores a tree: `save(directory, item, save_args=..., force=...)` and
    `restore(directory, item=template, restore_args=..., transforms={})`.

    Example:
        >>> import os, tempfile, jax, numpy as np
        >>> from templax.compat import orbax as ocp
        >>> ckptr = ocp.PyTreeCheckpointer()
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> ckptr.save(path, {"w": np.ones((8, 6)), "step": np.int32(7)})
        >>> template = jax.tree.map(lambda _: ..., ckptr.metadata(path).item_metadata.tree)
        >>> template["step"] = ocp.utils.empty_array((), np.int32)
        >>> ckptr.restore(path, item=template)["step"].dtype
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


class StandardCheckpointer(AsyncCheckpointer):
    """Saves a tree, in the background, and restores it: `save(directory, state)`,
    `restore(directory, target)`.

    Example:
        >>> import os, tempfile, numpy as np
        >>> from templax.compat import orbax as ocp
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> with ocp.StandardCheckpointer() as ckptr:
        ...     ckptr.save(path, {"w": np.ones(3, np.float32)})
        ...     tree = ckptr.restore(path)
        >>> sorted(tree)
        ['w']
    """

    def __init__(self, *, async_options: AsyncOptions | None = None, **options: Any) -> None:
        own = {name: value for name, value in options.items() if name in _TUNING}
        others = {name: value for name, value in options.items() if name not in _TUNING}
        super().__init__(StandardCheckpointHandler(**others), async_options=async_options, **own)

    def save(
        self,
        directory: PathLike,
        state: PyTree = None,
        *,
        args: Any = None,
        save_args: PyTree = None,
        force: bool = False,
        custom_metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Saves a tree. See `Checkpointer.save` for the arguments."""
        args = StandardSave(state, save_args) if args is None else args
        super().save(directory, args=args, force=force, custom_metadata=custom_metadata)

    def restore(
        self,
        directory: PathLike,
        target: PyTree = None,
        *,
        args: Any = None,
        strict: bool = True,
    ) -> Any:
        """Restores a tree.

        Args:
            directory: The path of the checkpoint.
            target: A template, or None for the checkpoint's own tree.
            args: `StandardRestore`, instead of the other arguments.
            strict: No effect: an array is never padded or truncated to fit.

        Raises:
            TemplateError, CheckpointError: See `Checkpointer.restore`.
        """
        args = StandardRestore(target, strict) if args is None else args
        return super().restore(directory, args=args)


__getattr__ = make_getattr("checkpointers.")
