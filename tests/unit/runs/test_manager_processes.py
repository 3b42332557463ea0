"""Several managers of a run, in one process and in several."""

import gc
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

import templax as tx
from helpers import mark_slow
from run_directories import list_run
from templax._runs.steps import read_run

TREE = {"w": jnp.arange(12.0).reshape(3, 4), "b": jnp.zeros(4, jnp.bfloat16)}


WANT = {"w": jax.ShapeDtypeStruct((3, 4), jnp.float32), "b": TREE["b"]}


def test_one_manager_saves_while_others_can_restore(tmp_path):
    with tx.Manager(tmp_path) as first, tx.Manager(tmp_path) as second:
        first.save(1, TREE, wait=True)
        assert second.restore(WANT)["w"][0, 1] == 1
        with pytest.raises(tx.SaveError, match=r"found another templax\.Manager of this process"):
            second.save(2, TREE)
        first.close()
        second.save(2, TREE)
        with pytest.raises(tx.SaveError, match=r"found another templax\.Manager of this process"):
            first.save(3, TREE)
    assert first.steps() == [1, 2]


@pytest.mark.slow
def test_a_garbage_collected_manager_releases_the_lock(tmp_path):
    """In a notebook, for example, where a cell is run again."""
    manager = tx.Manager(tmp_path)
    manager.save(1, TREE)
    manager.wait()
    manager = tx.Manager(tmp_path)
    gc.collect()
    manager.save(2, TREE)
    manager.close()


TRAIN = """
import sys, jax.numpy as jnp, templax as tx
manager = tx.Manager(sys.argv[1], keep=2)
for step in range(int(sys.argv[2])):
    manager.save(step, {"w": jnp.full(1000, step)}, metrics={"loss": 1.0})
manager.wait()
print("saved", flush=True)
sys.stdin.read()
"""


def start_training(path, steps):
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(path), str(steps)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_another_process_that_saves_is_named_in_the_error(tmp_path):
    process = start_training(tmp_path, 4)
    try:
        assert process.stdout.readline() == "saved\n"
        with tx.Manager(tmp_path) as manager:
            assert manager.steps() == [2, 3]
            assert manager.restore({"w": jnp.zeros(1000, jnp.int32)})["w"][0] == 3
            with pytest.raises(tx.SaveError, match=f"process {process.pid} on "):
                manager.save(4, TREE)
            process.kill()
            process.wait()
            manager.save(4, TREE)
            manager.wait()
            assert manager.steps() == [2, 3, 4]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [0.01, *mark_slow(0.0, 0.003, 0.03, 0.1)])
def test_a_run_continues_from_its_latest_step_after_a_kill(tmp_path, delay_s):
    """Listed steps are complete; a leftover is removed when its step is saved again."""
    process = start_training(tmp_path, 10_000)
    while not list_run(tmp_path):
        time.sleep(0.001)
    time.sleep(delay_s)
    process.kill()
    process.communicate()
    with tx.Manager(tmp_path) as manager:
        for step in manager.steps():
            tree = manager.restore({"w": jnp.zeros(1000, jnp.int32)}, step, verify="required")
            assert (tree["w"] == step).all()
        for left in read_run(tx.storage.Local(tmp_path)).leftovers:
            manager.save(left.step, TREE, wait=True)
    assert all(name.isdigit() for name in list_run(tmp_path))
