"""What is restored. A workload is a tree of shapes and dtypes; its values follow from a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PyTree = Any


@dataclass(frozen=True)
class Workload:
    """A checkpoint and what is asked of it.

    Attributes:
        name: On the command line and in reports.
        about: One line.
        template: The tree as `jax.ShapeDtypeStruct`s, each with a sharding.
        save: Writes `values(template())` to a path that does not exist yet.
    """

    name: str
    about: str
    template: Callable[[], PyTree]
    save: Callable[[Path, PyTree], None]


def values(template: PyTree) -> PyTree:
    """Normal weights, the same in every process; as incompressible as trained ones."""
    import jax
    import numpy as np

    leaves, treedef = jax.tree.flatten(template)
    rngs = [np.random.default_rng([0, i]) for i in range(len(leaves))]
    arrays = [
        (0.02 * rng.standard_normal(leaf.shape, np.float32)).astype(leaf.dtype)
        for rng, leaf in zip(rngs, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, jax.device_put(arrays))


def _save_orbax(path: Path, tree: PyTree) -> None:
    """All defaults: OCDBT, zarr2, zstd, one chunk per leaf."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


def _abstract(shapes: PyTree, dtype: str) -> PyTree:
    """Every leaf on the first device: Orbax wants a sharding, else it takes the file's."""
    import jax
    from jax.sharding import SingleDeviceSharding

    here = SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, dtype, sharding=here),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def _transformer() -> PyTree:
    """GPT-2 small with a vocabulary that makes it 256 MiB in bfloat16."""
    layers, d, hidden, heads = 12, 768, 3072, 12
    norm = {"scale": (d,), "bias": (d,)}
    layer = {
        "ln_1": norm,
        "attention": {
            "query": {"kernel": (d, heads, d // heads)},
            "key": {"kernel": (d, heads, d // heads)},
            "value": {"kernel": (d, heads, d // heads)},
            "out": {"kernel": (heads, d // heads, d)},
        },
        "ln_2": norm,
        "mlp": {
            "up": {"kernel": (d, hidden), "bias": (hidden,)},
            "down": {"kernel": (hidden, d), "bias": (d,)},
        },
    }
    tree = {
        "embed": {"tokens": (63_104, d), "positions": (1024, d)},
        **{f"layer_{i}": layer for i in range(layers)},
        "ln_f": norm,
    }
    return _abstract(tree, "bfloat16")


def _small() -> PyTree:
    tree = {f"block_{i}": {f"w_{j}": (256,) for j in range(20)} for i in range(100)}
    return _abstract(tree, "float32")


def _tiny() -> PyTree:
    return _abstract({"w": (8, 8)}, "float32")


WARM_UP = Workload("tiny", "restored first, so that imports are over", _tiny, _save_orbax)

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("tree", "transformer, bfloat16, saved by Orbax", _transformer, _save_orbax),
        Workload("small", "2,000 leaves of 256 float32, saved by Orbax", _small, _save_orbax),
    )
}
