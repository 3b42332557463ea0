"""The fingerprint of a tree in memory."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from .._catalog.catalog import Catalog
from .._catalog.fingerprint import Fingerprint, combine_fingerprints, recorded_fingerprint
from .._catalog.written import Leaf
from .._codecs.crc_combine import crc_of_zeros
from .._core.names import join_path
from .._core.text import list_names
from .._hosts.agreement import Hosts, open_call
from ..errors import SaveError, UsageError
from .chunk_bytes import leaf_crcs, pieces_contribution
from .local_values import digest_small
from .snapshot import collect_leaves


def fingerprint(tree: Any, *, timeout: float | None = None) -> Fingerprint:
    """The fingerprint of a tree's values, as a checkpoint saved from it records it.

    Args:
        tree: Any pytree that `save` takes. Of a `Catalog`, which `open` returns, the result is the
            fingerprint that the checkpoint records.
        timeout: In a job of several processes, the seconds to wait for one that is alive and has
            not come to this call; see `save`. If processes hold parts of an array, all of them make
            this call, and all get the same result. Otherwise none waits for another.

    Returns:
        A `Fingerprint`, which depends on the names, dtypes, shapes and values of the leaves, and
        not on their memory layout or sharding.

    Raises:
        SaveError: A leaf holds no values (the message names it); or the processes of a job have
            different trees, or one of them failed or is absent.
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
    leaves, _ = collect_leaves(tree, replicas=True)
    elsewhere = [leaf.name for leaf in leaves if leaf.tile is not None]
    if all(len({owner for _, owner in leaf.owners}) < 2 for leaf in leaves):
        # Processes that have all of their leaves wait for nobody, so nobody can wait for them.
        if elsewhere:
            what = "Expected arrays of which this process has a part, got others"
            raise SaveError(f"{what}: {list_names(elsewhere)}")
        crcs: Sequence[int] = list(leaf_crcs(leaves))
    else:
        with open_call("fingerprinting", "a tree", timeout=timeout) as call:
            crcs = _compute_together(call, leaves)
    return combine_fingerprints(
        (leaf.name, leaf.dtype_name, leaf.user_shape, crc)
        for leaf, crc in zip(leaves, crcs, strict=True)
    )


def _compute_together(call: Hosts, leaves: Sequence[Leaf]) -> list[int]:
    """The crc32c of each leaf, of which all processes together have the values."""
    encode = msgspec.msgpack.Encoder().encode
    facts = [(leaf.name, leaf.dtype_name, leaf.user_shape) for leaf in leaves]
    call.join(
        leaves=np.fromiter((zlib.crc32(encode(f)) for f in facts), "<u4", len(facts)).tobytes(),
        values=digest_small(leaves),
        name_leaf=lambda i: leaves[i].name,
    )
    parts = (
        next(leaf_crcs([leaf])) if leaf.tile is None else pieces_contribution(leaf)
        for leaf in leaves
    )
    own = np.fromiter(parts, "<u4", len(leaves))
    told = call.gather("computing checksums", own.tobytes())
    if call.index == 0:
        table = np.array([np.frombuffer(data, "<u4") for data in told])
        for i, leaf in enumerate(leaves):
            owners = {owner for _, owner in leaf.owners}
            if len(owners) == 1:  # one process has all of it, to which it looks like its own
                own[i] = table[owners.pop(), i]
            elif owners:
                own[i] = np.bitwise_xor.reduce(table[:, i]) ^ crc_of_zeros(leaf.nbytes)
    crcs = call.tell_all("telling the checksums", own.tobytes())
    return np.frombuffer(crcs, "<u4").tolist()


def combine_saved(
    saved: Sequence[tuple[str | None, Sequence[Leaf]]], crcs: Sequence[Sequence[int]]
) -> Fingerprint:
    """The fingerprint of what was saved.

    Args:
        saved: Name of the item, or None if it is the only one, and its leaves.
        crcs: For each item, the crc32c of each leaf.
    """
    return combine_fingerprints(
        (
            leaf.name if name is None else join_path((name, *leaf.path)),
            leaf.dtype_name,
            leaf.user_shape,
            crc,
        )
        for (name, leaves), leaf_crcs in zip(saved, crcs, strict=True)
        for leaf, crc in zip(leaves, leaf_crcs, strict=True)
    )
