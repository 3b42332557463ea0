"""What a tree holds, in a few characters: equal for equal values, however they are laid out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from .._core.boxes import Shape
from .catalog import Catalog


@dataclass(frozen=True, slots=True, repr=False)
class Fingerprint:
    """Of the values of a tree; `str()` is that of all of it.

    Names, shapes, dtypes and bytes count; shardings, chunks, containers, formats and the order of
    the leaves do not. Two fingerprints are equal if their trees are, and differ otherwise but for
    one chance in 2^32 per leaf that differs: it finds mistakes, not forgers.

    Attributes:
        tree: 32 hexadecimal digits.
        leaves: Name → 8 hexadecimal digits: the crc32c of the leaf's bytes in C order,
            little-endian; elements of less than a byte take one each, its upper bits 0.
    """

    tree: str
    leaves: Mapping[str, str]

    def __str__(self) -> str:
        return self.tree

    def __repr__(self) -> str:
        return f"Fingerprint({self.tree!r}, {len(self.leaves):,} leaves)"


def combine_fingerprints(leaves: Iterable[tuple[str, str, Shape, int]]) -> Fingerprint:
    """The fingerprint of leaves.

    Args:
        leaves: Name, dtype as a `LeafEntry` names it, shape, crc32c of the bytes.
    """
    found = sorted((name, dtype, list(shape), f"{crc:08x}") for name, dtype, shape, crc in leaves)
    digest = hashlib.sha256(msgspec.json.encode(found)).hexdigest()
    return Fingerprint(digest[:32], {name: crc for name, _, _, crc in found})


def recorded_fingerprint(catalog: Catalog) -> Fingerprint:
    """The fingerprint that a checkpoint records; `catalog.fingerprints` must not be None."""
    assert catalog.fingerprints is not None
    crcs = catalog.fingerprints()
    return combine_fingerprints(
        (leaf.name, leaf.dtype_name, leaf.user_shape, crcs[leaf.name])
        for leaf in catalog.leaves.values()
    )
