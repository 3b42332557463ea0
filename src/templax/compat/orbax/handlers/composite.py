"""JAX. The handler of several items, each by a handler of its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import templax as tx

from ...._save.contents import Content
from ...._save.item import check_item_names
from ....formats.orbax.step_metadata import read_step_metadata
from ....formats.orbax.write import HANDLERS
from ....storage.open import open_source
from ..args import Composite, adopt_args
from ..checkpoint_args import (
    find_args_types,
    find_handler_type,
    get_registered_handler_cls,
    handler_name,
    register_with_handler,
)
from ..metadata.checkpoint import StepMetadata, make_step_metadata
from ..saver import PathLike
from .built_in import BuiltInHandler, is_replaced
from .calls import HandledItem, PlainArgs, call_restore, close_handler
from .protocol import as_path
from .registration import CheckpointHandlerRegistry, DefaultCheckpointHandlerRegistry

_log = logging.getLogger("templax")


@dataclass
class CompositeOptions:
    """The options of a `CompositeCheckpointHandler`. They have no effect."""

    multiprocessing_options: Any = None
    temporary_path_class: Any = None
    file_options: Any = None
    atomicity_options: Any = None
    async_options: Any = None


class CompositeCheckpointHandler(BuiltInHandler):
    """Saves and restores several items, by `Composite`.

    An item keeps the handler that it is first saved or restored with; other args are refused.

    Args:
        *item_names: Names of items, whose args determine their handlers.
        composite_options: No effect.
        handler_registry: The handlers of some or all items.
        **items_and_handlers: Name → handler of each item, in place of a registry.

    Raises:
        UsageError: Both a registry and names were given.

    Example:
        >>> import os, tempfile
        >>> from templax.compat import orbax as ocp
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as ckptr:
        ...     ckptr.save(path, ocp.args.Composite(config=ocp.args.JsonSave({"lr": 0.5})))
        ...     print(ckptr.restore(path).config)
        {'lr': 0.5}
    """

    name = f"{HANDLERS}composite_checkpoint_handler.CompositeCheckpointHandler"

    def __init__(
        self,
        *item_names: str,
        composite_options: CompositeOptions | None = None,
        handler_registry: CheckpointHandlerRegistry | None = None,
        **items_and_handlers: Any,
    ) -> None:
        del composite_options
        if handler_registry is not None and (item_names or items_and_handlers):
            also = "item_names" if item_names else "items_and_handlers"
            raise tx.UsageError(f"Expected handler_registry or {also}, got both")
        self._registry = DefaultCheckpointHandlerRegistry(handler_registry)
        # Names of items whose handler their args will tell; None if any name is allowed.
        self._open: set[str] | None = None
        if item_names or items_and_handlers:
            unknown = {name for name, each in items_and_handlers.items() if each is None}
            self._open = ({*item_names} - items_and_handlers.keys()) | unknown
        for name, handler in items_and_handlers.items():
            if handler is not None:
                self._add(name, handler)

    def _add(self, name: str, handler: Any) -> None:
        for args in dict.fromkeys(find_args_types(handler) or (PlainArgs,)):
            if not self._registry.has(name, args):
                self._registry.add(name, args, handler)

    def _handlers(self) -> dict[str, Any]:
        """Name → handler of each item that has one, the first if it has several."""
        found: dict[str, Any] = {}
        for (name, _), handler in self._registry.get_all_entries().items():
            if name is not None:
                found.setdefault(name, handler)
        return found

    def find_handler(self, name: str, args: Any) -> Any:
        """The handler of an item.

        Args:
            name: The name of the item.
            args: Its args; None for the handler that it already has.

        Raises:
            UsageError: It has none, or none for these args.
        """
        registry, known = self._registry, self._handlers()
        if args is None:
            if name not in known:
                raise tx.UsageError(
                    "Provided `None` for `CheckpointArgs`, and the `CheckpointHandler` for item"
                    f' "{name}" was not configured. Pass args, such as StandardRestore().'
                )
            return known[name]
        if registry.has(name, args):
            return registry.get(name, args)
        if registry.has(None, args):
            handler = registry.get(None, args)
            registry.add(name, args, handler)
            return handler
        if name in known and self._is_elsewhere(known[name], args):
            registry.add(name, args, known[name])
            return known[name]
        if name in known or (self._open is not None and name not in self._open):
            handlers = ", ".join(f"{n}: {type(h).__name__}" for n, h in known.items()) or "none"
            raise tx.UsageError(
                f"{type(args).__name__} of item `{name}` does not match with any registered handler"
                f" of this manager or checkpointer, found {handlers}"
            )
        handler = get_registered_handler_cls(args)()
        if self._open is not None:
            self._open.discard(name)
        self._add(name, handler)
        if not registry.has(name, args):
            registry.add(name, args, handler)
        return handler

    def _is_elsewhere(self, handler: Any, args: Any) -> bool:
        """Whether args belong to a handler that Orbax's own registry finds by its args only."""
        if find_args_types(handler) is not None or isinstance(args, PlainArgs):
            return False
        return get_registered_handler_cls(args) is type(handler)

    # --- saving

    def make_contents(
        self, args: Composite, *, background: bool = True, timeout: float | None = None
    ) -> Mapping[str, Content]:
        """See `BuiltInHandler.make_contents`.

        Args:
            args: Name → args of each item.
            background, timeout: Whether custom handlers may continue to write, and for how long;
                see `HandledItem`.

        Raises:
            UsageError: An item has no handler for its args, or a name that it can't have.
        """
        if not isinstance(args, Composite):
            raise tx.UsageError(f"Expected args.Composite(...), got {type(args).__name__}")
        found: dict[str, Content] = {}
        for name, each in args.items():
            given = adopt_args(each)
            handler = self.find_handler(name, given)
            found[name] = make_content(handler, given, background=background, timeout=timeout)
        check_item_names(found)
        return found

    def finalize(self, directory: PathLike) -> None:
        """Does nothing: `save` finalizes the items."""

    # --- restoring

    def restore(self, directory: PathLike, *args: Any, **kwargs: Any) -> Composite:
        """Restores items of the checkpoint in a directory.

        Args:
            directory: The directory of the checkpoint.
            *args, **kwargs: `args=Composite(...)`. None, or an empty one, restores all items.

        Raises:
            KeyError: The checkpoint lacks an item.
            UsageError: The handler of an item is unknown.
        """
        path = os.fspath(directory)
        given = self.take_args("restore", args, kwargs)
        items = list_item_directories(path)
        if not given:
            given = Composite(**{name: self.default_args(path, name) for name in items})
        for name in given:
            if name not in items:
                listed = ", ".join(f"`{each}`" for each in items) or "none"
                raise KeyError(f"Expected item `{name}` in {path}, found {listed}")
        pairs = {n: (self.find_handler(n, a), a) for n, a in sorted(given.items())}
        return Composite(**{n: restore_item(h, f"{path}/{n}", a) for n, (h, a) in pairs.items()})

    def default_args(self, path: str, name: str) -> Any:
        """The args that restore an item as it was saved.

        Args:
            path: The checkpoint.
            name: The item.

        Raises:
            UsageError: The handler of the item is unknown, or its args require arguments.
        """
        handler = self._handlers().get(name)
        if handler is None and name in (self._open or ()):
            raise tx.UsageError(
                f"Item `{name}` had an undetermined `CheckpointHandler` when restoring; hint: name"
                " what it is by args=, such as Composite(state=StandardRestore())"
            )
        if handler is None:
            recorded = read_step_metadata(open_source(path)).get("item_handlers")
            named = recorded.get(name) if isinstance(recorded, dict) else None
            handler = find_handler_type(named) if isinstance(named, str) else None
        types = None if handler is None else find_args_types(handler)
        if types is None:
            raise tx.UsageError(
                f"Item `{name}` of {path} could not be restored, as its handler is unknown; hint:"
                " name what it is by args=, such as Composite(state=StandardRestore())"
            )
        try:
            return types[1]()
        except TypeError as error:
            raise tx.UsageError(
                f"Expected args of item `{name}`, as {types[1].__name__} takes arguments: {error}"
            ) from error

    def metadata(self, directory: PathLike) -> StepMetadata:
        """Returns the metadata of a checkpoint and its items; no array is read.

        That of an item whose handler is unknown is None.

        Raises:
            NotFound: The directory does not exist.
            UsageError: The directory holds a single item.
        """
        path = os.fspath(directory)
        source, known = open_source(path), self._handlers()
        items = list_item_directories(path)
        if source.stat("") is None and not items:
            raise tx.NotFound("Expected a checkpoint, found nothing", file=path)
        about = read_step_metadata(source)
        recorded = about.get("item_handlers") or {}
        if not isinstance(recorded, dict):
            raise tx.UsageError(
                f"StepMetadata.item_handlers must be a dict, as of several items, got {recorded!r}"
            )
        named = {name: handler_name(known[name]) if name in known else None for name in items}
        found = {
            name: find_metadata(known[name], f"{path}/{name}") if name in known else None
            for name in items
        }
        handlers = {**named, **{name: each for name, each in recorded.items() if each}}
        return make_step_metadata({**about, "item_handlers": handlers}, Composite(**found))

    def close(self) -> None:
        """Closes the handlers of all items."""
        for handler in self._handlers().values():
            close_handler(handler)


