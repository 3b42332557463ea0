"""Which handler saves and loads which checkpointable, as Orbax's v1 registries decide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, NoReturn

from .....errors import CheckpointError, TemplaxError, UsageError
from .checkpointable import STATE, StatefulCheckpointable, typestr


class AlreadyExistsError(TemplaxError, ValueError):
    """The registry has an entry for this name or handler."""


class NoEntryError(CheckpointError, KeyError):
    """No handler saves or loads this checkpointable."""

    __str__ = Exception.__str__


class CheckpointableHandlerRegistry:
    """Handlers, in the order in which they were added: where several fit, the last one counts.

    Example:
        >>> from templax.compat.orbax import v1 as ocp
        >>> registry = ocp.handlers.local_registry()
        >>> registry = registry.add(ocp.handlers.JsonHandler, checkpointable_name="config")
        >>> registry.has("config"), registry.has("weights")
        (True, False)
    """

    def __init__(self) -> None:
        self._entries: list[tuple[type[Any], str | None]] = []
        self._secondary: dict[type[Any], Sequence[str]] = {}

    def add(
        self,
        handler_type: type[Any],
        *,
        checkpointable_name: str | None = None,
        secondary_typestrs: Sequence[str] | None = None,
    ) -> CheckpointableHandlerRegistry:
        """Adds a handler, and returns the registry.

        Args:
            handler_type: Its class, which is called without arguments.
            checkpointable_name: The only name that it is for; None if it is for all names.
            secondary_typestrs: Handlers whose files it also reads, as a checkpoint names them.

        Raises:
            AlreadyExistsError: There is a handler for the name, or the handler is there already.
            UsageError: `handler_type` is not a class.
        """
        if not isinstance(handler_type, type):
            raise UsageError(f"Expected the class of a handler, got {handler_type!r}")
        if checkpointable_name:
            if self.has(checkpointable_name):
                raise AlreadyExistsError(
                    f"Entry for checkpointable_name={checkpointable_name} already exists in the"
                    " registry."
                )
        elif any(handler_type is known for known, _ in self._entries):
            raise AlreadyExistsError(f"Handler type {handler_type} already exists in the registry.")
        self._entries.append((handler_type, checkpointable_name))
        if secondary_typestrs is not None:
            self._secondary[handler_type] = secondary_typestrs
        return self

    def add_all(self, other: CheckpointableHandlerRegistry) -> None:
        """Adds the handlers of another registry.

        Raises:
            AlreadyExistsError: See `add`.
        """
        for handler, name in other.get_all_entries():
            secondary = other.get_secondary_typestrs(handler)
            self.add(handler, checkpointable_name=name, secondary_typestrs=secondary)

    def get(self, checkpointable_name: str) -> type[Any]:
        """The handler that was added for a name.

        Raises:
            NoEntryError: There is none.
        """
        for handler, name in self._entries:
            if name == checkpointable_name:
                return handler
        raise NoEntryError(f"No entry for checkpointable_name={checkpointable_name}")

    def has(self, checkpointable_name: str) -> bool:
        """Whether a handler was added for a name."""
        return any(name == checkpointable_name for _, name in self._entries)

    def get_all_entries(self) -> Sequence[tuple[type[Any], str | None]]:
        """All handlers, each with its name or None."""
        return self._entries

    def get_secondary_typestrs(self, handler_type: type[Any]) -> Sequence[str]:
        """The handlers whose files this one also reads."""
        return self._secondary.get(handler_type, ())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self._entries)})"


class ReadOnlyRegistry(CheckpointableHandlerRegistry):
    """The registry of a context that was given none: the handlers that are global now.

    Nothing can be added to it: the caller would expect it to reach other contexts.
    """

    def __init__(self) -> None:
        found = local_registry()
        self._entries, self._secondary = found._entries, found._secondary

    def add(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises `NotImplementedError`."""
        raise NotImplementedError(
            "Adding not implemented for read-only registry; hint:"
            " context.checkpointables.registry = handlers.local_registry()"
        )


_global = CheckpointableHandlerRegistry()


def global_registry() -> CheckpointableHandlerRegistry:
    """The registry that `register_handler` adds to; it has Orbax's own handlers from the start.

    Example:
        >>> from templax.compat.orbax import v1 as ocp
        >>> ocp.handlers.global_registry().has("state")
        True
    """
    if not _global.get_all_entries():
        # By name: these handlers import the context, whose options hold a registry.
        import_module(f"{__package__}.built_in_handlers").add_built_in_handlers(_global)
    return _global


