"""Where everything lies in a file that a save writes, before the values are known. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .._catalog.written import Leaf


@dataclass(slots=True, kw_only=True)
class Layout:
    """A file. Its positions are numbered as if the bytes of each leaf were one range.

    Attributes:
        leaves: The leaves whose bytes are in the file, in the order of the file.
        starts: Where the bytes of each begin.
        heads: What lies between them: pairs of a position and bytes, in order.
        size: Where the leaves end.
        jumps: Pairs of a position inside of a leaf, and bytes that interrupt the leaf there, which
            have no positions of their own.
    """

    leaves: Sequence[Leaf]
    starts: Sequence[int]
    heads: Sequence[tuple[int, bytes]] = ()
    size: int
    jumps: Sequence[tuple[int, bytes]] = ()
