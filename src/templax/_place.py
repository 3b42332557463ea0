"""JAX. Finished host buffers → arrays on devices; the tree is built when every leaf is there."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.experimental.layout import Format

from ._boxes import from_index
from ._dtypes import WIDE, cast_into, host_cast_is_exact
from ._errors import Damaged
from ._execute import SMALL_BYTES, Finished
from ._match import Match, Pair
from ._pytree import Placement, jax_holds
from ._template import Target

CAST_BLOCK = 1 << 20
"""Elements per cast by XLA; a shape of its own for each leaf would compile once per leaf."""


def place(match: Match, finished: Iterable[Finished]) -> tuple[Any, float]:
    """Places each batch as it comes and builds the tree.

    Args:
        match: Without mismatches.
        finished: The batches of its plan. Buffers are taken over: on CPU the arrays are them.

    Returns:
        The tree, of the template's treedef, and the seconds that casts took (those of all threads).
    """
    results: dict[str, Any] = {}
    cast_s = 0.0
    for done in finished:
        cast_s += done.cast_s + _place_batch(done, results)
    for pair in match.pairs:
        if pair.target.kind == "string":
            results[pair.target.name] = pair.entry.value
    leaves = []
    kept = set(match.kept)
    for target in match.template.targets:
        placement: Placement = target.placement
        if not target.has_data:
            leaves.append(placement.leaf)
        elif target.name in kept:
            leaves.append(_kept(placement))
        else:
            leaves.append(results[target.name])
    return jtu.tree_unflatten(match.template.treedef, leaves), cast_s


def _kept(placement: Placement) -> Any:
    """The template's own value; where it moves to a device, from a copy: its memory is not ours."""
    if placement.sharding is None:
        return placement.leaf
    value = placement.leaf
    if isinstance(value, (np.ndarray, np.generic)):
        value = np.array(value)
    return jax.device_put(value, _where(placement.sharding, placement.layout))


def _where(sharding: jax.sharding.Sharding, layout: Any) -> Any:
    return sharding if layout is None else Format(layout, sharding)


def _place_batch(done: Finished, results: dict[str, Any]) -> float:
    """Adds the leaves of a batch to `results`; returns the seconds that casts took."""
    boxes: dict[str, tuple[Pair, list[np.ndarray]]] = {}
    cast_s = 0.0
    for buffer, array in zip(done.batch.buffers, done.arrays, strict=True):
        target = buffer.pair.target
        if target.kind != "scalar" and array.dtype != target.dtype:
            begin = time.perf_counter()
            array = cast(array, target.dtype)
            cast_s += time.perf_counter() - begin
        boxes.setdefault(target.name, (buffer.pair, []))[1].append(array)

    plain: list[tuple[str, np.ndarray]] = []
    for name, (pair, arrays) in boxes.items():
        target, placement = pair.target, pair.target.placement
        if target.kind == "scalar":
            results[name] = _number(target.dtype, arrays[0])
        elif target.kind == "key":
            results[name] = _key(pair, arrays[0], placement)
        elif target.host:
            results[name] = _numpy(placement.leaf, arrays[0])
        elif placement.sharding is None:
            plain.append((name, arrays[0]))
        else:
            results[name] = _sharded(target, placement.sharding, placement.layout, arrays)
    placed = jax.device_put([a for _, a in plain])
    for (name, _), value in zip(plain, placed, strict=True):
        results[name] = value
    return cast_s


def _sharded(
    target: Target, sharding: jax.sharding.Sharding, layout: Any, arrays: Sequence[np.ndarray]
) -> jax.Array:
    """An array on devices, from one host array per box of this process."""
    of_box = dict(zip(target.boxes, arrays, strict=True))

    def piece(index: tuple[slice, ...] | None) -> np.ndarray:
        return of_box[target.boxes[0] if index is None else from_index(index, target.shape)]

    where = _where(sharding, layout)
    return jax.make_array_from_callback(target.shape, where, piece, dtype=target.dtype)


def _numpy(leaf: Any, array: np.ndarray) -> Any:
    """A numpy result of its own memory, in the byte order of the template's leaf."""
    if not isinstance(leaf, np.ndarray):
        return array[()]
    if array.nbytes <= SMALL_BYTES:
        array = array.copy()  # it lies in an arena, which it would keep alive
    return array.astype(leaf.dtype, copy=False)


def _number(dtype: np.dtype, array: np.ndarray) -> int | float | bool | complex:
    python = {"i": int, "f": float, "b": bool, "c": complex}[dtype.kind]
    return python(array[()])


def _key(pair: Pair, data: np.ndarray, placement: Placement) -> jax.Array:
    try:
        placed = jax.device_put(data)  # with a mesh set, jnp.asarray would go all over it
        key = jax.random.wrap_key_data(placed, impl=pair.target.key_impl)
    except (TypeError, ValueError) as error:
        raise Damaged(
            f"Expected key data for PRNG `{pair.target.key_impl}`, got shape {data.shape}",
            leaf=pair.target.name,
        ) from error
    return key if placement.sharding is None else jax.device_put(key, placement.sharding)


def cast(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`jnp.asarray(values).astype(dtype)` on the host, bit for bit, NaNs included.

    XLA casts block by block. From and to what a `jax.Array` does not hold, numpy does.
    """
    out = np.empty(values.shape, dtype)
    known = values.dtype.name in WIDE or jax_holds(values.dtype)  # JAX cuts wide ones by itself
    if host_cast_is_exact(values.dtype, dtype) or not known or not jax_holds(dtype):
        cast_into(out, values)
        return out
    flat, flat_out = values.reshape(-1), out.reshape(-1)
    for start in range(0, flat.size, CAST_BLOCK):
        block = flat[start : start + CAST_BLOCK]
        size = min(CAST_BLOCK, 1 << (len(block) - 1).bit_length())
        padded = np.zeros(size, block.dtype)
        padded[: len(block)] = block
        # JAX itself cuts 64 bits by numpy, which would warn of what does not fit.
        quiet, allowed = np.errstate(all="ignore"), jax.transfer_guard("allow")
        with quiet, allowed, jax.ensure_compile_time_eval():
            done = np.asarray(jnp.asarray(padded).astype(dtype))
        flat_out[start : start + len(block)] = done[: len(block)]
    return out
