"""Two processes that save and restore the steps of one run in an object store."""

import json

import pytest

import templax as tx
from stores.server import Bucket
from stores.servers import MissingServerError, Servers

WORK = """
import json
import numpy as np
import templax as tx
from jax.sharding import NamedSharding, PartitionSpec as P
from templax.storage import S3

url, endpoint, key, secret = args
store = S3(endpoint=endpoint, access_key_id=key, secret_access_key=secret, region="us-east-1")
mesh = jax.make_mesh((4,), ("x",))
sharding = NamedSharding(mesh, P("x"))
want = {"w": jax.ShapeDtypeStruct((8, 4), np.float32, sharding=sharding), "step": 0}

def tree(step):
    w = jax.make_array_from_callback(
        (8, 4), sharding, lambda box: np.full((8, 4), step, np.float32)[box]
    )
    return {"w": w, "step": step}

def values(found):
    parts = {float(x) for s in found["w"].addressable_shards for x in np.ravel(s.data)}
    return sorted({*parts, float(found["step"])})

said = []
init = tx.Recipe(lambda: {"w": jax.numpy.zeros((8, 4)), "step": 0})
with tx.Manager(url, keep=tx.Keep(last=2, best=1, metric="loss"), storage=store) as manager:
    said.append(values(manager.restore(want, missing=init)))
    for step in range(1, 5):
        manager.save(step, tree(step), metrics={"loss": [3.0, 1.0, 4.0, 5.0][step - 1]})
    said.append(manager.steps())
    said.append(values(manager.restore(want)))
    said.append(values(manager.restore(want, 2)))
    try:
        manager.save(4, tree(9), wait=True)
    except tx.SaveError as error:
        said.append(type(error).__name__)
    manager.save(4, tree(5), metrics={"loss": 0.5}, overwrite=True, wait=True)
    said.append(values(manager.restore(want, fallback=True)))
    said.append(manager.steps())
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    servers = Servers(tmp_path_factory.mktemp("servers"))
    try:
        yield servers.make_bucket(servers.start("moto"))
    except MissingServerError as error:
        pytest.skip(str(error))
    finally:
        servers.stop()


@pytest.mark.slow
def test_two_processes_save_and_restore_a_run_in_a_store(run, bucket: Bucket):
    config = bucket.server.config
    given = [config[name] for name in ("endpoint", "access_key_id", "secret_access_key")]
    outputs = run(2, WORK, f"{bucket.url}/run", *given)
    said = [json.loads(output.out) for output in outputs if output.code == 0]
    assert len(said) == 2, outputs[0].err + outputs[1].err
    assert (
        said[0]
        == said[1]
        == [
            [0.0],
            [2, 3, 4],
            [4.0],
            [2.0],
            "AlreadyExists",
            [5.0],
            [3, 4],
        ]
    )
    assert {name.split("/")[1] for name in bucket.list()} == {"3", "4"}
    store = tx.storage.S3(
        endpoint=given[0], access_key_id=given[1], secret_access_key=given[2], region="us-east-1"
    )
    assert tx.Manager(f"{bucket.url}/run", storage=store).steps() == [3, 4]
