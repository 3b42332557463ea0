"""Makes the leaves of finished host buffers, and builds the tree when every leaf is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from .._core.gc_pause import pause_gc
from .._core.memory import SMALL_BYTES
from .._match.result import Match
from .._plan.buffers import Buffer
from .._template.template import Target
from .cast import cast_array
from .execute import FilledBatch, StageSeconds

if TYPE_CHECKING:
    from .devices import DevicePlacer


def place_batches(
    match: Match,
    finished: Iterable[FilledBatch],
    move: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[Any, StageSeconds]:
    """Places each batch as it comes, then builds the tree.

    Args:
        match: A match without mismatches.
        finished: The batches of its plan. Their buffers now belong to the result: on CPU the arrays
            are the buffers.
        move: Called once all batches are placed, with the leaves by name: replaces those that lie
            elsewhere than the template wants them.

    Returns:
        The tree, with the template's treedef, and the seconds spent on the batches and here.
    """
    results: dict[str, Any] = {}
    placer = None
    if any(not pair.target.host for pair in match.pairs):
        from .devices import DevicePlacer  # imports JAX

        placer = DevicePlacer(results)
    busy = StageSeconds()
    for done in finished:
        begin = time.perf_counter()
        busy += done.busy
        with pause_gc():
            busy.cast_s += _place_batch(done, results, placer)
        busy.place_s += time.perf_counter() - begin
        del done  # frees its memory before the next batch needs more
    if move is not None:
        begin = time.perf_counter()
        placer = None
        move(results)
        busy.move_s = time.perf_counter() - begin
    begin = time.perf_counter()
    for pair in match.pairs:
        target = pair.target
        if target.kind == "string":
            results[target.name] = pair.entry.value
        elif not target.host and (not target.boxes or target.placement.weak):
            _finish_array(target, results)
    kept = set(match.kept)
    leaves = [
        t.placement.leaf
        if t.kind in ("skip", "static")
        else _keep_value(t)
        if t.name in kept
        else results[t.name]
        for t in match.template.targets
    ]
    tree = match.template.treedef.unflatten(leaves)
    busy.place_s += time.perf_counter() - begin
    return tree, busy


def _place_batch(done: FilledBatch, results: dict[str, Any], placer: DevicePlacer | None) -> float:
    """Adds the leaves of a batch to `results`; returns the seconds that casts took."""
    cast_s = 0.0
    for_devices: list[tuple[Buffer, np.ndarray]] = []
    for buffer, array in zip(done.batch.buffers, done.arrays, strict=True):
        target = buffer.pair.target
        if array.dtype != target.dtype and target.kind != "scalar":
            begin = time.perf_counter()
            array = cast_array(array, target.dtype)
            cast_s += time.perf_counter() - begin
        if target.kind == "scalar":
            results[target.name] = _make_number(target.dtype, array)
        elif target.host:
            results[target.name] = _make_numpy(target.placement.leaf, array)
        else:
            for_devices.append((buffer, array))
    if placer is not None:
        placer.place(for_devices)
    return cast_s


def _finish_array(target: Target, results: dict[str, Any]) -> None:
    """Completes a `jax.Array` of other processes, or of a weak type, after the last batch."""
    from .._jax.put import make_weak
    from .devices import make_remote_array

    if not target.boxes:
        results[target.name] = make_remote_array(target)
    if target.placement.weak:
        results[target.name] = make_weak(results[target.name])


def _keep_value(target: Target) -> Any:
    """The template's own value, where the template wants it."""
    if target.placement.sharding is None:
        return target.placement.leaf
    from .devices import keep_value

    return keep_value(target)


def _make_numpy(leaf: Any, array: np.ndarray) -> Any:
    """A numpy result that owns its memory, in the byte order of the template's leaf."""
    if not isinstance(leaf, np.ndarray):
        return array[()]
    if array.nbytes <= SMALL_BYTES:
        array = array.copy()  # it would keep its whole arena alive
    return array.astype(leaf.dtype, copy=False)


def _make_number(dtype: np.dtype, array: np.ndarray) -> int | float | bool | complex:
    python = {"i": int, "f": float, "b": bool, "c": complex}[dtype.kind]
    return python(array[()])
