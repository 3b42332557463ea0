"""Saves in the background: values, donation, failures, progress, memory and signals."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import templax as tx
from helpers import run_python
from templax._save import job as job_module
from templax._save import snapshot, writer


def test_values_may_change_once_a_background_save_returns(tmp_path: Path) -> None:
    host = np.arange(3_000_000, dtype=np.float32)
    small = np.arange(10)
    tree = {"host": host, "small": small, "device": jnp.arange(2_000_000), "n": 5}
    want = jax.tree.map(np.array, tree)
    saved = tx.save(tmp_path / "ckpt", tree, wait=False)
    host[:] = -1
    small[:] = -1
    tree["device"].delete()
    saved.wait()
    restored = tx.restore(tmp_path / "ckpt", want)
    jax.tree.map(np.testing.assert_array_equal, restored, want)


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_arrays_donated_during_a_save_are_saved_unchanged(
    sharded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Donation during the write: without a reference, a step would overwrite them in place."""
    go = threading.Event()
    real = writer.Writer._write_chunks

    def late(*args: Any) -> None:
        assert go.wait(60)
        real(*args)

    monkeypatch.setattr(writer.Writer, "_write_chunks", late)
    values = jnp.arange(1_000_000, dtype=jnp.float32).reshape(8, -1)
    if sharded:
        mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
        spec = jax.sharding.PartitionSpec("x")
        values = jax.device_put(values, jax.sharding.NamedSharding(mesh, spec))
    step = jax.jit(lambda x: -x - 1, donate_argnums=0)
    fresh = step(values + 0)  # without a save, donated memory is reused
    place = fresh.addressable_data(0).unsafe_buffer_pointer()
    assert step(fresh).addressable_data(0).unsafe_buffer_pointer() == place
    want = np.array(values)
    saved = tx.save(tmp_path / "ckpt", {"w": values}, wait=False)
    for _ in range(3):
        values = jax.block_until_ready(step(values))
    go.set()
    np.testing.assert_array_equal(tx.restore(saved.wait().path, {"w": want})["w"], want)


