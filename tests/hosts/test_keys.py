"""Typed PRNG keys on devices of several processes."""

import json

SCRIPT = """
import json
import numpy as np
import templax as tx
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

devices = np.array(jax.devices())
mesh = Mesh(devices.reshape(count, 2), ("a", "b"))
keys = {
    "one": jax.random.key(3),
    "split": jax.random.split(jax.random.key(4), 8),
    "table": jax.random.split(jax.random.key(5, impl="rbg"), (4, 8)),
    "back": jax.random.split(jax.random.key(6), 4),
}
specs = {"one": P(), "split": P(("a", "b")), "table": P("b", "a"), "back": P("a")}
shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
shardings["back"] = NamedSharding(Mesh(devices[::-1].reshape(count, 2), ("a", "b")), P("a"))
template = {
    name: jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=shardings[name])
    for name, key in keys.items()
}

def holds(got, want):
    data = np.asarray(jax.random.key_data(want))
    shards = got.addressable_shards
    parts = [(np.asarray(jax.random.key_data(s.data)), data[s.index]) for s in shards]
    return len(parts) > 0 and all(np.array_equal(a, b) for a, b in parts)

def compare(tree):
    return all(
        holds(tree[name], keys[name]) and tree[name].sharding == shardings[name] for name in keys
    )

path = args[0]
if index == 0:
    tx.save(path + "/alone", keys, alone=True)
saved = {
    name: jax.jit(lambda: key, out_shardings=shardings[name])() for name, key in keys.items()
}
tx.save(path + "/together", saved)
said = [
    tx.check(path + "/alone", template).ok,
    compare(tx.restore(path + "/alone", template)),
    compare(tx.restore(path + "/together", saved)),
    compare(tx.Manager(path + "/new").restore(template, missing=tx.Recipe(lambda: keys))),
    tx.fingerprint(saved) == tx.fingerprint(keys),
]
print(json.dumps(said))
"""


def test_keys_are_saved_from_and_restored_onto_several_processes(run, tmp_path):
    for output in run(2, SCRIPT, str(tmp_path)):
        assert output.code == 0, output.err
        assert json.loads(output.out) == [True] * 5
