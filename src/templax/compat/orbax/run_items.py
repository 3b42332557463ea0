"""JAX. Whether the items of a manager's steps have names, and which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import templax as tx

from ..._save.item import Json, check_item_names
from .args import (
    SAVES,
    Composite,
    PyTreeRestore,
    StandardRestore,
    item_contents,
    list_item_kinds,
)
from .legacy import ONLY_ITEM, Handlers
from .metadata.checkpoint import read_metadata
from .unmapped import unmapped_argument

METRICS = "metrics"
"""The item that holds the metrics of a step."""


class RunItems:
    """The items of the steps of a run: a single one, or several that have names.

    Which of the two it is, the arguments of the manager say; or else its first save or restore.

    Args:
        checkpointers, item_names, item_handlers, handler_registry: Those of the manager.

    Raises:
        UsageError: They contradict each other.
    """

    def __init__(
        self,
        checkpointers: Any,
        item_names: Iterable[str] | None,
        item_handlers: Any,
        handler_registry: Any,
    ):
        _refuse_both(
            checkpointers=checkpointers,
            item_names=item_names,
            item_handlers=item_handlers,
            handler_registry=handler_registry,
        )
        if handler_registry is not None:
            raise unmapped_argument(
                "handler_registry", "args= of save and restore name what each item is"
            )
        given = item_handlers if checkpointers is None else checkpointers
        self._handlers = Handlers(given)
        self._named: bool | None = None
        self._names: frozenset[str] | None = None
        if isinstance(given, Mapping) or item_names:
            self._named = True
            names = given if isinstance(given, Mapping) else {}
            self._names = frozenset([*names, *(item_names or ())])
        elif given is not None:
            self._named = False

    def read_save_args(self, items: Any, save_kwargs: Any, args: Any) -> Any:
        """The args of a save, translated from the older spelling if need be.

        Raises:
            UsageError: They are missing, or do not fit what the manager saves.
        """
        if isinstance(items, SAVES) or (args is None and items is None):
            raise tx.UsageError("Expected args=, such as ocp.args.StandardSave(tree), got none")
        if args is None:
            several = bool(self._named)
            args = self._handlers.translate(items, save_kwargs, "save", several=several)
        self._check_mode(args)
        if isinstance(args, Composite) and self._names is not None:
            for name in args:
                if name not in self._names:
                    raise tx.UsageError(
                        f"Expected items {', '.join(f'`{n}`' for n in sorted(self._names))}, got"
                        f" `{name}`, which does not match with any registered handler"
                    )
        self._named = isinstance(args, Composite)
        return args

    def read_restore_args(self, path: str, items: Any, restore_kwargs: Any, args: Any) -> Any:
        """The args of a restore.

        Args:
            path: The step.
            items, restore_kwargs, args: Those of the call.

        Raises:
            UsageError: They do not fit what the manager saves, or what the step holds.
        """
        if isinstance(items, (*SAVES, StandardRestore, PyTreeRestore)):
            raise tx.UsageError(f"Expected args=, got {type(items).__name__} as items=")
        kinds = list_item_kinds(path)
        single = not set(kinds) - {ONLY_ITEM, METRICS}
        if args is None and (items is not None or restore_kwargs):
            if self._handlers:
                args = self._handlers.translate(
                    items, restore_kwargs, "restore", several=bool(self._named)
                )
            else:
                args = PyTreeRestore(items, **(restore_kwargs or {}))
        elif args is None:
            return StandardRestore() if single else Composite(**dict.fromkeys(kinds))
        self._check_mode(args)
        if ONLY_ITEM in kinds:
            self._named = False
            self._check_mode(args)
        elif isinstance(args, Composite):
            self._named = True
        return args

    def make_contents(self, args: Any, metrics: Any) -> dict[str, Any]:
        """Item name → what to save under it.

        Args:
            args: Those of a save, from `read_save_args`.
            metrics: The metrics to save with it, or None.

        Raises:
            UsageError: An item can't have its name.
        """
        contents = item_contents(args, ONLY_ITEM)
        check_item_names(contents)
        if metrics is not None:
            if any(name.casefold() == METRICS for name in contents):
                raise tx.UsageError("Expected items of other names than `metrics`, got metrics=")
            contents[METRICS] = Json(metrics, METRICS)
        return contents

    def _check_mode(self, args: Any) -> None:
        if self._named is None or self._named == isinstance(args, Composite):
            return
        if self._named:
            raise tx.UsageError(
                "Must provide `args` of type `Composite` when dealing with multiple checkpointable"
                f" objects: expected args=ocp.args.Composite(...), as items have names here, got"
                f" {args!r}"
            )
        raise tx.UsageError(
            "Cannot provide `args` of type `Composite` when dealing with a single, unnamed"
            " (default) checkpointable object: expected args such as ocp.args.StandardSave(tree),"
            f" got {args!r}"
        )


def read_item_metadata(path: str) -> Any:
    """The metadata of the items of the step at a path; see `CheckpointManager.item_metadata`."""
    kinds = list_item_kinds(path)
    if not set(kinds) - {ONLY_ITEM, METRICS}:
        return read_metadata(path).item_metadata
    return Composite(
        **{
            name: read_metadata(f"{path}/{name}").item_metadata if kind == "pytree" else None
            for name, kind in kinds.items()
        }
    )


def _refuse_both(**given: Any) -> None:
    """Refuses arguments of which one stands for the other."""
    names = [name for name, value in given.items() if value is not None and value != ()]
    together = [{"item_names", "item_handlers"}]
    if len(names) > 1 and set(names) not in together:
        raise tx.UsageError(f"Expected {names[0]}= or {names[1]}=, got both")
    handlers = given["item_handlers"]
    if given["item_names"] and handlers is not None and not isinstance(handlers, Mapping):
        raise tx.UsageError("Expected item_handlers= as a dict with item_names=, got one handler")
