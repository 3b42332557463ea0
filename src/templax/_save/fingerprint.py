"""JAX. The fingerprint of a tree in memory."""

from __future__ import annotations

import os
from typing import Any

from .._catalog.catalog import Catalog
from .._catalog.fingerprint import Fingerprint, combine_fingerprints, recorded_fingerprint
from .._core.text import list_names
from ..errors import SaveError, UsageError
from .chunk_bytes import leaf_crcs
from .snapshot import collect_leaves


def fingerprint(tree: Any) -> Fingerprint:
    """The fingerprint of a tree's values, as a checkpoint saved from it records it.

    Args:
        tree: Any pytree that `save` takes. Of a `Catalog`, which `open` returns, the result is the
            fingerprint that the checkpoint records.

    Returns:
        A `Fingerprint`, which depends on the names, dtypes, shapes and values of the leaves, and
        not on their memory layout or sharding.

    Raises:
        SaveError: A leaf holds no values, or lies partly on other processes; the message names it.
        UsageError: `tree` is a path, or a checkpoint that records no fingerprint: restore it first.

    Example:
        >>> import numpy as np, templax as tx
        >>> a = tx.fingerprint({"w": np.ones((2, 2), np.float32)})
        >>> a == tx.fingerprint({"w": np.ones((2, 2), np.float32, order="F")}), len(str(a))
        (True, 32)
    """
    if isinstance(tree, Catalog):
        if tree.fingerprints is None:
            raise UsageError(f"Expected a checkpoint that templax saved, got {tree.url}")
        return recorded_fingerprint(tree)
    if isinstance(tree, (str, os.PathLike)):
        raise UsageError(
            "Expected a tree, got a path; hint: templax.fingerprint(templax.open(path))"
        )
    leaves, _ = collect_leaves(tree)
    elsewhere = [leaf.name for leaf in leaves if leaf.tile is not None]
    if elsewhere:
        what = "Expected arrays of which this process has all, got others"
        raise SaveError(f"{what}: {list_names(elsewhere)}")
    return combine_fingerprints(
        (leaf.name, leaf.dtype_name, leaf.user_shape, crc)
        for leaf, crc in zip(leaves, leaf_crcs(leaves), strict=True)
    )
