"""Digests of the values of which every process of a job holds a copy, to compare them.

Only the copy of process 0 is saved: another value on another process would be lost in silence.

A digest is pairs of little-endian uint32: the index of a leaf, and the crc32c of its bytes. A leaf
that lies on the devices of one process only looks local to this process, too, and the others have
no digest of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import structs

from .._catalog.written import Leaf
from .chunk_bytes import leaf_crcs

_SMALL_BYTES = 1024 * 1024
"""Values up to this size are compared before anything is written, larger ones while it is."""

_MAX_SMALL_BYTES = 64 * 1024 * 1024
_MAX_SMALL = 100_000
"""The most that is compared before anything is written, in bytes and in leaves."""

Selected = list[tuple[int, Leaf]]
"""Leaves with their index in the tree."""


def _select_small(leaves: Sequence[Leaf]) -> Selected:
    selected: Selected = []
    total = 0
    for i, leaf in enumerate(leaves):
        if leaf.tile is None and leaf.nbytes <= _SMALL_BYTES:
            total += leaf.nbytes
            if total > _MAX_SMALL_BYTES or len(selected) == _MAX_SMALL:
                break
            selected.append((i, leaf))
    return selected


def digest_small(leaves: Sequence[Leaf]) -> bytes:
    """The digest of the leaves that are compared before anything is written."""
    return digest_leaves(_select_small(leaves))


def select_large(leaves: Sequence[Leaf]) -> Selected:
    """The other local leaves. They keep their values, also when the writer lets go of its own."""
    small = {i for i, _ in _select_small(leaves)}
    return [
        (i, structs.replace(leaf))
        for i, leaf in enumerate(leaves)
        if leaf.tile is None and i not in small
    ]


def digest_leaves(selected: Selected) -> bytes:
    """The digest of leaves."""
    pairs = np.empty((len(selected), 2), "<u4")
    pairs[:, 0] = [i for i, _ in selected]
    pairs[:, 1] = list(leaf_crcs(leaf for _, leaf in selected))
    return pairs.tobytes()


def find_difference(digest: bytes, crcs: Sequence[int]) -> int | None:
    """The index of the first leaf in a digest that was saved with another value, or None.

    Args:
        digest: Of another process.
        crcs: The crc32c of each leaf, as saved.
    """
    for i, crc in np.frombuffer(digest, "<u4").reshape(-1, 2).tolist():
        if crcs[i] != crc:
            return i
    return None
