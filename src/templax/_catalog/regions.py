"""What the bytes of a checkpoint's files are that hold no values of leaves."""

from __future__ import annotations

from typing import Literal

import msgspec

ByteKind = Literal["leaf", "index", "padding", "gap", "orphan"]
"""What a byte is for:

- "leaf": it is part of the values of a leaf;
- "index": of a header, an index or metadata, which a reader needs;
- "padding": filled in, so that what follows is aligned or complete;
- "gap": in a file that is used, but nothing refers to it;
- "orphan": in a file that nothing refers to.
"""

BYTE_KINDS: tuple[ByteKind, ...] = ("leaf", "index", "padding", "gap", "orphan")


class Region(msgspec.Struct, frozen=True, gc=False):
    """A byte range of a file. Where it overlaps the values of a leaf, those bytes are the leaf's.

    Attributes:
        file: Key in the catalog's source.
        start, stop: Bytes, half open; None for the end of the file.
        kind: What the bytes are for. Of regions that overlap, the one of the earlier kind in
            `BYTE_KINDS` counts.
        what: What they are, in words of the format, such as "header".
    """

    file: str
    start: int
    stop: int | None
    kind: ByteKind
    what: str
