"""JAX. Orbax's checkpointers and handlers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .args import (
    SAVES,
    Composite,
    JsonRestore,
    JsonSave,
    PyTree,
    PyTreeRestore,
    PyTreeSave,
    StandardRestore,
    StandardSave,
    item_contents,
)
from .metadata import StepMetadata, metadata_of
from .options import AsyncOptions, unmapped
from .saver import PathLike, Saver, begin_save


class PyTreeCheckpointHandler:
    """Names what a `Checkpointer` saves and restores. Options are about files: without effect."""

    save_args: type[Any] = PyTreeSave
    restore_args: type[Any] = PyTreeRestore

    def __init__(self, **options: Any) -> None:
        del options


class StandardCheckpointHandler(PyTreeCheckpointHandler):
    """Names what a `Checkpointer` saves and restores."""

    save_args = StandardSave
    restore_args = StandardRestore


class JsonCheckpointHandler(PyTreeCheckpointHandler):
    """Names what a `Checkpointer` saves and restores."""

    save_args = JsonSave
    restore_args = JsonRestore

    def __init__(self, filename: str | None = None, **options: Any) -> None:
        if filename not in (None, "metadata"):
            raise unmapped("filename", "leave it out: Orbax's own is `metadata`")


class CompositeCheckpointHandler(PyTreeCheckpointHandler):
    """Names what a `Checkpointer` saves and restores: items, whose handlers their args name."""

    save_args = Composite
    restore_args = Composite

    def __init__(self, *item_names: str, **handlers: Any) -> None:
        del item_names, handlers


class Checkpointer(Saver):
    """Saves and restores what its handler names.

    Example:
        >>> import jax, numpy as np
        >>> from templax.compat import orbax as ocp
        >>> ckptr = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        >>> path = getfixture("tmp_path") / "ckpt"
        >>> ckptr.save(path, {"w": np.ones((8, 6), np.float32)})
        >>> ckptr.restore(path)["w"].shape
        (8, 6)
    """

    waits = True
    """Whether `save` returns once the checkpoint is there."""

    def __init__(
        self,
        handler: PyTreeCheckpointHandler,
        timeout_secs: int | None = None,
        *,
        async_options: AsyncOptions | None = None,
        **options: Any,
    ) -> None:
        del timeout_secs, options
        self.handler = handler
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
        """Saves a checkpoint: wholly there or not at all.

        Args:
            directory: Where nothing is, or an empty directory; relative paths, too.
            *positional, **named: As of `PyTreeSave`, `StandardSave` or `JsonSave`, by the handler.
            args: One of `ocp.args`, instead of them.
            force: Replaces a checkpoint that is there, in one step.
            custom_metadata: JSON that goes with it.

        Raises:
            AlreadyExists: Something is there.
            SaveError: A leaf that can't be saved, by its name; the disk is full or failed; or the
                save before this one, in the background, failed.
            NotImplementedError: An argument that isn't mapped; the text says what to use.
        """
        self.wait_until_finished()
        given = [each for each in (*positional, *named.values()) if isinstance(each, SAVES)]
        if args is None:
            args = given[0] if given else self.handler.save_args(*positional, **named)
        items = item_contents(args, "")
        self._saved = begin_save(
            os.fspath(directory), items, self.waits, custom_metadata, force, self._after
        )

    def restore(self, directory: PathLike, *positional: Any, args: Any = None, **named: Any) -> Any:
        """Restores a checkpoint, once what this object saves in the background is there.

        Args:
            directory: Any path, relative ones too.
            *positional, **named: As of `PyTreeRestore` or `StandardRestore`, by the handler.
            args: One of `ocp.args`, instead of them.

        Raises:
            TemplateError: The checkpoint does not fit the template; lists every leaf.
            CheckpointError: There is no readable checkpoint.
            NotImplementedError: An argument that isn't mapped; the text says what to use.
        """
        self.wait_until_finished()
        if args is None:
            args = self.handler.restore_args(*positional, **named)
        return args.restore(os.fspath(directory))

    def metadata(self, directory: PathLike) -> StepMetadata:
        """Shapes and dtypes of a checkpoint; no array is read."""
        return metadata_of(os.fspath(directory))


class AsyncCheckpointer(Checkpointer):
    """A `Checkpointer` whose saves go on in the background once the values are safe.

    Example:
        >>> import jax, numpy as np
        >>> from templax.compat import orbax as ocp
        >>> path = getfixture("tmp_path") / "ckpt"
        >>> with ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler()) as ckptr:
        ...     ckptr.save(path, args=ocp.args.StandardSave({"w": np.ones(3, np.float32)}))
        ...     ckptr.wait_until_finished()
        >>> path.exists()
        True
    """

    waits = False


class PyTreeCheckpointer(Checkpointer):
    """Saves and restores a tree: `save(directory, item, save_args=..., force=...)` and
    `restore(directory, item=template, restore_args=..., transforms={})`.

    Example:
        >>> import jax, numpy as np
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


class StandardCheckpointer(AsyncCheckpointer):
    """Saves a tree, in the background, and restores it: `save(directory, state)`,
    `restore(directory, target)`.

    Example:
        >>> import jax, numpy as np
        >>> from templax.compat import orbax as ocp
        >>> path = getfixture("tmp_path") / "ckpt"
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
        """Saves a tree; as of `Checkpointer.save`."""
        args = StandardSave(state, save_args) if args is None else args
        super().save(directory, args=args, force=force, custom_metadata=custom_metadata)
