"""JAX. Orbax's older spelling, `save(step, items, save_kwargs)`, with handlers instead of args."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import templax as tx

from .args import Composite
from .handlers.calls import Use, take_args

ONLY_ITEM = "default"
"""Name of the item of a step that has a single, unnamed item."""


class Handlers:
    """The handlers that old code gave a manager, which tell what each item is.

    Args:
        named: A checkpointer or handler, or a mapping of item names to them; None if the code is
            new and names the kind of each item by `args=`.
    """

    def __init__(self, named: Any):
        self.by_name = isinstance(named, Mapping)
        given: Mapping[str, Any] = {} if named is None else {ONLY_ITEM: named}
        given = named if isinstance(named, Mapping) else given
        self._handlers = {name: getattr(each, "handler", each) for name, each in given.items()}

    def __bool__(self) -> bool:
        return bool(self._handlers)

    def translate(
        self,
        items: Any,
        options: Mapping[str, Any] | None,
        use: Use,
        *,
        several: bool,
    ) -> Any:
        """Items and their keyword arguments as args.

        Args:
            items: The only item; or item name → item.
            options: Its keyword arguments; or item name → keyword arguments.
            use: Which args of the handlers to make.
            several: Whether `items` are named.

        Raises:
            UsageError: There is no handler for an item.
        """
        options = options or {}
        if not self._handlers:
            raise tx.UsageError(f"Expected args=, got items={items!r} and no checkpointer for them")
        if not several:
            return take_args(self._handlers[ONLY_ITEM], use, (items,), dict(options))
        for name in items:
            if name not in self._handlers:
                raise tx.UsageError(f"Expected an item that has a checkpointer, got `{name}`")
        return Composite(
            **{
                name: take_args(self._handlers[name], use, (item,), options.get(name) or {})
                for name, item in items.items()
            }
        )
