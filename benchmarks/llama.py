"""A small Llama on meshes like those of Orbax's own benchmarks of resharding and broadcasting.

Their repository has the configurations in `benchmarks/configs/evaluations`: Llama 3.1 of 8 and 70
billion parameters, saved on a mesh of data, fsdp and tensor axes, restored on others. Here are its
proportions and shardings, the embedding dimension over fsdp as in MaxText, on simulated devices.
"""

from __future__ import annotations

from typing import Any

PyTree = Any

_LAYERS = 4
_HEAD = 128


def make_llama(scale: float, *, data: int, fsdp: int) -> PyTree:
    """The tree as `jax.ShapeDtypeStruct`s; 567 MiB of bfloat16 at scale 1.

    Args:
        scale: Of the number of parameters, about.
        data: Number of devices with copies of each parameter.
        fsdp: Number of devices that the embedding dimension is divided among.
    """
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    heads = max(1, round(16 * scale**0.5 / 4)) * 4
    d = heads * _HEAD
    layer = {
        "attention": {
            "query": ((d, heads, _HEAD), 0),
            "key": ((d, heads // 4, _HEAD), 0),
            "value": ((d, heads // 4, _HEAD), 0),
            "out": ((heads, _HEAD, d), 2),
        },
        "mlp": {
            "wi_0": ((d, 7 * d // 2), 0),
            "wi_1": ((d, 7 * d // 2), 0),
            "wo": ((7 * d // 2, d), 1),
        },
        "norm_1": ((d,), 0),
        "norm_2": ((d,), 0),
    }
    tree = {
        "embed": ((16_032, d), 1),
        **{f"layer_{i}": layer for i in range(_LAYERS)},
        "norm": ((d,), 0),
        "logits": ((d, 16_032), 0),
    }
    mesh = _make_mesh(data, fsdp)

    def shard(leaf: tuple[tuple[int, ...], int]) -> jax.ShapeDtypeStruct:
        shape, axis = leaf
        spec = PartitionSpec(*("fsdp" if i == axis else None for i in range(len(shape))))
        return jax.ShapeDtypeStruct(shape, "bfloat16", sharding=NamedSharding(mesh, spec))

    return jax.tree.map(shard, tree, is_leaf=lambda node: isinstance(node, tuple))


def move_to_mesh(tree: PyTree, *, data: int, fsdp: int) -> PyTree:
    """The same tree on a mesh of other sizes."""
    import jax
    from jax.sharding import NamedSharding

    mesh = _make_mesh(data, fsdp)

    def move(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, leaf.sharding.spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(move, tree)


def _make_mesh(data: int, fsdp: int) -> Any:
    """The first devices as a mesh."""
    import jax
    import numpy as np
    from jax.sharding import AxisType, Mesh

    devices = np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp)
    return Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
