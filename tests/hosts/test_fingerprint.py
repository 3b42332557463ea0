"""`fingerprint` of arrays of which each process of a job has only a part."""

import json

SCRIPT = """
import json
import ml_dtypes
import numpy as np
import templax as tx
from jax.sharding import NamedSharding, PartitionSpec as P

devices = np.array(jax.devices())
mesh = jax.sharding.Mesh(devices.reshape(count, -1), ("x", "y"))
r = np.random.default_rng(0)
values = {
    "rows": r.standard_normal((24, 7)).astype(np.float32),
    "columns": r.standard_normal((6, 48)).astype(np.float32),
    "blocks": r.integers(0, 9, (24, 48), np.int8),
    "small": r.standard_normal((24,)).astype(ml_dtypes.bfloat16),
    "copy": r.standard_normal((5, 5)).astype(np.float32),
    "nested": {"scalar": np.float32(3)},
}
specs = {
    "rows": P("x"), "columns": P(None, ("x", "y")), "blocks": P("y", "x"), "small": P(("x", "y")),
    "copy": P(), "nested": {"scalar": P()},
}

def place(value, spec):
    value = np.asarray(value)
    return jax.make_array_from_callback(
        value.shape, NamedSharding(mesh, spec), lambda i: value[i], dtype=value.dtype
    )

tree = jax.tree.map(place, values, specs) | {"host": np.arange(3), "text": "a"}
split = lambda: jax.random.split(jax.random.key(1), 8)
tree["keys"] = jax.jit(split, out_shardings=NamedSharding(mesh, P("x")))()
said = {}
whole = values | {"host": np.arange(3), "text": "a", "keys": split()}
said["equal"] = tx.fingerprint(tree) == tx.fingerprint(whole)
said["saved"] = tx.save(args[0] + "/a", tree).fingerprint == tx.fingerprint(whole)
copies = {"copy": tree["copy"], "nested": tree["nested"]}
if index == 0:  # of copies each process has all: nobody waits
    said["copies"] = tx.fingerprint(copies) == tx.fingerprint({k: values[k] for k in copies})

def attempt(name, tree):
    try:
        said[name] = str(tx.fingerprint(tree))
    except tx.SaveError as error:
        said[name] = str(error)

attempt("another tree", {"rows": tree["rows"]} | ({"more": 1} if index else {}))
attempt("another value", {"rows": tree["rows"], "n": index})
said["again"] = tx.fingerprint(tree) == tx.fingerprint(whole)
print(json.dumps(said))
"""


def test_all_processes_get_the_fingerprint_of_the_whole_tree(run, tmp_path):
    outputs = run(2, SCRIPT, str(tmp_path))
    assert [output.code for output in outputs] == [0, 0], outputs[0].err + outputs[1].err
    first, second = (json.loads(output.out) for output in outputs)
    assert first.pop("copies")
    assert first == second
    assert first["equal"]
    assert first["saved"]
    assert first["again"]
    assert "Expected the tree of process 0, got another on process 1" in first["another tree"]
    assert "got another on process 1 than on process 0 - at `n`" in first["another value"]
