"""Two processes that share an array and save its steps in one run."""

import json

import jax.numpy as jnp

import templax as tx
from templax._run_locks import WriterLock

TRAIN = """
import json
import numpy as np
import templax as tx
from jax.sharding import NamedSharding, PartitionSpec as P

mesh = jax.make_mesh((4,), ("x",))
sharding = NamedSharding(mesh, P("x"))

def array(step):
    return jax.make_array_from_callback(
        (8, 4), sharding, lambda box: np.full((8, 4), step, np.float32)[box]
    )

said = []
with tx.Manager(args[0], keep=tx.Keep(last=1, best=1, metric="loss")) as manager:
    for step in range(4):
        try:
            manager.save(step, {"w": array(step)}, metrics={"loss": [3.0, 1.0, 4.0, 5.0][step]})
        except tx.SaveError as error:
            said.append(str(error))
            break
if not said:
    want = {"w": jax.ShapeDtypeStruct((8, 4), np.float32, sharding=sharding)}
    got = manager.restore(want, 3)["w"]
    said.append(all(bool((np.asarray(s.data) == 3).all()) for s in got.addressable_shards))
print(json.dumps(said))
"""


def test_all_processes_save_a_step_and_one_of_them_prunes(run, tmp_path):
    first, second = run(2, TRAIN, str(tmp_path / "run"))
    assert first.code == second.code == 0, first.err + second.err
    assert json.loads(first.out) == json.loads(second.out) == [True]
    manager = tx.Manager(tmp_path / "run")
    assert manager.steps() == [1, 3]
    assert manager.restore({"w": jnp.zeros((8, 4))})["w"][5, 2] == 3


def test_a_run_that_another_manager_saves_to_is_refused_on_all_processes(run, tmp_path):
    lock = WriterLock(str(tmp_path))
    lock.acquire()
    for index, output in enumerate(run(2, TRAIN, str(tmp_path))):
        assert output.code == 0, output.err
        (said,) = json.loads(output.out)
        assert "Expected to be the only one that saves to" in said
        assert said.startswith("Process 0 of 2 failed") == (index == 1)
    lock.release()
    assert tx.Manager(tmp_path).steps() == []
