"""What is restored. A workload is a tree of shapes and dtypes; its values follow from a seed.

This module and `libraries` import only what JAX imports anyway: `tiny` measures processes from
their start, and what the benchmark itself imports there would count for every library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PyTree = Any

ORBAX = ("orbax-pytree", "orbax-standard", "orbax-v1")
MAPPED = ("templax-mapped", "templax-touched")
LIMITS = ("limit-pread", "limit-decode", "limit-put")
_COMPRESSED = ("templax", *ORBAX, *LIMITS)
_OWN = (
    *("templax", "templax-mapped", *ORBAX, "orbax-standard-ours"),
    *("safetensors", "limit-pread", "limit-put"),
)


@dataclass(frozen=True)
class Workload:
    """A checkpoint and what is asked of it.

    Attributes:
        name: On the command line and in reports.
        about: One line.
        kind: The file it is about, a key of `files.WRITERS`. A library that can't read this kind
            reads a file of its own kind with the same tree.
        libraries: What runs unless the command line says otherwise; the first is the divisor.
        stored: Scale → the tree that is saved, as `jax.ShapeDtypeStruct`s with shardings.
        wanted: `stored`'s tree → the template of the restore.
        devices: Simulated CPU devices, of the process that saves and of those that restore.
        partial: `wanted` lacks leaves of the file, and libraries must be told so.
        fresh: Each sample is a process of its own, from its start to its end.
    """

    name: str
    about: str
    kind: str
    libraries: tuple[str, ...]
    stored: Callable[[float], PyTree]
    wanted: Callable[[PyTree], PyTree] = lambda stored: stored
    devices: int = 1
    partial: bool = False
    fresh: bool = False


def values(template: PyTree) -> PyTree:
    """Normal weights, the same in every process; as incompressible as trained ones."""
    import jax
    import numpy as np

    leaves, treedef = jax.tree.flatten(template)
    rngs = [np.random.default_rng([0, i]) for i in range(len(leaves))]
    arrays = [
        (np.float32(0.02) * rng.standard_normal(leaf.shape, np.float32)).astype(leaf.dtype)
        for rng, leaf in zip(rngs, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, jax.device_put(arrays, [leaf.sharding for leaf in leaves]))


def named(tree: PyTree) -> dict[str, Any]:
    """Leaf name → leaf, for nested dicts and for flat ones whose keys are such names already.

    What a partial restore left out (`...`) is left out here, too.
    """
    import jax

    return {
        ".".join(str(key.key) for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if leaf is not ...
    }


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


def _matrix(scale: float) -> PyTree:
    return _abstract({"w": (max(1, round(16_384 * scale)), 16_384)}, "float32")


def _transformer(scale: float, dtype: str = "bfloat16") -> PyTree:
    """Like GPT-2, 148 leaves; 1.075 GiB in bfloat16. Width and vocabulary shrink alike."""
    layers, heads, width = 12, 14, max(1, round(128 * scale**0.5))
    d = heads * width
    norm = {"scale": (d,), "bias": (d,)}
    layer = {
        "ln_1": norm,
        "attention": {
            "query": {"kernel": (d, heads, width)},
            "key": {"kernel": (d, heads, width)},
            "value": {"kernel": (d, heads, width)},
            "out": {"kernel": (heads, width, d)},
        },
        "ln_2": norm,
        "mlp": {
            "up": {"kernel": (d, 4 * d), "bias": (4 * d,)},
            "down": {"kernel": (4 * d, d), "bias": (d,)},
        },
    }
    tree = {
        "embed": {
            "tokens": (max(1, round(63_104 * scale**0.5)), d),
            "positions": (max(1, round(1024 * scale**0.5)), d),
        },
        **{f"layer_{i}": layer for i in range(layers)},
        "ln_f": norm,
    }
    return _abstract(tree, dtype)


def _small(scale: float) -> PyTree:
    blocks = max(1, round(1000 * scale))
    tree = {f"block_{i}": {f"w_{j}": (256,) for j in range(20)} for i in range(blocks)}
    return _abstract(tree, "float32")


def _tiny(scale: float) -> PyTree:
    del scale
    layer = {"kernel": (8, 8), "bias": (8,)}
    return _abstract({f"dense_{i}": layer for i in range(3)}, "float32")


def _rows(scale: float) -> PyTree:
    """8 leaves, each in 8 chunks along axis 0, of 64 MiB at scale 1."""
    n = 8 * max(1, round(512 * scale**0.5))
    return _sharded(_abstract({f"w_{i}": (n, n) for i in range(8)}, "float32"), (8,), ("x", None))


def _sharded(tree: PyTree, mesh: tuple[int, ...], spec: tuple[str | None, ...]) -> PyTree:
    import jax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    names = ("x", "y")[: len(mesh)]
    devices = jax.make_mesh(mesh, names, axis_types=(AxisType.Auto,) * len(mesh))
    sharding = NamedSharding(devices, PartitionSpec(*spec))
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def _on_one(tree: PyTree) -> PyTree:
    return _abstract({name: leaf.shape for name, leaf in tree.items()}, "float32")


def _one_leaf(tree: PyTree) -> PyTree:
    kernel = tree["layer_5"]["attention"]["query"]["kernel"]
    return {"layer_5": {"attention": {"query": {"kernel": kernel}}}}


def _as_bfloat16(tree: PyTree) -> PyTree:
    import jax

    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, "bfloat16", sharding=leaf.sharding), tree
    )


def _reshard(name: str, about: str, wanted: Callable[[PyTree], PyTree]) -> Workload:
    about = f"8 leaves of 8 chunks along axis 0, {about}"
    return Workload(name, about, "orbax", _COMPRESSED, _rows, wanted, devices=8)


WARM_UP = Workload("warm-up", "restored first, so that imports are over", "orbax", (), _tiny)

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("matrix", "one float32 matrix, saved by Orbax", "orbax", _COMPRESSED, _matrix),
        Workload(
            "tree", "bfloat16 transformer, saved by Orbax", "orbax", _COMPRESSED, _transformer
        ),
        Workload(
            "tree-raw",
            "the same tree, saved by Orbax without compression",
            "orbax-raw",
            ("templax", *MAPPED, *ORBAX, "limit-pread", "limit-put"),
            _transformer,
        ),
        Workload(
            "tree-safetensors",
            "the same tree in one safetensors file",
            "safetensors",
            ("templax", *MAPPED, "safetensors", "limit-pread", "limit-put"),
            _transformer,
        ),
        Workload("small", "leaves of 256 float32, saved by Orbax", "orbax", _COMPRESSED, _small),
        Workload(
            "small-safetensors",
            "the same leaves in one safetensors file",
            "safetensors",
            ("templax", *MAPPED, "safetensors", "limit-pread", "limit-put"),
            _small,
        ),
        Workload("tree-own", "the same tree, saved by templax", "templax", _OWN, _transformer),
        Workload(
            "tree-own-zstd",
            "the same tree, saved by templax with zstd",
            "templax-zstd",
            ("templax", *ORBAX, "orbax-standard-ours", *LIMITS),
            _transformer,
        ),
        Workload("small-own", "the same leaves, saved by templax", "templax", _OWN, _small),
        Workload(
            "tiny",
            "a small model from the start of the process to its end",
            "orbax",
            ("templax", *ORBAX, "floor"),
            _tiny,
            fresh=True,
        ),
        _reshard(
            "reshard-axis1", "to axis 1 of 8 devices", lambda t: _sharded(t, (8,), (None, "x"))
        ),
        _reshard(
            "reshard-4x2", "to both axes of a 4x2 mesh", lambda t: _sharded(t, (4, 2), ("x", "y"))
        ),
        _reshard("reshard-one", "to one device", _on_one),
        Workload(
            "one-leaf",
            "one leaf of the transformer's 148",
            "orbax",
            ("templax", *ORBAX, "npz", "limit-pread", "limit-decode"),
            _transformer,
            _one_leaf,
            partial=True,
        ),
        Workload(
            "cast",
            "a float32 transformer of half the parameters, restored as bfloat16",
            "orbax",
            ("templax", "templax-nocast", *ORBAX, "limit-pread", "limit-decode"),
            lambda scale: _transformer(scale / 2, "float32"),
            _as_bfloat16,
        ),
    )
}
