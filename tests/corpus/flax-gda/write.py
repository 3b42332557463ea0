"""Writes checkpoints as `flax.training.checkpoints` does for arrays of several processes.

Run by hand with flax 0.12.8 and jax 0.10.2, in this directory: `python write.py`. The tests only
read what it wrote. All arrays of JAX are treated as if other processes had parts of them.
"""

import glob
import hashlib
import json
import os
import shutil

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
import jax.numpy as jnp
import numpy as np
from flax import config, traverse_util
from flax.training import checkpoints
from jax.experimental.array_serialization import serialization
from jax.sharding import NamedSharding, PartitionSpec

MESH = jax.make_mesh((4,), ("x",))


def shard(values, *axes):
    return jax.device_put(values, NamedSharding(MESH, PartitionSpec(*axes)))


TREES = {
    7: {
        "params": {
            "dense": {"kernel": shard(jnp.arange(24.0).reshape(8, 3), "x"), "bias": jnp.ones(3)},
            "half": shard(jnp.arange(8, dtype=jnp.bfloat16), "x"),
        },
        "count": jnp.array(5),
        "local": np.arange(4),
        "name": "run",
        "step": 7,
    },
    8: shard(jnp.arange(12.0).reshape(4, 3), "x"),
}


def main():
    for path in glob.glob("checkpoint_*"):
        shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
    checkpoints._is_multiprocess_array = lambda x: isinstance(x, jax.Array)
    config.update("flax_use_orbax_checkpointing", False)
    expected = {}
    for step, tree in TREES.items():
        manager = serialization.GlobalAsyncCheckpointManager()
        here = os.getcwd()
        checkpoints.save_checkpoint_multiprocess(here, tree, step, keep=9, gda_manager=manager)
        manager.wait_until_finished()
        flat = traverse_util.flatten_dict(tree) if isinstance(tree, dict) else {(): tree}
        arrays = {".".join(p): np.asarray(v) for p, v in flat.items() if not isinstance(v, str)}
        expected[f"checkpoint_{step}"] = {
            name: hashlib.sha256(v.tobytes()).hexdigest() for name, v in arrays.items()
        }
    with open("expected.json", "w") as file:
        json.dump({"sha256": expected}, file, indent=1, sort_keys=True)


if __name__ == "__main__":
    main()
