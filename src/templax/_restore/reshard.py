"""JAX. Leaves that the processes of a job read together: where each part is placed, and the moves
to where the template wants them.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from msgspec import structs

from .._catalog.entry import Chunk
from .._core.dtypes import count_bits, is_narrow_float
from .._jax.versions import enter_mesh, shard_map
from .._match.result import Match
from .._plan.compare_layouts import choose_sharing
from .._plan.moves import DeviceMesh, Layout, Move
from .._plan.sharing import ACCELERATOR_RATES, CPU_RATES, Machine, ShareReads, Sharing
from .._template.jax_shardings import describe_sharding, find_local_boxes, has_free_axes
from .._template.placement import Placement
from .._template.template import Target
from .options import Verify


def share_reads(
    match: Match,
    chunks: Sequence[Mapping[str, Sequence[Chunk]]],
    share: ShareReads,
    remote: Sequence[bool],
    verify: Verify,
    machine: Machine,
) -> tuple[Match, Sharing]:
    """Chooses the leaves to read together.

    Args:
        match, chunks: See `build_plan`.
        share: See `restore`.
        remote, verify, machine: See `choose_sharing`.

    Returns:
        The match, with the targets of these leaves as they are read, and the choice.
    """
    known: dict[Any, DeviceMesh | None] = {}
    pairs = [pair for pair in match.pairs if pair.target.kind != "string"]
    meshes = [_find_mesh(pair.target, known) for pair in pairs]
    if not any(meshes):
        return match, Sharing()
    on_host = jax.default_backend() == "cpu"
    sharing = choose_sharing(
        pairs,
        meshes,
        chunks,
        process=jax.process_index(),
        share=share,
        remote=remote,
        rates=CPU_RATES if on_host else ACCELERATOR_RATES,
        verify=verify,
        machine=machine,
    )
    if not sharing.leaves:
        return match, sharing
    leaves = sharing.leaves
    placed = tuple(
        structs.replace(pair, target=_place_part(pair.target, leaves[pair.target.name].layout))
        if pair.target.name in leaves
        else pair
        for pair in match.pairs
    )
    return replace(match, pairs=placed), replace(sharing, on_host=on_host)


def _find_mesh(target: Target, known: dict[Any, DeviceMesh | None]) -> DeviceMesh | None:
    """The devices of a leaf's sharding; None if the leaf can't be moved, or is on one process."""
    placement: Placement | None = target.placement
    if target.kind != "array" or target.host or target.problems or placement is None:
        return None
    sharding = placement.sharding
    if not placement.usual or not isinstance(sharding, NamedSharding):
        return None
    if has_free_axes(sharding) or count_bits(target.dtype) < 8:
        return None
    mesh = sharding.mesh
    if mesh not in known:
        known[mesh] = _describe_mesh(mesh) if isinstance(mesh, Mesh) else None
    return known[mesh]


def _describe_mesh(mesh: Mesh) -> DeviceMesh | None:
    processes = tuple(device.process_index for device in mesh.devices.flat)
    counts = Counter(processes)
    if len(counts) < 2 or len(set(counts.values())) > 1:
        return None
    return DeviceMesh({str(axis): n for axis, n in mesh.shape.items()}, processes)


def _place_part(target: Target, layout: Layout) -> Target:
    """A target as it is read: the parts of this process in another layout over its mesh."""
    placement: Placement = target.placement
    assert isinstance(placement.sharding, NamedSharding)
    sharding = NamedSharding(placement.sharding.mesh, _make_spec(layout))
    boxes, devices = find_local_boxes(sharding, target.shape)
    placed = Placement(placement.leaf, sharding, None, devices, usual=True, weak=placement.weak)
    described = describe_sharding(sharding)
    return structs.replace(target, boxes=boxes, sharding=described, placement=placed)


def _make_spec(layout: Layout) -> PartitionSpec:
    return PartitionSpec(*(axes or None for axes in layout))


def make_mover(sharing: Sharing, agree: Callable[[], None]) -> Callable[[dict[str, Any]], None]:
    """Makes the function that moves the leaves of a restore; see `move_leaves`.

    Args:
        sharing: The leaves.
        agree: Called first: a process that failed would leave the others waiting in a collective.
    """

    def move(results: dict[str, Any]) -> None:
        agree()
        move_leaves(sharing, results)

    return move


def move_leaves(sharing: Sharing, results: dict[str, Any]) -> None:
    """Moves the leaves that were read together to where the template wants them.

    All processes of their meshes call this, after they have agreed that all of them have read
    their parts. The parts are deleted, group by group.

    Args:
        sharing: The leaves.
        results: Leaves by name. The parts are replaced by what the template wants.
    """
    for names in sharing.group_leaves():
        parts = [results[name] for name in names]
        moved: list[jax.Array] = []
        for name, part in zip(names, parts, strict=True):
            leaf = sharing.leaves[name]
            move = make_move(part.sharding, leaf.target.placement.sharding, leaf.moves)
            with enter_mesh(part.sharding.mesh):
                moved.append(move(part))
        jax.block_until_ready(moved)
        for name, part, whole in zip(names, parts, moved, strict=True):
            part.delete()
            results[name] = whole


@functools.lru_cache(maxsize=256)
def make_move(
    held: NamedSharding, wanted: NamedSharding, moves: tuple[Move, ...]
) -> Callable[[jax.Array], jax.Array]:
    """The function that moves an array from one sharding to another. It is compiled per shape."""

    def apply(shard: jax.Array) -> jax.Array:
        dtype, bits = shard.dtype, _view_bits(shard)
        for move in moves:
            if move.target is None:
                bits = jax.lax.all_gather(bits, move.axes, axis=move.source, tiled=True)
            else:
                bits = _exchange(bits, move, math.prod(held.mesh.shape[a] for a in move.axes))
        return bits if bits.dtype == dtype else jax.lax.bitcast_convert_type(bits, dtype)

    mapped = shard_map(apply, held.mesh, held.spec, wanted.spec)
    return jax.jit(mapped, out_shardings=wanted)


def _view_bits(shard: jax.Array) -> jax.Array:
    """Narrow floats as integers: on CPU, XLA would convert them to float32 and back, which takes
    twice as long and changes NaNs.
    """
    if not is_narrow_float(shard.dtype):
        return shard
    return jax.lax.bitcast_convert_type(shard, jnp.dtype(f"uint{8 * shard.dtype.itemsize}"))


def _exchange(shard: jax.Array, move: Move, parts: int) -> jax.Array:
    """`jax.lax.all_to_all` of a shard that is cut along `move.target` and joined along `source`.

    The pieces that are sent lie in memory one after another, which is twice as fast on CPU.
    """
    assert move.target is not None
    shape = list(shard.shape)
    shape[move.target : move.target + 1] = parts, shape[move.target] // parts
    pieces = jnp.moveaxis(shard.reshape(shape), move.target, 0)
    pieces = jax.lax.all_to_all(pieces, move.axes, 0, 0, tiled=True)
    joined = list(pieces.shape[1:])
    joined[move.source] *= parts
    return jnp.moveaxis(pieces, 0, move.source).reshape(joined)
