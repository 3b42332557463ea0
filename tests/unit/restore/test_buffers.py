"""Arenas: small leaves share memory, but a subtree that is kept holds no other subtree."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import templax as tx
from templax._restore import buffers

MIB = 1 << 20


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """Returns the sizes of the allocations for leaves that are still held."""
    made: list[weakref.ref[np.ndarray]] = []
    allocate = buffers.allocate_aligned

    def record(nbytes: int) -> np.ndarray:
        memory = allocate(nbytes)
        made.append(weakref.ref(memory))
        return memory

    def held() -> list[int]:
        gc.collect()
        alive = [memory for ref in made if (memory := ref()) is not None]
        return [len(memory) for memory in alive if len(memory)]

    monkeypatch.setattr(buffers, "allocate_aligned", record)
    return held


def make_leaves(mib: int, kib: int = 256) -> dict[str, jax.Array]:
    return {f"l{i:02d}": jnp.ones(kib * 256) for i in range(mib * 1024 // kib)}


@pytest.mark.slow
def test_parameters_that_are_kept_do_not_hold_the_optimizer(
    tmp_path: Path, held: Callable[[], list[int]]
) -> None:
    state = {
        "opt": {"mu": make_leaves(10), "nu": make_leaves(10)},
        "params": make_leaves(10),
        "step": jnp.asarray(3),
    }
    tx.save(tmp_path / "a", state)
    restored = tx.restore(tmp_path / "a", state)
    assert 30 * MIB <= sum(held()) < 31 * MIB
    params = restored.pop("params")
    del restored
    assert 10 * MIB <= sum(held()) < 10.5 * MIB
    assert float(params["l03"][5]) == 1.0
    del params
    assert held() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "take"),
    [
        (lambda a, b: (a, b), lambda tree: tree[0]),
        (
            lambda a, b: {"state": {"x": {"params": a, "opt": b}}},
            lambda t: t["state"]["x"]["params"],
        ),
        (lambda a, b: [b, {"deep": {"er": a}}], lambda tree: tree[1]),
        (lambda a, b: {"key": jnp.ones(3), "s": {"p": a, "o": b}}, lambda tree: tree["s"]["p"]),
        (lambda a, b: {"opt": {"mu": a, "nu": b}, "p": dict(b)}, lambda tree: tree["opt"]["mu"]),
    ],
)
def test_a_subtree_at_any_depth_is_kept_alone(
    tmp_path: Path, held: Callable[[], list[int]], build: Any, take: Any
) -> None:
    tree = build(make_leaves(3, 64), make_leaves(6, 64))
    tx.save(tmp_path / "a", tree)
    restored = tx.restore(tmp_path / "a", tree)
    kept = take(restored)
    del restored
    assert 3 * MIB <= sum(held()) < 3.2 * MIB
    assert len(jax.tree.leaves(kept)) == 48


@pytest.mark.slow
def test_subtrees_whose_leaves_alternate_in_the_file_are_kept_apart(
    tmp_path: Path, held: Callable[[], list[int]]
) -> None:
    pairs = {f"l{i:02d}": {"p": jnp.ones(MIB // 16), "o": jnp.ones(MIB // 16)} for i in range(16)}
    tx.save(tmp_path / "a", pairs)
    template = {kind: {name: pairs[name][kind] for name in pairs} for kind in ("p", "o")}
    restored = tx.restore(
        tmp_path / "a", template, rename=lambda name: ".".join(reversed(name.split(".")))
    )
    kept = restored["p"]
    del restored
    assert 4 * MIB <= sum(held()) < 4.2 * MIB
    assert all(float(leaf.sum()) == MIB // 16 for leaf in kept.values())


@pytest.mark.slow
def test_thousands_of_small_leaves_still_share_a_few_arenas(
    tmp_path: Path, held: Callable[[], list[int]]
) -> None:
    tree = {f"layer{i}": {"w": np.ones(64, np.float32), "b": np.zeros(3)} for i in range(1500)}
    tree |= {f"flat{i}": np.ones(300, np.float32) for i in range(1500)}
    tx.save(tmp_path / "a", tree)
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), tree)
    with pytest.warns(tx.CastWarning):
        restored = tx.restore(tmp_path / "a", template)
    assert len(held()) <= 4
    assert len(jax.tree.leaves(restored)) == 4500
