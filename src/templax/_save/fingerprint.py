"""JAX. The fingerprint of a tree in memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import jax.core
import msgspec

from .._catalog.catalog import Catalog
from .._catalog.fingerprint import Fingerprint, combine_fingerprints, recorded_fingerprint
from .._catalog.written import Leaf
from .._codecs.crc_combine import crc_of_zeros
from .._hosts.agreement import join_job
from .._template.flatten import flatten_tree
from ..errors import SaveError, UsageError
from .chunk_bytes import leaf_crcs, pieces_contribution
from .owners import holds_all
from .snapshot import collect_leaves


def fingerprint(tree: Any) -> Fingerprint:
    """The fingerprint of a tree's values, as a checkpoint saved from it records it.

    Args:
        tree: Any pytree that `save` takes. Of a `Catalog`, which `open` returns, the result is the
            fingerprint that the checkpoint records.

    Returns:
        A `Fingerprint`, which depends on the names, dtypes, shapes and values of the leaves, and
        not on their memory layout or sharding.

    In a job of several processes, the fingerprint of a tree of which this process has all, on
    whichever of its devices, is computed here. If an array lies in part or wholly on other
    processes, the call is collective: every process makes it, with the same tree, and gets the same
    fingerprint, in which leaves that each process has for itself count as process 0 has them, as
    in a save.

    Raises:
        SaveError: A leaf holds no values; the message names it. Or several processes compute the
            fingerprint, and one of them failed or has another tree; the message names that process.
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
    if _needs_others(tree):
        return _compute_together(tree)
    leaves, _ = collect_leaves(tree, replicas=True)
    return _combine(leaves, list(leaf_crcs(leaves)))


def _needs_others(tree: Any) -> bool:
    """Whether this process lacks a part of some array of the tree."""
    try:
        leaves = flatten_tree(tree).leaves
    except ValueError:  # not a pytree, as `collect_leaves` says in its own words
        return False
    for leaf in leaves:
        if hasattr(leaf, "__jax_array__") and not isinstance(leaf, jax.Array):
            leaf = leaf.__jax_array__()
        if isinstance(leaf, jax.core.Tracer) or not isinstance(leaf, jax.Array):
            continue
        if not holds_all(leaf):
            return True
    return False


class _Share(msgspec.Struct, array_like=True):
    """What one process sends.

    Attributes:
        facts: A digest of what has to be equal on all processes: names, dtypes and shapes.
        crcs: For each leaf, the crc32c of all its bytes, if this process has them.
        contributions: For each leaf, what this process's pieces contribute to its crc32c.
    """

    facts: bytes
    crcs: list[int | None]
    contributions: list[int]


def _compute_together(tree: Any) -> Fingerprint:
    """The fingerprint of a tree of which no process has all. All processes of the job call this.

    Each computes what the boxes that a save would have it write contribute. Process 0 combines
    this, and tells all.
    """
    with join_job("a fingerprint") as job:
        leaves, _ = collect_leaves(tree, replicas=True)
        facts = [(leaf.name, leaf.dtype_name, leaf.shape) for leaf in leaves]
        digest = hashlib.sha256(msgspec.msgpack.encode(facts)).digest()
        own = [leaf for leaf in leaves if leaf.tile is None]
        crcs = iter(leaf_crcs(own))
        share = _Share(
            digest,
            [next(crcs) if leaf.tile is None else None for leaf in leaves],
            [0 if leaf.tile is None else pieces_contribution(leaf) for leaf in leaves],
        )
        gathered = job.gather("computing a fingerprint", msgspec.msgpack.encode(share))
        answer: list[int] | str = ""
        if job.index == 0:
            shares = [msgspec.msgpack.decode(data, type=_Share) for data in gathered]
            answer = _merge_shares(leaves, shares)
        told = job.tell_all("combining a fingerprint", msgspec.msgpack.encode(answer))
        answer = msgspec.msgpack.decode(told, type=list[int] | str)
    if isinstance(answer, str):
        raise SaveError(answer, hint="call fingerprint with the same tree on every process")
    return _combine(leaves, answer)


def _merge_shares(leaves: Sequence[Leaf], shares: Sequence[_Share]) -> list[int] | str:
    """On process 0, the crc32c of each leaf, or why there is none."""
    others = [i for i, share in enumerate(shares) if share.facts != shares[0].facts]
    if others:
        return (
            "Expected the tree of process 0, got other leaves, dtypes or shapes on process"
            f" {', '.join(map(str, others))}"
        )
    crcs: list[int] = []
    for i, leaf in enumerate(leaves):
        crc = shares[0].crcs[i]
        if crc is None:
            owners = {process for _, process in leaf.owners}
            whole = [shares[process].crcs[i] for process in owners]
            crc = next((crc for crc in whole if crc is not None), None)
            if crc is None:
                crc = crc_of_zeros(leaf.nbytes)
                for process in owners:
                    crc ^= shares[process].contributions[i]
        crcs.append(crc)
    return crcs


def _combine(leaves: Sequence[Leaf], crcs: Sequence[int]) -> Fingerprint:
    return combine_fingerprints(
        (leaf.name, leaf.dtype_name, leaf.user_shape, crc)
        for leaf, crc in zip(leaves, crcs, strict=True)
    )
