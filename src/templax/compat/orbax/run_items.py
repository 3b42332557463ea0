"""JAX. The items of a manager's steps: whether they have names, which, and what handles them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import templax as tx

from ..._save.contents import Content
from ..._save.item import Json
from ...formats.orbax.directory import ItemKind, list_items
from ...formats.orbax.step_metadata import read_step_metadata
from ...storage.open import open_source
from .args import Composite, JsonRestore, PyTreeRestore, StandardRestore, adopt_args
from .checkpoint_args import is_args
from .handlers.calls import Use, take_args
from .handlers.composite import CompositeCheckpointHandler, restore_item
from .handlers.documents import JsonCheckpointHandler
from .metadata.checkpoint import StepMetadata, make_step_metadata
from .metadata.tree import read_tree_metadata
from .options import AsyncOptions

ONLY_ITEM = "default"
"""Name of the item of a step that has a single, unnamed item."""

METRICS = "metrics"
"""The item that holds the metrics of a step."""


class RunItems:
    """The items of the steps of a run: a single one, or several that have names.

    The arguments of the manager decide which of the two, or else its first save or restore.

    Args:
        checkpointers, item_names, item_handlers, handler_registry: Those of the manager.
        async_options: For how long custom handlers may write in the background. By default, for as
            long as the most patient of the checkpointers lets them.

    Attributes:
        waits: Whether there are checkpointers, and all of them finish a save before they return.

    Raises:
        UsageError: They contradict each other.
    """

    def __init__(
        self,
        checkpointers: Any,
        item_names: Iterable[str] | None,
        item_handlers: Any,
        handler_registry: Any,
        *,
        async_options: AsyncOptions | None = None,
    ):
        names = tuple(item_names or ())
        _refuse_both(
            checkpointers=checkpointers,
            item_names=names or None,
            item_handlers=item_handlers,
            handler_registry=handler_registry,
        )
        given = item_handlers if checkpointers is None else checkpointers
        named = isinstance(checkpointers, Mapping)
        each_of = checkpointers.values() if named else (checkpointers,)
        self.waits = checkpointers is not None and all(map(_waits, each_of))
        limits = [_find_timeout(each) for each in each_of if not _waits(each)]
        chosen = async_options or AsyncOptions()
        if async_options is None and limits:
            chosen = AsyncOptions(timeout_secs=max(limits))
        self._timeout = chosen.timeout_secs
        metrics = JsonCheckpointHandler(METRICS)
        self._named: bool | None = None
        if isinstance(given, Mapping) or names:
            if given is not None and not isinstance(given, Mapping):
                raise tx.UsageError(
                    "Expected a dict as item_handlers= with item_names=, got a single handler"
                )
            handlers: dict[str, Any] = {
                name: _get_handler(each) for name, each in (given or {}).items()
            }
            handlers.setdefault(METRICS, metrics)
            self._named = True
            self._handler = CompositeCheckpointHandler(*names, **handlers)
        elif given is not None:
            self._named = False
            handlers = {ONLY_ITEM: _get_handler(given), METRICS: metrics}
            self._handler = CompositeCheckpointHandler(**handlers)
        else:
            self._handler = CompositeCheckpointHandler(handler_registry=handler_registry)

    def close(self) -> None:
        """Closes the handlers of the items."""
        self._handler.close()

    def read_save_args(self, items: Any, save_kwargs: Any, args: Any) -> Composite:
        """Item name → args of a save, translated from the older spelling if need be.

        Raises:
            UsageError: They are missing, or do not fit what the manager saves.
        """
        if is_args(items) or (args is None and items is None):
            raise tx.UsageError("Expected args=, such as ocp.args.StandardSave(tree), got none")
        if args is None and self._named is None:
            raise tx.UsageError(f"Expected args=, got items={items!r} and no checkpointer for them")
        if args is None:
            return self._translate("save", items, save_kwargs)
        self._named, named = self._name_args("save", args)
        return named

    def make_contents(
        self, args: Composite, metrics: Any, *, background: bool
    ) -> dict[str, Content]:
        """Item name → what to save under it.

        Args:
            args: Those of a save.
            metrics: The metrics to save with it, or None.
            background: Whether custom handlers may continue to write after the call.

        Raises:
            UsageError: An item can't have its name, or has no handler for its args.
        """
        if metrics is not None and any(name.casefold() == METRICS for name in args):
            raise tx.UsageError("Expected items of other names than `metrics`, got metrics=")
        made = self._handler.make_contents(args, background=background, timeout=self._timeout)
        contents = dict(made)
        if metrics is not None:
            contents[METRICS] = Json(metrics, METRICS)
        return contents

    def restore(self, path: str, items: Any, restore_kwargs: Any, args: Any) -> Any:
        """Restores the only item of a step, or a `Composite` of several.

        Args:
            path: The step.
            items, restore_kwargs, args: Those of the call.

        Raises:
            UsageError: The args do not fit what the manager saves, or what the step holds.
        """
        if is_args(items):
            raise tx.UsageError(f"Expected args=, got {type(items).__name__} as items=")
        kinds = list_items(open_source(path))
        if self._named is None and ONLY_ITEM in kinds:
            self._named = False
        named, single = self._read_restore_args(path, kinds, items, restore_kwargs, args)
        if single and ONLY_ITEM not in kinds:  # the step is an item itself, or has a named one
            given = named[ONLY_ITEM]
            return restore_item(self._handler.find_handler(ONLY_ITEM, given), path, given)
        restored = self._handler.restore(path, args=named)
        return restored[ONLY_ITEM] if single else restored

    def read_metadata(self, path: str) -> StepMetadata:
        """The metadata of a step and of its items; None for an item whose kind is unknown."""
        kinds = list_items(open_source(path))
        single = _is_single(kinds)
        if single and kinds.get(ONLY_ITEM, "pytree") == "pytree":
            catalog = tx.open(f"{path}/{ONLY_ITEM}" if ONLY_ITEM in kinds else path)
            about = read_step_metadata(open_source(path))
            return make_step_metadata(about, read_tree_metadata(catalog))
        found = self._handler.metadata(path)
        items = dict(found.item_metadata)
        for name, kind in kinds.items():
            if kind == "pytree" and items.get(name) is None:  # its handler is unknown
                items[name] = read_tree_metadata(tx.open(f"{path}/{name}"))
        found.item_metadata = items[ONLY_ITEM] if single else Composite(**items)
        return found

    def _read_restore_args(
        self,
        path: str,
        kinds: Mapping[str, ItemKind],
        items: Any,
        restore_kwargs: Any,
        args: Any,
    ) -> tuple[Composite, bool]:
        """Item name → args of a restore, and whether they are those of the only item."""
        if args is None and (items is not None or restore_kwargs):
            if self._named is None:
                return Composite(
                    **{ONLY_ITEM: PyTreeRestore(items, **(restore_kwargs or {}))}
                ), True
            return self._translate("restore", items, restore_kwargs), not self._named
        if args is None:
            single = _is_single(kinds)
            names = [ONLY_ITEM] if single else list(kinds)
            found = {name: self._default_args(path, name, kinds.get(name)) for name in names}
            return Composite(**found), single
        several, named = self._name_args("restore", args)
        if several:
            self._named = True
        return named, not several

    def _default_args(self, path: str, name: str, kind: ItemKind | None) -> Any:
        """The args that restore an item as it was saved."""
        if kind is None:  # the step is an item itself
            return StandardRestore()
        try:
            return self._handler.default_args(path, name)
        except tx.UsageError:
            # Nobody said what handles it, but its files may tell.
            if kind == "other":
                raise
            return JsonRestore() if kind == "json" else StandardRestore()

    def _name_args(self, use: Use, args: Any) -> tuple[bool, Composite]:
        """Whether the args of a call are those of several items; and the args by item name."""
        if not is_args(args):
            example = "StandardSave(tree)" if use == "save" else "StandardRestore(template)"
            raise tx.UsageError(
                f"Expected args that {use}, such as {example}, got {type(args).__name__}"
            )
        given = adopt_args(args)
        several = isinstance(given, Composite)
        if self._named is not None and self._named != several:
            raise tx.UsageError(_describe_mode(self._named, use, given))
        return several, (given if several else Composite(**{ONLY_ITEM: given}))

    def _translate(self, use: Use, items: Any, kwargs: Any) -> Composite:
        """The older spelling of args, as the handlers of the items take it."""
        if not self._named:
            handler = self._handler.find_handler(ONLY_ITEM, None)
            return Composite(**{ONLY_ITEM: take_args(handler, use, (items,), dict(kwargs or {}))})
        items, kwargs = dict(items or {}), dict(kwargs or {})
        found: dict[str, Any] = {}
        for name in dict.fromkeys([*items, *kwargs]):
            handler = self._handler.find_handler(name, None)
            given = dict(kwargs.get(name) or {})
            found[name] = take_args(handler, use, (items.get(name),), given)
        return Composite(**found)


def _is_single(kinds: Mapping[str, ItemKind]) -> bool:
    """Whether a step holds a single item, which has no name, or is one itself."""
    return not set(kinds) - {ONLY_ITEM, METRICS}


def _describe_mode(named: bool, use: Use, args: Any) -> str:
    if named:
        return (
            "Must provide `args` of type `Composite` when dealing with multiple checkpointable"
            f" objects. Expected ocp.args.Composite(...), as items have names here, got {args!r}"
        )
    example = "StandardSave(tree)" if use == "save" else "StandardRestore(template)"
    return (
        "Cannot provide `args` of type `Composite` when dealing with a single, unnamed (default)"
        f" checkpointable object. Expected args such as {example}, got {args!r}"
    )


def _get_handler(given: Any) -> Any:
    """The handler of a checkpointer, or a handler itself."""
    return getattr(given, "handler", given)


def _waits(checkpointer: Any) -> bool:
    """Whether a checkpointer, of Orbax itself or not, saves before its call returns."""
    return getattr(checkpointer, "waits", not hasattr(checkpointer, "wait_until_finished"))


def _find_timeout(checkpointer: Any) -> int:
    """For how many seconds a checkpointer, of Orbax itself or not, writes in the background."""
    theirs = getattr(checkpointer, "_async_manager", None)
    default = AsyncOptions().timeout_secs
    return getattr(checkpointer, "timeout_secs", getattr(theirs, "_timeout_secs", default))


def _refuse_both(**given: Any) -> None:
    """Refuses arguments that exclude each other."""
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1 and names != ["item_names", "item_handlers"]:
        raise tx.UsageError(f"Expected {names[0]}= or {names[1]}=, got both")
