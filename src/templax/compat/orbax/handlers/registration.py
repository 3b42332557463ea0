"""Which handler saves and restores which item: the registries of Orbax's `handlers`."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, Protocol, runtime_checkable

import templax as tx

from ..checkpoint_args import get_registered_args_cls, get_registered_handler_cls
from ..unmapped import make_getattr

Entries = MutableMapping[tuple[str | None, type], Any]
"""Name of the item, or None for all, and class of args → the handler."""


class AlreadyExistsError(tx.UsageError):
    """An item has a handler for these args already."""


class NoEntryError(tx.UsageError, KeyError):
    """No handler is known."""

    __str__ = tx.UsageError.__str__


@runtime_checkable
class CheckpointHandlerRegistry(Protocol):
    """Finds the handler of an item. `DefaultCheckpointHandlerRegistry` is one."""

    def add(self, item: str | None, args: Any, handler: Any = None) -> None:
        """Adds the handler of an item for these args; None stands for all items."""
        ...

    def get(self, item: str | None, args: Any) -> Any:
        """The handler of an item for these args."""
        ...

    def has(self, item: str | None, args: Any) -> bool:
        """Whether there is a handler of an item for these args."""
        ...

    def get_all_entries(self) -> Entries:
        """All handlers."""
        ...


class DefaultCheckpointHandlerRegistry:
    """The handlers of items, by the name of the item and the class of its args.

    Args:
        other_registry: One whose handlers this one begins with.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        >>> registry.add("config", ocp.args.JsonSave, ocp.JsonCheckpointHandler("config.json"))
        >>> registry.has("config", ocp.args.JsonSave), registry.has("state", ocp.args.JsonSave)
        (True, False)
    """

    def __init__(self, other_registry: CheckpointHandlerRegistry | None = None) -> None:
        self._handlers: Entries = {}
        if other_registry is not None:
            self._handlers.update(other_registry.get_all_entries())

    def add(self, item: str | None, args: Any, handler: Any = None) -> None:
        """Adds a handler.

        Args:
            item: The name of the item; None for each that has none of its own for these args.
            args: The args, or their class.
            handler: The handler, or its class; None for that which the args are registered with.

        Raises:
            AlreadyExistsError: There is one already.
            UsageError: The args are registered with none; or a class takes arguments.
        """
        cls = args if isinstance(args, type) else type(args)
        if self.has(item, cls):
            raise AlreadyExistsError(
                f"Expected no handler of item `{item}` for {cls.__name__}, found one"
            )
        found: Any = get_registered_handler_cls(cls) if handler is None else handler
        if isinstance(found, type):
            try:
                found = found()
            except TypeError as error:
                raise tx.UsageError(
                    f"Expected handler= of item `{item}`, as {found} takes arguments: {error}"
                ) from error
        self._handlers[item, cls] = found

    def get(self, item: str | None, args: Any) -> Any:
        """The handler that was added for an item, or for None, and args or their class.

        Raises:
            NoEntryError: There is none.
        """
        cls = args if isinstance(args, type) else type(args)
        if (item, cls) not in self._handlers:
            raise NoEntryError(f"Expected a handler of item `{item}` for {cls.__name__}, got none")
        return self._handlers[item, cls]

    def has(self, item: str | None, args: Any) -> bool:
        """Whether there is a handler of an item for these args."""
        return (item, args if isinstance(args, type) else type(args)) in self._handlers

    def get_all_entries(self) -> Entries:
        """All handlers, by name of the item and class of the args."""
        return self._handlers

    def __repr__(self) -> str:
        return f"DefaultCheckpointHandlerRegistry({self._handlers!r})"


def create_default_handler_registry(**items_to_handlers: Any) -> DefaultCheckpointHandlerRegistry:
    """Makes a registry of the handlers of items, for the args registered with each handler.

    Raises:
        UsageError: A handler has no registered args.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> handler = ocp.StandardCheckpointHandler()
        >>> registry = ocp.handlers.create_default_handler_registry(state=handler)
        >>> registry.get("state", ocp.args.StandardRestore) is handler
        True
    """
    registry = DefaultCheckpointHandlerRegistry()
    for name, handler in items_to_handlers.items():
        for args in dict.fromkeys(get_registered_args_cls(handler)):
            registry.add(name, args, handler)
    return registry


__getattr__ = make_getattr("handlers.registration.")