def make_content(
    handler: Any, args: Any, *, background: bool, timeout: float | None = None
) -> Content:
    """Makes what a save takes: content of templax, or an item that the handler writes itself.

    Args:
        handler: The handler.
        args: What it gets.
        background, timeout: See `HandledItem`.
    """
    own = not is_replaced(handler, "save", "async_save", "finalize", "make_contents")
    contents = handler.make_contents(args) if own else {}
    # A handler of templax that holds several items writes them itself.
    if "" in contents:
        return contents[""]
    return HandledItem(handler, args, background=background, timeout=timeout)


def restore_item(handler: Any, directory: str, args: Any) -> Any:
    """Restores an item by its handler, one of templax or a custom one."""
    if isinstance(handler, BuiltInHandler) and not is_replaced(handler, "restore"):
        return handler.restore(directory, args=args)
    return call_restore(handler, directory, args)


def find_metadata(handler: Any, directory: str) -> Any:
    """The metadata of an item as its handler gives it; None, with a warning, if it can't."""
    find = getattr(handler, "metadata", None)
    if not callable(find):
        return None
    try:
        return find(as_path(directory))
    except (FileNotFoundError, NotImplementedError, tx.UnknownFormat) as error:
        _log.warning("%s has no metadata of %s: %s", type(handler).__name__, directory, error)
        return None


def list_item_directories(path: str) -> list[str]:
    """The names of the directories in a checkpoint, except those that begin with a dot."""
    names = (info.key for info in open_source(path).children() if info.is_dir)
    return sorted(name.rstrip("/") for name in names if not name.startswith("."))


register_with_handler(CompositeCheckpointHandler, for_save=True, for_restore=True)(Composite)
