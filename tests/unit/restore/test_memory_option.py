"""The option `memory`: batches, scratch and threads."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import templax as tx
from helpers import CKPT, assert_same_tree, shard_over
from stored_leaves import make_pair, make_plan, save_leaves
from templax._catalog.entry import Chunk, Extent
from templax._plan.build import build_plan
from templax._plan.plan import IN_FLIGHT

make_host_pair = functools.partial(make_pair, host=True)


@pytest.fixture
def copying_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU devices are treated like accelerators, which copy: host memory has to be freed."""
    monkeypatch.setattr("templax._template.from_pytree.device_put_copies", lambda *_: True)


@pytest.mark.usefixtures("copying_devices")
@pytest.mark.parametrize("memory", [1, 100_000, 400_000, 1 << 30])
def test_batches_in_flight_stay_within_memory(tmp_path: Path, memory: int) -> None:
    path, tree = save_leaves(tmp_path)
    template = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in tree.items()}
    made = tx.plan(path, template, memory=memory)
    leaf_bytes = 64 * 256 * 4
    windows = [
        sum(b.transient_bytes for b in made.batches[i : i + IN_FLIGHT + 1])
        for i in range(len(made.batches))
    ]
    assert max(windows) <= max(memory, (IN_FLIGHT + 1) * leaf_bytes)
    assert_same_tree(tx.run(made), tree, kinds=False)


@pytest.mark.usefixtures("copying_devices")
def test_transfers_of_a_batch_end_before_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise slow transfers would hold more host memory than `memory=`."""
    path, tree = save_leaves(tmp_path)
    template = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in tree.items()}
    made = tx.plan(path, template, memory=1)
    waited: list[int] = []
    wait = jax.block_until_ready
    monkeypatch.setattr(jax, "block_until_ready", lambda x: waited.append(len(x)) or wait(x))
    tx.run(made)
    assert waited == [len(batch.buffers) for batch in made.batches] == [1] * 12


@pytest.mark.usefixtures("copying_devices")
def test_a_leaf_larger_than_memory_is_loaded_box_by_box(tmp_path: Path) -> None:
    path, tree = save_leaves(tmp_path, 1, (512, 64))
    n = len(jax.devices())
    where = shard_over(n, "x", None)
    template = {"l0": jax.ShapeDtypeStruct((512, 64), jnp.float32, sharding=where)}
    made = tx.plan(path, template, memory=1)
    assert [len(b.buffers) for b in made.batches] == [1] * n
    restored = tx.run(made)["l0"]
    assert restored.sharding == where
    assert_same_tree(restored, tree["l0"], kinds=False)
    stats = tx.last_restore()
    assert stats is not None
    assert stats.read_bytes == 512 * 64 * 4  # each byte is read once


@pytest.mark.usefixtures("copying_devices")
def test_boxes_that_share_a_chunk_are_loaded_together() -> None:
    """Otherwise the chunk would be decoded once per box."""
    catalog = tx.open(CKPT)
    where = shard_over(len(jax.devices()), None, "x")
    template = {"big": jax.ShapeDtypeStruct((128, 64), jnp.float32, sharding=where)}
    made = tx.plan(catalog, template, at="state.params", extra="ignore", memory=1)
    assert made.decoded_chunks == 1
    assert len(made.batches) == 1


def test_threads_are_reduced_so_that_their_scratch_fits() -> None:
    values = np.zeros((8, 8), np.float32)
    pair = make_host_pair("w", values, (((0, 8), (0, 3)),))
    chunk = Chunk(Extent("f", 0, 200), ((0, 8), (0, 8)), ("zstd",))
    match = make_plan(pair, w=(chunk,)).match
    assert build_plan(match, [{"w": (chunk,)}], threads=8, memory=1 << 20).threads == 8
    assert build_plan(match, [{"w": (chunk,)}], threads=8, memory=2000).threads == 2
    assert build_plan(match, [{"w": (chunk,)}], threads=8, memory=1).threads == 1
