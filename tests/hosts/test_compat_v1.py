"""Code for Orbax's v1 API that two processes of a job run, with one changed import."""

import json

import numpy as np
import orbax.checkpoint as orbax

PRELUDE = """
import json, os
import numpy as np
import templax as tx
from templax.compat.orbax import v1 as ocp
from jax.sharding import NamedSharding, PartitionSpec as P

mesh = jax.make_mesh((4,), ("x",))
sharding = NamedSharding(mesh, P("x"))
path = args[0] + "/ckpt"
said = []

def array(value):
    return jax.make_array_from_callback(
        (8, 4), sharding, lambda box: np.full((8, 4), value, np.float32)[box]
    )

def is_full(got, value):
    return all(bool((np.asarray(s.data) == value).all()) for s in got.addressable_shards)
"""

HANDLER = """
class Position:
    def __init__(self, n):
        self.n = n

    async def save(self, directory):
        async def write():
            if self.n == "bad":
                raise RuntimeError("no ink")
            (await directory.await_creation() / str(index)).write_text(str(self.n))
        return write()

    async def load(self, directory):
        async def read():
            self.n = int((directory / str(index)).read_text())
        return read()

ocp.save_checkpointables(path, {"state": {"w": array(3)}, "data": Position(10 + index)})
wanted = {
    "state": {"w": jax.ShapeDtypeStruct((8, 4), np.float32, sharding=sharding)},
    "data": Position(0),
}
got = ocp.load_checkpointables(path, wanted)
said.append([is_full(got["state"]["w"], 3), got["data"].n - index])
said.append(is_full(ocp.load(path)["w"], 3))
try:
    n = "bad" if index == 1 else 0
    ocp.save_checkpointables(path, {"data": Position(n)}, overwrite=True)
except Exception as error:
    said.append("no ink" in str(error))
said.append(sorted(os.listdir(path + "/data")))
said.append(ocp.delete(path, checkpointable_name="data"))
said.append(list(ocp.load_checkpointables(path, {"state": wanted["state"]})))
said.append([ocp.delete(path), ocp.delete(path, missing_ok=True), os.listdir(args[0])])
print(json.dumps(said))
"""

PARTS = """
ocp.partial.save(path, {"w": array(3)}, custom_metadata={"a": 1})
ocp.partial.save_async(path, {"v": array(4), "n": 5}).result()
try:
    ocp.partial.save(path, {"n": 6})
except tx.SaveError as error:
    said.append("REPLACEMENT" in str(error))
ocp.partial.finalize(path)
got = ocp.load(path)
said.append([is_full(got["w"], 3), is_full(got["v"], 4), got["n"], os.listdir(args[0])])
said.append(got["w"].sharding.spec == P("x"))
try:
    ocp.partial.finalize(path)
except FileExistsError:
    said.append("exists")
print(json.dumps(said))
"""


def test_handlers_are_called_on_all_processes(run, tmp_path):
    """Each writes and reads its own file; one that fails fails the save for both."""
    first, second = run(2, PRELUDE + HANDLER, str(tmp_path))
    assert first.code == second.code == 0, first.err + second.err
    said = json.loads(first.out)
    assert said == json.loads(second.out)
    assert said[:3] == [[True, 10], True, True]
    assert {"0", "1"} <= set(said[3])
    assert said[4:] == [True, ["state"], [True, False, []]]


def test_parts_of_several_processes(run, tmp_path):
    """Both save parts of arrays that lie on both; the checkpoint has all of them."""
    first, second = run(2, PRELUDE + PARTS, str(tmp_path))
    assert first.code == second.code == 0, first.err + second.err
    assert json.loads(first.out) == json.loads(second.out)
    assert json.loads(first.out) == [True, [True, True, 5, ["ckpt"]], True, "exists"]
    target = {"w": np.zeros((8, 4), np.float32), "v": np.zeros((8, 4), np.float32), "n": 0}
    restored = orbax.v1.load(tmp_path / "ckpt", target)
    assert (restored["w"] == 3).all()
    assert (restored["v"] == 4).all()
