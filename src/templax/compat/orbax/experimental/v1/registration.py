"""Which handler saves and loads which checkpointable, as Orbax's v1 registries decide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from .....errors import CheckpointError, TemplaxError
from .checkpointable import StatefulCheckpointable, typestr
from .layout import STATE

_ORBAX = "orbax.checkpoint._src.handlers."


class AlreadyExistsError(TemplaxError, ValueError):
    """The registry has an entry for this name or handler."""


class NoEntryError(CheckpointError, KeyError):
    """No handler saves or loads this checkpointable."""

    __str__ = Exception.__str__


class CheckpointableHandlerRegistry(Protocol):
    """Handlers, in the order in which they were added: where several fit, the last one counts."""

    def add(
        self,
        handler_type: type[Any],
        *,
        checkpointable_name: str | None = None,
        secondary_typestrs: Sequence[str] | None = None,
    ) -> Any:
        """Adds a handler.

        Args:
            handler_type: Its class, which is called without arguments.
            checkpointable_name: The only name that it is for; None if it is for all names.
            secondary_typestrs: Handlers whose files it reads, as a checkpoint names them.
        """
        ...

    def get(self, checkpointable_name: str) -> type[Any]:
        """The handler that was added for a name."""
        ...

    def has(self, checkpointable_name: str) -> bool:
        """Whether a handler was added for a name."""
        ...

    def get_all_entries(self) -> Sequence[tuple[type[Any], str | None]]:
        """All handlers with their names."""
        ...

    def get_secondary_typestrs(self, handler_type: type[Any]) -> Sequence[str]:
        """The handlers whose files this one also reads."""
        ...


class Registry:
    """A `CheckpointableHandlerRegistry`."""

    def __init__(self) -> None:
        self._entries: list[tuple[type[Any], str | None]] = []
        self._secondary: dict[type[Any], Sequence[str]] = {}

    def add(
        self,
        handler_type: type[Any],
        *,
        checkpointable_name: str | None = None,
        secondary_typestrs: Sequence[str] | None = None,
    ) -> Registry:
        """See `CheckpointableHandlerRegistry`.

        Raises:
            AlreadyExistsError: There is a handler for the name, or the handler is there already.
            ValueError: `handler_type` is not a class.
        """
        if not isinstance(handler_type, type):
            raise ValueError(f"Expected the class of a handler, got {handler_type!r}")
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

    def get(self, checkpointable_name: str) -> type[Any]:
        """See `CheckpointableHandlerRegistry`.

        Raises:
            NoEntryError: There is none.
        """
        for handler, name in self._entries:
            if name == checkpointable_name:
                return handler
        raise NoEntryError(f"No entry for checkpointable_name={checkpointable_name}")

    def has(self, checkpointable_name: str) -> bool:
        """See `CheckpointableHandlerRegistry`."""
        return any(name == checkpointable_name for _, name in self._entries)

    def get_all_entries(self) -> Sequence[tuple[type[Any], str | None]]:
        """See `CheckpointableHandlerRegistry`."""
        return self._entries

    def get_secondary_typestrs(self, handler_type: type[Any]) -> Sequence[str]:
        """See `CheckpointableHandlerRegistry`."""
        return self._secondary.get(handler_type, ())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self._entries)})"


class ReadOnlyRegistry(Registry):
    """The registry of a context that was given none; nothing can be added to it."""

    def __init__(self, registry: CheckpointableHandlerRegistry) -> None:
        super().__init__()
        _add_all(self._add, registry)

    _add = Registry.add

    def add(
        self,
        handler_type: type[Any],
        *,
        checkpointable_name: str | None = None,
        secondary_typestrs: Sequence[str] | None = None,
    ) -> Registry:
        """Raises `NotImplementedError`."""
        raise NotImplementedError(
            "Adding not implemented for read-only registry; hint:"
            " context.checkpointables.registry = handlers.local_registry()"
        )


def _add_all(add: Any, other: CheckpointableHandlerRegistry) -> None:
    for handler, name in other.get_all_entries():
        secondary = other.get_secondary_typestrs(handler)
        add(handler, checkpointable_name=name, secondary_typestrs=secondary)


_global = Registry()


def global_registry() -> Registry:
    """The registry that `register_handler` adds to; it has Orbax's own handlers from the start.

    Example:
        >>> from templax.compat.orbax import v1 as ocp
        >>> ocp.handlers.global_registry().has("state")
        True
    """
    if not _global.get_all_entries():
        from .json_handler import JsonHandler, MetricsHandler
        from .proto_handler import ProtoHandler
        from .pytree_handler import PyTreeHandler
        from .stateful_handler import StatefulCheckpointableHandler

        _global.add(
            ProtoHandler,
            secondary_typestrs=[f"{_ORBAX}proto_checkpoint_handler.ProtoCheckpointHandler"],
        )
        _global.add(
            JsonHandler,
            secondary_typestrs=[f"{_ORBAX}json_checkpoint_handler.JsonCheckpointHandler"],
        )
        _global.add(StatefulCheckpointableHandler)
        _global.add(MetricsHandler, checkpointable_name="metrics")
        trees = (
            "pytree_checkpoint_handler.PyTreeCheckpointHandler",
            "standard_checkpoint_handler.StandardCheckpointHandler",
        )
        _global.add(PyTreeHandler, secondary_typestrs=[f"{_ORBAX}{name}" for name in trees])
        _global.add(PyTreeHandler, checkpointable_name=STATE)
    return _global


def local_registry(
    other_registry: CheckpointableHandlerRegistry | None = None,
    *,
    include_global_registry: bool = True,
) -> Registry:
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
    registry = Registry()
    if include_global_registry:
        _add_all(registry.add, global_registry())
    if other_registry is not None:
        _add_all(registry.add, other_registry)
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
        ValueError: Its class requires arguments.
    """
    try:
        return handler_type()
    except TypeError as error:
        raise ValueError(
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

    Raises:
        NoEntryError: None does.
    """
    if checkpointable is None:
        raise ValueError("checkpointable must not be None for saving.")
    if isinstance(checkpointable, StatefulCheckpointable):
        for handler in _make_general(registry):
            if handler.is_handleable(checkpointable):
                return handler
    if registry.has(name):
        return make_handler(registry.get(name), name)
    for handler in _make_general(registry):
        if handler.is_handleable(checkpointable):
            return handler
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


def find_load_handlers(
    registry: CheckpointableHandlerRegistry, abstract: Mapping[str, Any], saved_by: Any
) -> dict[str, Any]:
    """Name → handler of each of several checkpointables.

    Args:
        registry, abstract: See `find_load_handler`.
        saved_by: The `item_handlers` of the checkpoint.
    """
    known: Mapping[str, Any] = saved_by if isinstance(saved_by, Mapping) else {}
    return {
        name: find_load_handler(registry, each, name, known.get(name))
        for name, each in abstract.items()
    }
