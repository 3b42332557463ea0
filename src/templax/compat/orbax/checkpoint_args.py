"""Orbax's `checkpoint_args`: which handler saves and restores what args describe.

Args and handlers that were registered with Orbax itself, as Grain does where it is installed, are
found in the registry beside the `CheckpointArgs` that they derive from.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any, TypeVar, get_type_hints

import templax as tx

from .unmapped import make_getattr


@dataclass
class CheckpointArgs:
    """The base of args, which say what is saved or restored, and how.

    A handler of your own has a class for what it saves and one for what it restores, which
    `register_with_handler` connects with it.

    Example:
        >>> from dataclasses import dataclass
        >>> from templax.compat import orbax as ocp
        >>> class TextHandler(ocp.CheckpointHandler):
        ...     def save(self, directory, args):
        ...         (directory / "text.txt").write_text(args.text)
        ...     def restore(self, directory, args):
        ...         return (directory / "text.txt").read_text()
        >>> @ocp.args.register_with_handler(TextHandler, for_save=True)
        ... @dataclass
        ... class TextSave(ocp.args.CheckpointArgs):
        ...     text: str
        >>> @ocp.args.register_with_handler(TextHandler, for_restore=True)
        ... @dataclass
        ... class TextRestore(ocp.args.CheckpointArgs):
        ...     pass
        >>> ocp.args.get_registered_handler_cls(TextSave).__name__
        'TextHandler'
    """


_Args = TypeVar("_Args", bound=type)

_FOR_SAVE: dict[type, type] = {}
_FOR_RESTORE: dict[type, type] = {}
"""Class of args → its handler."""

_BY_NAME: dict[str, type] = {}
"""The name that a checkpoint records → the handler."""


def register_with_handler(
    handler_cls: type, for_save: bool = False, for_restore: bool = False
) -> Callable[[_Args], _Args]:
    """Makes a decorator that connects a class of args with its handler.

    Args:
        handler_cls: The class of the handler.
        for_save, for_restore: What the args are for; at least one of the two.

    Raises:
        UsageError: Neither is set; or another class has the name that checkpoints record.
        TypeError: The class does not derive from `CheckpointArgs`.
    """
    if not (for_save or for_restore):
        raise tx.UsageError("Expected for_save=True or for_restore=True, got neither")

    def register(cls: _Args) -> _Args:
        if not issubclass(cls, CheckpointArgs):
            raise TypeError(f"Expected a subclass of CheckpointArgs, got {cls}")
        if for_save:
            _FOR_SAVE[cls] = handler_cls
        if for_restore:
            _FOR_RESTORE[cls] = handler_cls
        _register_name(handler_cls)
        return cls

    return register


def _register_name(handler: type) -> None:
    name = handler_name(handler)
    before = _BY_NAME.setdefault(name, handler)
    if before is handler:
        return
    if (before.__module__, before.__qualname__) != (handler.__module__, handler.__qualname__):
        raise tx.UsageError(
            f"Expected a handler with a name of its own, got {handler}, which {before} shares:"
            f" `{name}`"
        )
    _BY_NAME[name] = handler  # a notebook ran its definition again


def handler_name(handler: Any) -> str:
    """The name of a handler, or of its class, that checkpoints record."""
    cls = handler if isinstance(handler, type) else type(handler)
    named = getattr(handler, "typestr", None)
    return str(named()) if callable(named) else f"{cls.__module__}.{cls.__qualname__}"


def _register_built_in() -> None:
    """Registers the args of templax, whose handlers are imported when they are first used."""
    import_module(f"{__package__}.handlers.kinds")


def find_handler_type(name: str) -> type | None:
    """The handler that a checkpoint names, if it was registered, or its module imported."""
    _register_built_in()
    if name in _BY_NAME:
        return _BY_NAME[name]
    module, _, cls = name.rpartition(".")
    found = getattr(sys.modules.get(module), cls, None)
    return found if isinstance(found, type) and find_args_types(found) else None


def get_registered_handler_cls(arg: Any) -> type:
    """The handler of args, or of a class of args.

    Raises:
        UsageError: They were never registered.
        TypeError: `arg` is neither args nor a class of args.
    """
    cls = arg if isinstance(arg, type) else type(arg)
    _register_built_in()
    if cls in _FOR_SAVE or cls in _FOR_RESTORE:
        return _FOR_SAVE.get(cls) or _FOR_RESTORE[cls]
    registry = _find_registry(cls)
    if registry is not None:
        return registry.get_registered_handler_cls(cls)
    if not issubclass(cls, CheckpointArgs):
        raise TypeError(f"Expected args, such as StandardSave(tree), got {cls}")
    raise tx.UsageError(f"Expected args that are registered with a handler, got {cls}")


def get_registered_args_cls(handler: Any) -> tuple[type, type]:
    """The args with which a handler, or a class of handlers, saves and restores.

    Raises:
        UsageError: Its args to save, or those to restore, were never registered.
    """
    found = find_args_types(handler)
    if found is None:
        cls = handler if isinstance(handler, type) else type(handler)
        raise tx.UsageError(
            f"Expected a handler whose args to save and to restore are registered, got {cls}"
        )
    return found


def has_registered_args(handler: Any) -> bool:
    """Whether `get_registered_args_cls` knows the args of a handler."""
    return find_args_types(handler) is not None


def find_args_types(handler: Any) -> tuple[type, type] | None:
    """The args with which a handler saves and restores, or None."""
    cls = handler if isinstance(handler, type) else type(handler)
    save = next((args for args, each in _FOR_SAVE.items() if each is cls), None)
    restore = next((args for args, each in _FOR_RESTORE.items() if each is cls), None)
    if save is not None and restore is not None:
        return save, restore
    # Registered with Orbax itself: by the module that defines the handler, as a rule.
    beside = vars(sys.modules.get(cls.__module__, ModuleType("none"))).values()
    registries = [_find_registry(each) for each in list(beside) if isinstance(each, type)]
    for registry in registries:
        if registry is not None and registry.has_registered_args(cls):
            return registry.get_registered_args_cls(cls)
    return _read_args_types(cls)


def _read_args_types(cls: type) -> tuple[type, type] | None:
    """The args that the `save` and `restore` of a handler say that they take, or None."""
    found: list[type] = []
    for name in ("save", "restore"):
        try:
            types = get_type_hints(getattr(cls, name, None))
        except (NameError, TypeError):  # a type that only its module knows, or no function
            return None
        args = types.get("args")
        if not isinstance(args, type) or not _is_args_type(args):
            return None
        found.append(args)
    return found[0], found[1]


def is_args(value: object) -> bool:
    """Whether a value is args, of templax or of Orbax itself."""
    return _is_args_type(type(value))


def _is_args_type(cls: type) -> bool:
    return any(base.__name__ == CheckpointArgs.__name__ for base in cls.__mro__)


def _find_registry(cls: type) -> Any:
    """The module of Orbax that registers args of a class, if they derive from Orbax's own base."""
    for base in cls.__mro__:
        if base.__name__ == CheckpointArgs.__name__ and base is not CheckpointArgs:
            found = sys.modules.get(base.__module__)
            lookup = getattr(found, "get_registered_handler_cls", None)
            if lookup not in (None, get_registered_handler_cls):
                return found
    return None


__getattr__ = make_getattr("checkpoint_args.")
