"""What a tree holds, in a few characters: equal for equal values, however they are laid out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from ._boxes import Shape
from ._catalog import Catalog
from ._errors import SaveError, UsageError


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


def fingerprint_of(leaves: Iterable[tuple[str, str, Shape, int]]) -> Fingerprint:
    """The fingerprint of leaves.

    Args:
        leaves: Name, dtype as a `LeafEntry` names it, shape, crc32c of the bytes.
    """
    found = sorted((name, dtype, list(shape), f"{crc:08x}") for name, dtype, shape, crc in leaves)
    digest = hashlib.sha256(msgspec.json.encode(found)).hexdigest()
    return Fingerprint(digest[:32], {name: crc for name, _, _, crc in found})


def fingerprint_of_catalog(catalog: Catalog) -> Fingerprint:
    """The fingerprint that a checkpoint records; `catalog.fingerprints` must not be None."""
    assert catalog.fingerprints is not None
    crcs = catalog.fingerprints()
    return fingerprint_of(
        (leaf.name, leaf.dtype_name, leaf.user_shape, crcs[leaf.name])
        for leaf in catalog.leaves.values()
    )


def fingerprint(tree: Any) -> Fingerprint:
    """The fingerprint of a tree's values, as a checkpoint saved from it records it.

    Args:
        tree: As of `save`; or a `Catalog` of `open`: what the checkpoint records.

    Raises:
        SaveError: A leaf holds no values, or is on other processes, too; by its name.
        UsageError: A path, or a checkpoint that records none: restore it first.

    Example:
        >>> import numpy as np, templax as tx
        >>> a = tx.fingerprint({"w": np.ones((2, 2), np.float32)})
        >>> a == tx.fingerprint({"w": np.ones((2, 2), np.float32, order="F")}), len(str(a))
        (True, 32)
    """
    if isinstance(tree, Catalog):
        if tree.fingerprints is None:
            raise UsageError(f"Expected a checkpoint that templax saved, got {tree.url}")
        return fingerprint_of_catalog(tree)
    if isinstance(tree, (str, os.PathLike)):
        raise UsageError(
            "Expected a tree, got a path; hint: templax.fingerprint(templax.open(path))"
        )
    from ._gather import crc_of
    from ._report import some
    from ._snapshot import leaves_of

    leaves, _ = leaves_of(tree)
    elsewhere = [leaf.name for leaf in leaves if leaf.tile is not None]
    if elsewhere:
        what = "Expected arrays of which this process has all, got others"
        raise SaveError(f"{what}: {some(elsewhere)}")
    return fingerprint_of(
        (leaf.name, leaf.dtype_name, leaf.user_shape, crc)
        for leaf, crc in zip(leaves, crc_of(leaves), strict=True)
    )
