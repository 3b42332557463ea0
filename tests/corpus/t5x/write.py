"""Writes a checkpoint as T5X does, and the digests of its values.

T5X itself is not installed from a package index. This calls what its `Checkpointer` calls
(google-research/t5x, `t5x/checkpoints.py`, `_get_spec`, `_write_array` and `save`), with the same
arguments: `tensorstore.open` for each partitioned array, and `flax.serialization.to_bytes` for the
tree of the specs and of what is not partitioned.

Run by hand with flax 0.12.8 and tensorstore 0.1.86, in this directory: `python write.py`. The tests
only read what it wrote.
"""

import hashlib
import json
import os
import shutil

import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from flax import serialization, traverse_util

serialization.register_serialization_state(
    ts.Spec,
    ty_to_state_dict=lambda spec: spec.to_json(),
    ty_from_state_dict=lambda _, state: ts.Spec(state) if isinstance(state, dict) else state,
    override=True,
)

RNG = np.random.default_rng(0)


def make_array(shape, dtype):
    return np.asarray(RNG.standard_normal(shape) * 8).astype(dtype)


PARTITIONED = {
    "target/encoder/layers_0/attention/query/kernel": (make_array((8, 6), "float32"), (4, 3)),
    "target/encoder/layers_0/mlp/wi/kernel": (make_array((6, 10), jnp.bfloat16), (6, 4)),
    "target/encoder/scale": (make_array((5,), "float32"), (5,)),
    "target/zeros": (np.zeros((4, 4), "float32"), (2, 4)),
    "state/param_states/encoder/scale/v": (make_array((5,), "float32"), (3,)),
    "state/param_states/count": (np.int32(7), ()),
}
"""Name → values, and the shape of the chunks that hosts write."""

IN_FILE = {
    "state/step": np.int32(1000),
    "target/decoder/bias": make_array((3,), "float32"),
    "target/decoder/unused": None,
    "state/empty": {},
}
"""What has no axes, which T5X writes into the msgpack file."""


def write_array(directory, name, values, chunks):
    values = np.asarray(values)
    spec = ts.Spec(
        {
            "driver": "zarr",
            "dtype": jnp.dtype(values.dtype).name,
            "kvstore": {"driver": "file", "path": name.replace("/", ".")},
            "metadata": {
                "compressor": {"id": "gzip"},
                "shape": values.shape,
                "chunks": np.array(chunks, int),
            },
        }
    )
    place = spec.to_json()
    place["kvstore"]["path"] = os.path.join(directory, place["kvstore"]["path"])
    ts.open(place, create=True, open=True).result().write(values).result()
    return spec  # whose path is relative to the checkpoint


def main():
    directory = "checkpoint_1000"
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory)
    state = {tuple(name.split("/")): value for name, value in IN_FILE.items()}
    for name, (values, chunks) in PARTITIONED.items():
        state[tuple(name.split("/"))] = write_array(directory, name, values, chunks)
    tree = {"version": 3, "optimizer": traverse_util.unflatten_dict(state)}
    with open(f"{directory}/checkpoint", "wb") as file:
        file.write(serialization.to_bytes(tree))
    arrays = {name: values for name, (values, _) in PARTITIONED.items()}
    arrays |= {name: value for name, value in IN_FILE.items() if isinstance(value, np.generic | np.ndarray)}
    arrays = {f"optimizer.{name.replace('/', '.')}": np.asarray(v) for name, v in arrays.items()}
    arrays["version"] = np.asarray(3)
    with open("expected.json", "w") as file:
        found = {name: hashlib.sha256(v.tobytes()).hexdigest() for name, v in arrays.items()}
        json.dump({"sha256": found}, file, indent=1, sort_keys=True)


if __name__ == "__main__":
    main()
