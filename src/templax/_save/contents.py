"""What a save is given under each name: a tree, a JSON value, or an item that other code writes."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .._core.arguments import PyTree
from ..formats.orbax.write import STANDARD
from .item import Json


@dataclass(frozen=True, slots=True)
class Tree:
    """An item that is a tree, where more is known of it than its values.

    Attributes:
        value: The tree.
        handler: The handler of Orbax that restores it, which the checkpoint names.
        metadata: JSON that is stored with the item, or None.
        shardings: Name of a leaf → its sharding as Orbax serialises it, instead of those of the
            values; None if those count.
        empty_tuples: Whether to record an empty tuple as a tuple, as Orbax does. Otherwise it is
            recorded as a list, because Orbax 0.6 fails on an empty tuple. A restore through a
            template gives a tuple in either case.
    """

    value: PyTree
    handler: str = STANDARD
    metadata: Any = None
    shardings: Mapping[str, str] | None = None
    empty_tuples: bool = False


@dataclass(frozen=True, slots=True)
class File:
    """An item that is a small file.

    Attributes:
        data: Its content.
        file: Its name.
        handler: See `Tree`.
    """

    data: bytes
    file: str
    handler: str


@dataclass(frozen=True, slots=True)
class Group:
    """An item whose directory holds several, such as a random key and its kind.

    Attributes:
        parts: The directory of each in that of the item → what it is.
        handler: See `Tree`.
    """

    parts: Mapping[str, Tree | Json]
    handler: str


class ForeignItem(abc.ABC):
    """An item whose files are written by other code than templax's.

    Every process of a job makes all calls but `finalize`, in this order.
    """

    handler: str
    """See `Tree`."""

    @abc.abstractmethod
    def begin(self, directory: str) -> None:
        """Writes the files, or begins to. Called in the thread of the caller of the save.

        Args:
            directory: The directory of the item, which exists. It moves when the save is committed.
        """

    @abc.abstractmethod
    def wait(self) -> None:
        """Returns once all files are written. Called in the thread that saves."""

    @abc.abstractmethod
    def finalize(self, directory: str) -> None:
        """Called on process 0 once all processes have written their files."""

    @abc.abstractmethod
    def stop(self) -> None:
        """Ends what `begin` has begun, since the save has failed. Never raises; idempotent."""


Content = Any
"""A `Tree`, `Json`, `File`, `Group` or `ForeignItem`; anything else is a tree itself."""
