"""JAX. Orbax's checkpointers and handlers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..._core.arguments import PyTree
from ..._save.result import PendingSave
from .args import (
    SAVES,
    Composite,
    JsonRestore,
    JsonSave,
    PyTreeRestore,
    PyTreeSave,
    StandardRestore,
    StandardSave,
    check_restore_args,
    item_contents,
)
from .metadata.checkpoint import StepMetadata, read_metadata
from .options import AsyncOptions
from .saver import PathLike, Saver, begin_save
from .unmapped import unmapped_argument, unmapped_attribute


class PyTreeCheckpointHandler:
    """Makes a `Checkpointer` save and restore a tree.

    Options have no effect: they describe files.
    """

    save_args: type[Any] = PyTreeSave
    restore_args: type[Any] = PyTreeRestore

    def __init__(self, **options: Any) -> None:
        del options


class StandardCheckpointHandler(PyTreeCheckpointHandler):
    """Makes a `Checkpointer` save and restore a tree, by `StandardSave` and `StandardRestore`."""

    save_args = StandardSave
    restore_args = StandardRestore


class JsonCheckpointHandler(PyTreeCheckpointHandler):
    """Makes a `Checkpointer` save and restore a JSON value."""

    save_args = JsonSave
    restore_args = JsonRestore

    def __init__(self, filename: str | None = None, **options: Any) -> None:
        if filename not in (None, "metadata"):
            raise unmapped_argument("filename", "leave it out: Orbax's own is `metadata`")


class CompositeCheckpointHandler(PyTreeCheckpointHandler):
    """Makes a `Checkpointer` save and restore several items, whose kinds their args tell."""

    save_args = Composite
    restore_args = Composite

    def __init__(self, *item_names: str, **handlers: Any) -> None:
        del item_names, handlers


class Checkpointer(Saver):
    """Saves and restores items of the kind that its handler stands for.

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
        handler: PyTreeCheckpointHandler,
        timeout_secs: int | None = None,
        *,
        async_options: AsyncOptions | None = None,
        **options: Any,
    ) -> None:
        del timeout_secs, options
        self.handler = self._handler = handler  # Flax reads Orbax's name
        self._after = async_options and async_options.post_finalization_callback

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
        given = [each for each in (*positional, *named.values()) if isinstance(each, SAVES)]
        if args is None:
            args = given[0] if given else self.handler.save_args(*positional, **named)
        items = item_contents(args, "")
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
            CheckpointError: There is no readable checkpoint.
            NotImplementedError: An argument is not mapped; the message says what to use instead.
        """
        self.wait_until_finished()
        if args is None:
            args = self.handler.restore_args(*positional, **named)
        return check_restore_args(args).restore(os.fspath(directory))

    def metadata(self, directory: PathLike) -> StepMetadata:
        """The shapes and dtypes of a checkpoint, without reading any array."""
        self.wait_until_finished()
        return read_metadata(os.fspath(directory))


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
        super().__init__(StandardCheckpointHandler(), async_options=async_options)

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


__getattr__ = unmapped_attribute("checkpointers.")