def local_registry(
    other_registry: CheckpointableHandlerRegistry | None = None,
    *,
    include_global_registry: bool = True,
) -> CheckpointableHandlerRegistry:
    """A new registry, for a context.

    Args:
        other_registry: Another registry, whose entries come last.
        include_global_registry: Whether it begins with the entries of the global registry.

    Example:
        >>> from templax.compat.orbax import v1 as ocp
        >>> registry = ocp.handlers.local_registry()
        >>> registry = registry.add(ocp.handlers.JsonHandler, checkpointable_name="config")
        >>> context = ocp.Context()
        >>> context.checkpointables.registry = registry
    """
    registry = CheckpointableHandlerRegistry()
    if include_global_registry:
        registry.add_all(global_registry())
    if other_registry is not None:
        registry.add_all(other_registry)
    return registry


def register_handler(
    cls: type[Any],
    *,
    checkpointable_name: str | None = None,
    secondary_typestrs: Sequence[str] | None = None,
) -> type[Any]:
    """Adds a handler to the global registry, and returns it, so it can be used as a decorator.

    Args:
        cls, checkpointable_name, secondary_typestrs: See `CheckpointableHandlerRegistry.add`.

    Raises:
        AlreadyExistsError: It is registered already, or another one is for its name.
    """
    global_registry().add(
        cls, checkpointable_name=checkpointable_name, secondary_typestrs=secondary_typestrs
    )
    return cls


def make_handler(handler_type: type[Any], name: str | None) -> Any:
    """An instance of a handler.

    Raises:
        UsageError: Its class requires arguments.
    """
    try:
        return handler_type()
    except TypeError as error:
        raise UsageError(
            f"The handler {handler_type} resolved for checkpointable={name} could not be"
            f" default-constructed: {error}"
        ) from error


def _make_general(registry: CheckpointableHandlerRegistry) -> Iterator[Any]:
    """The handlers that are for all names, the last one first."""
    for handler, name in reversed(registry.get_all_entries()):
        if name is None:
            yield make_handler(handler, None)


def find_save_handler(
    registry: CheckpointableHandlerRegistry, checkpointable: Any, name: str
) -> Any:
    """The handler that saves a checkpointable.

    That is the one for its name, or else the last one for all names that takes it. An object that
    saves itself is offered to those for all names first.

    Raises:
        NoEntryError: None does.
        UsageError: The checkpointable is None.
    """
    if checkpointable is None:
        raise UsageError("checkpointable must not be None for saving.")
    named = registry.has(name)
    if named and not isinstance(checkpointable, StatefulCheckpointable):
        return make_handler(registry.get(name), name)
    for handler in _make_general(registry):
        if handler.is_handleable(checkpointable):
            return handler
    if named:
        return make_handler(registry.get(name), name)
    raise NoEntryError(
        f'Could not identify a valid handler for the checkpointable: "{name}" and checkpointable'
        f" type={type(checkpointable)}. The available handlers are:"
        f" {[handler for handler, _ in registry.get_all_entries()]}",
        hint="register_handler(YourHandler), or context.checkpointables.registry",
    )


def find_load_handler(
    registry: CheckpointableHandlerRegistry, abstract: Any, name: str, saved_by: str | None
) -> Any:
    """The handler that loads a checkpointable.

    Args:
        registry: The handlers.
        abstract: The abstract checkpointable, or None.
        name: The name of the checkpointable.
        saved_by: The handler that saved it, as the checkpoint names it.

    Raises:
        NoEntryError: None does, and there is none for `state` to fall back on.
    """
    named = make_handler(registry.get(name), name) if registry.has(name) else None
    same = _find_saver(registry, saved_by)

    def fits(handler: Any) -> bool:
        return handler is not None and (
            abstract is None or bool(handler.is_abstract_handleable(abstract))
        )

    if same is not None and isinstance(abstract, StatefulCheckpointable) and fits(same):
        return same
    for handler in (named, same):
        if fits(handler):
            return handler
    if abstract is not None:
        for handler in _make_general(registry):
            if handler.is_abstract_handleable(abstract):
                return handler
    if named is not None:
        return named
    if registry.has(STATE):
        return make_handler(registry.get(STATE), STATE)
    raise NoEntryError(
        f"Could not resolve a handler for '{name}' and no '{STATE}' handler found in {registry}",
        hint="give an abstract checkpointable, or register the handler that saved it"
        + (f", {saved_by}" if saved_by else ""),
    )


def _find_saver(registry: CheckpointableHandlerRegistry, saved_by: str | None) -> Any:
    for handler, name in reversed(registry.get_all_entries()) if saved_by else ():
        if saved_by in (typestr(handler), *registry.get_secondary_typestrs(handler)):
            return make_handler(handler, name)
    return None
