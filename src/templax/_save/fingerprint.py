"""JAX. The fingerprint of a tree in memory."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from .._catalog.catalog import Catalog
from .._catalog.fingerprint import Fingerprint, combine_fingerprints, recorded_fingerprint
from .._catalog.written import Leaf
from .._codecs.crc32c import crc32c
from .._codecs.crc_combine import crc_of_zeros
from .._core.boxes import Box, shape_of
from .._core.chunk_grid import chunk_shape, iter_cells
from .._core.memory import Scratch
from .._core.text import list_names
from .._hosts.agreement import Hosts, open_call
from .._jax.coordination import is_connected
from ..errors import SaveError, UsageError
from .chunk_bytes import crc_contribution, fetch_pieces, gather_box, leaf_crcs
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
    if is_connected():
        tree = jax.tree.map(_take_replica, tree)
    leaves, _ = collect_leaves(tree)
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


def _take_replica(leaf: Any) -> Any:
    """An array of which this process has a copy, as an array of this process only."""
    spans = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    if not spans or not leaf.is_fully_replicated or not leaf.addressable_shards:
        return leaf
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf.addressable_data(0)
    data = jax.random.key_data(leaf).addressable_data(0)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))


def _compute_together(call: Hosts, leaves: Sequence[Leaf]) -> list[int]:
    """The crc32c of each leaf, of which all processes together have the values."""
    encode = msgspec.msgpack.Encoder().encode
    facts = [(leaf.name, leaf.dtype_name, leaf.user_shape) for leaf in leaves]
    call.join(
        leaves=np.fromiter((zlib.crc32(encode(f)) for f in facts), "<u4", len(facts)).tobytes(),
        values=digest_small(leaves),
        name_leaf=lambda i: leaves[i].name,
    )
    own = np.fromiter(map(_crc_of_own_part, leaves), "<u4", len(leaves))
    told = call.gather("computing checksums", own.tobytes())
    if call.index == 0:
        parts = np.array([np.frombuffer(data, "<u4") for data in told])
        for i, leaf in enumerate(leaves):
            owners = {owner for _, owner in leaf.owners}
            if len(owners) == 1:  # one process has all of it, to which it looks like its own
                own[i] = parts[owners.pop(), i]
            elif owners:
                own[i] = np.bitwise_xor.reduce(parts[:, i]) ^ crc_of_zeros(leaf.nbytes)
    crcs = call.tell_all("telling the checksums", own.tobytes())
    return np.frombuffer(crcs, "<u4").tolist()


def _crc_of_own_part(leaf: Leaf) -> int:
    """The crc32c of a leaf of this process; of another, what the boxes of this one contribute."""
    if leaf.tile is None:
        return next(leaf_crcs([leaf]))
    scratch, pieces, crc = Scratch(), fetch_pieces(leaf.pieces), 0
    for outer, _ in pieces:
        shape = shape_of(outer)
        for _, cell in iter_cells(shape, chunk_shape(shape, leaf.dtype.itemsize)):
            box = _shift(cell, outer)
            data = gather_box(box, leaf, pieces, scratch)
            crc ^= crc_contribution(data, box, leaf, crc32c(data))
    return crc


def _shift(cell: Box, outer: Box) -> Box:
    """A box within another one, as a box of the leaf."""
    return tuple((a + start, b + start) for (a, b), (start, _) in zip(cell, outer, strict=True))
