"""A short digest of the values of a tree, independent of how they are laid out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from .._core.boxes import Shape
from .catalog import Catalog


@dataclass(frozen=True, slots=True, repr=False)
class Fingerprint:
    """A digest of the values of a tree; `str()` gives the digest of the whole tree.

    It depends on names, shapes, dtypes and bytes, and not on shardings, chunks, containers, formats
    or the order of the leaves. Equal trees have equal fingerprints. Two different trees have
    different ones, except with a probability of 2^-32 per differing leaf. It detects mistakes, not
    deliberate forgery.

    Attributes:
        tree: 32 hexadecimal digits.
        leaves: Name → 8 hexadecimal digits: the crc32c of the leaf's bytes in C order,
            little-endian; elements smaller than a byte take one byte each, with its upper bits 0.
    """

    tree: str
    leaves: Mapping[str, str]

    def __str__(self) -> str:
        return self.tree

    def __repr__(self) -> str:
        return f"Fingerprint({self.tree!r}, {len(self.leaves):,} leaves)"


def combine_fingerprints(leaves: Iterable[tuple[str, str, Shape, int]]) -> Fingerprint:
    """The fingerprint of a set of leaves.

    Args:
        leaves: Name, dtype as `LeafEntry.dtype_name` spells it, shape, and crc32c of the bytes.
    """
    import hashlib  # takes some ms

    found = sorted([(name, dtype, shape, f"{crc:08x}") for name, dtype, shape, crc in leaves])
    digest = hashlib.sha256(msgspec.json.encode(found)).hexdigest()
    return Fingerprint(digest[:32], {name: crc for name, _, _, crc in found})


def recorded_fingerprint(catalog: Catalog) -> Fingerprint:
    """The fingerprint that a checkpoint records. `catalog.fingerprints` must not be None."""
    assert catalog.fingerprints is not None
    crcs = catalog.fingerprints()
    known: dict[Any, tuple[str, Shape]] = {}
    leaves: list[tuple[str, str, Shape, int]] = []
    for name, leaf in catalog.leaves.items():
        kind = (leaf.dtype, leaf.shape, leaf.kind, leaf.key_impl)
        found = known.get(kind)
        if found is None:
            found = known[kind] = leaf.dtype_name, leaf.user_shape
        leaves.append((name, *found, crcs[name]))
    return combine_fingerprints(leaves)