def block_commits(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Saves wait before they are committed until the event is set."""
    go = threading.Event()
    describe = job_module.Job._write_small_files

    def wait(job: Any, files: Any) -> Any:
        assert go.wait(60)
        return describe(job, files)

    monkeypatch.setattr(job_module.Job, "_write_small_files", wait)
    return go


def test_a_handle_reports_the_state_of_its_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = block_commits(monkeypatch)
    saved = tx.save(tmp_path / "ckpt", {"w": jnp.ones(3)}, wait=False)
    assert not saved.done()
    assert "not finished" in repr(saved)
    with pytest.raises(TimeoutError, match="still being saved"):
        saved.wait(0.01)
    with pytest.raises(tx.UsageError, match="wait"):
        _ = saved.nbytes
    assert not (tmp_path / "ckpt").exists()
    go.set()
    assert saved.wait() is saved
    assert saved.done()
    files = [f for f in (tmp_path / "ckpt").rglob("*") if f.is_file()]
    assert saved.nbytes == sum(f.stat().st_size for f in files)
    assert saved.seconds >= saved.stages["write"] >= 0


def test_a_save_waits_for_the_previous_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = block_commits(monkeypatch)
    first = tx.save(tmp_path / "1", {"w": jnp.ones(3)}, wait=False)
    threading.Timer(0.2, go.set).start()
    tx.save(tmp_path / "2", {"w": jnp.ones(3)})
    assert first.done()


def test_an_unreported_failure_is_raised_by_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(job: Any, files: Any) -> None:
        raise tx.SaveError("No space is left", file="x")

    with monkeypatch.context() as patch:
        patch.setattr(job_module.Job, "_write_small_files", full)
        saved = tx.save(tmp_path / "1", {"w": jnp.ones(3)}, wait=False)
        saved._outcome.wait_for_end()
    with pytest.raises(tx.SaveError, match="An earlier save failed: No space is left"):
        tx.save(tmp_path / "2", {"w": jnp.ones(3)})
    assert os.listdir(tmp_path) == []
    tx.save(tmp_path / "2", {"w": jnp.ones(3)})  # raised only once
    with pytest.raises(tx.SaveError, match="No space"):
        saved.wait()


def test_a_reported_failure_is_not_raised_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(job_module.Job, "_write_small_files", lambda job, files: 1 / 0)
        saved = tx.save(tmp_path / "1", {"w": jnp.ones(3)}, wait=False)
        with pytest.raises(ZeroDivisionError):
            saved.wait()
    tx.save(tmp_path / "2", {"w": jnp.ones(3)})


@pytest.mark.slow
def test_the_process_waits_for_a_save_at_exit(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np, templax as tx\n"
        "tx.save(sys.argv[1], {'w': np.ones(20_000_000, np.float32)}, wait=False, threads=4)\n"
    )
    done = run_python("-c", code, tmp_path / "ckpt")
    assert done.returncode == 0, done.stderr
    assert tx.open(tmp_path / "ckpt").nbytes == 80_000_000


@pytest.mark.slow
def test_the_process_reports_a_failed_save_at_exit(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np, templax as tx\n"
        "from templax._save import job as job_module\n"
        "def full(job, files): raise tx.SaveError('No space is left')\n"
        "job_module.Job._write_small_files = full\n"
        "tx.save(sys.argv[1], {'w': np.ones(3)}, wait=False)\n"
    )
    done = run_python("-c", code, tmp_path / "ckpt")
    assert "ckpt was NOT saved: No space is left" in done.stderr
    assert "Traceback" not in done.stderr


def test_progress_ends_with_all_bytes(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    tree = {f"w{i}": np.zeros(10_000_000, np.uint8) for i in range(4)}
    tx.save(tmp_path / "ckpt", tree, on_progress=lambda *at: seen.append(at), compression="zstd")
    assert seen == sorted(seen)
    assert seen[-1] == (40_000_000, 40_000_000)
    assert {total for _, total in seen} == {40_000_000}


def test_an_exception_of_on_progress_stops_the_save(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        tx.save(tmp_path / "ckpt", {"w": np.zeros(1_000_000)}, on_progress=stop)
    assert os.listdir(tmp_path) == []
    assert threading.active_count() == before


def test_at_most_memory_bytes_are_fetched_from_devices_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CPU arrays stand in for device arrays."""
    lock, held, most = threading.Lock(), 0, 0
    leaf_bytes = 1_000_000

    class Fetched(np.ndarray):
        def __del__(self) -> None:
            nonlocal held
            if self.base is None:
                with lock:
                    held -= leaf_bytes

    def fetch(value: np.ndarray) -> np.ndarray:
        nonlocal held, most
        with lock:
            held += leaf_bytes
            most = max(most, held)
        copy = np.ndarray.__new__(Fetched, value.shape, value.dtype)
        copy[...] = value
        return copy

    def leaves_of(tree: Any) -> Any:
        leaves, empties = snapshot.collect_leaves(tree)
        for leaf in leaves:
            ((box, own),) = leaf.pieces
            leaf.pieces = ((box, lambda own=own: fetch(own())),)
            leaf.transient = True
        return leaves, empties

    monkeypatch.setattr(job_module, "collect_leaves", leaves_of)
    tree = {f"w{i:02}": np.full(leaf_bytes, i, np.uint8) for i in range(20)}
    tx.save(tmp_path / "ckpt", tree, memory=3 * leaf_bytes, threads=8)
    assert leaf_bytes <= most <= 3 * leaf_bytes
    jax.tree.map(np.testing.assert_array_equal, tx.restore(tmp_path / "ckpt", tree), tree)


def test_a_leaf_larger_than_memory_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = {"a": np.arange(2_000_000), "b": np.arange(3)}
    tx.save(tmp_path / "ckpt", tree, memory=1, threads=2)
    jax.tree.map(np.testing.assert_array_equal, tx.restore(tmp_path / "ckpt", tree), tree)


def test_a_save_leaves_no_copy_in_the_cache_of_jax() -> None:
    """Such a copy would live in host memory as long as the array."""
    packed = jnp.arange(8).astype(jnp.int4)  # JAX has no view of packed values
    leaves, _ = snapshot.collect_leaves({"x": packed})
    assert [int(v) for v in leaves[0].pieces[0][1]()] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert packed._npy_value is None  # pyright: ignore


@pytest.mark.slow
def test_a_signal_handler_may_save_during_a_save(tmp_path: Path) -> None:
    """A preemption notice, for example, arrives as a signal."""
    code = (
        "import signal, sys, numpy as np, templax as tx\n"
        "from templax._save import job as job_module\n"
        "def handler(*_):\n"
        "    tx.save(sys.argv[1] + '/emergency', {'w': np.ones(3)})\n"
        "    print('saved', flush=True)\n"
        "signal.signal(signal.SIGTERM, handler)\n"
        "real = job_module.copy_values\n"
        "def copied(*args):\n"
        "    if not copied.done:\n"
        "        copied.done = True\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "    real(*args)\n"
        "copied.done = False\n"
        "job_module.copy_values = copied\n"
        "tx.save(sys.argv[1] + '/usual', {'w': np.ones(3)}, wait=False).wait()\n"
    )
    done = run_python("-c", code, tmp_path)
    assert done.stdout == "saved\n", done.stderr
    assert sorted(os.listdir(tmp_path)) == ["emergency", "usual"]


def test_a_save_started_by_on_progress_is_refused(tmp_path: Path) -> None:
    def again(done: int, total: int) -> None:
        tx.save(tmp_path / "inner", {"w": np.ones(3)})

    saved = tx.save(tmp_path / "outer", {"w": np.ones(3)}, wait=False, on_progress=again)
    with pytest.raises(tx.UsageError, match="inside of another"):
        saved.wait(60)
    assert os.listdir(tmp_path) == []
