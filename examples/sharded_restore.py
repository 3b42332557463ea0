"""Restore a checkpoint onto a mesh of 8 devices, whatever devices it was saved on.

The template carries the shardings: `tx.template_of(..., mesh=, specs=)` sets them, and `shardings=`
of `tx.restore` overrides them. Each device gets its part of an array straight from the file; no
process reads what its own devices do not hold.

Run it with `python examples/sharded_restore.py`. It makes 8 devices of the CPU, so that it runs
anywhere; leave out the two lines that do so on a machine with real devices.
"""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import templax as tx

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


def init(key: jax.Array) -> dict[str, jax.Array]:
    return {"embed": jax.random.normal(key, (512, 64)), "bias": jnp.zeros(64)}


def describe(tree: dict[str, jax.Array]) -> None:
    for name, array in tree.items():
        shard = array.addressable_shards[0].data.shape
        devices = len(array.sharding.device_set)
        print(f"  {name}: {array.shape} in shards of {shard} on {devices} device(s)")


with tempfile.TemporaryDirectory() as directory:
    path = Path(directory) / "ckpt"

    params = init(jax.random.key(0))
    tx.save(path, params)
    print("saved:")
    describe(params)

    mesh = jax.make_mesh((4, 2), ("data", "model"))
    specs = {"embed": P("data", "model"), "bias": P("model")}
    template = tx.template_of(init, jax.random.key(0), mesh=mesh, specs=specs)
    restored = tx.restore(path, template)
    print("restored with the shardings of the template:")
    describe(restored)
    print("same values:", jnp.array_equal(restored["embed"], params["embed"]))

    # The same checkpoint and template on other devices: one sharding for the whole tree.
    row = jax.make_mesh((8,), ("data",))
    restored = tx.restore(path, template, shardings=NamedSharding(row, P("data")))
    print("restored with shardings=:")
    describe(restored)

    # A sharding that does not divide an array is reported before any byte is read.
    uneven = jax.make_mesh((5,), ("data",), devices=jax.devices()[:5])
    match = tx.check(path, template, shardings=NamedSharding(uneven, P("data")))
    print(match)
