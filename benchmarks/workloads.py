"""Workloads: what is in a checkpoint, and what a restore asks of it.

A workload is a tree of shapes and dtypes; its values follow from a seed.

This module and `restore.libraries` import only what JAX imports anyway: `tiny` measures whole
processes, where an import of the benchmark itself would count against every library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .llama import make_llama, move_to_mesh

if TYPE_CHECKING:
    import jax

PyTree = Any

ORBAX = ("orbax-pytree", "orbax-standard", "orbax-v1")
MAPPED = ("templax-mapped", "templax-touched")
RAW_LIMITS = ("limit-pread", "limit-pread-fresh", "limit-put")
LIMITS = ("limit-pread", "limit-decode", "limit-decode-fresh", "limit-put")
_COMPRESSED = ("templax", *ORBAX, *LIMITS)
_SAFETENSORS = ("templax", *MAPPED, "safetensors", "safetensors-pread", *RAW_LIMITS)
_OWN = (
    *("templax", "templax-mapped", *ORBAX, "orbax-standard-ours"),
    *("safetensors", *RAW_LIMITS),
)


@dataclass(frozen=True)
class Workload:
    """A checkpoint, and what a restore asks of it.

    Attributes:
        name: On the command line and in reports.
        about: One line for reports.
        kind: The kind of file it measures, a key of `files.WRITERS`. A library that can't read this
            kind restores the same tree from a file of its own kind.
        libraries: What runs unless the command line says otherwise. The others are divided by the
            first.
        make_stored: Scale → the tree to save, as `jax.ShapeDtypeStruct`s with shardings.
        make_template: The tree of `make_stored` → the template of the restore.
        devices: Simulated CPU devices in the process that saves and in those that restore.
        partial: The template lacks leaves of the file, so libraries must be told to skip some.
        fresh: Each sample is a whole process, from start to exit.
    """

    name: str
    about: str
    kind: str
    libraries: tuple[str, ...]
    make_stored: Callable[[float], PyTree]
    make_template: Callable[[PyTree], PyTree] = lambda stored: stored
    devices: int = 1
    partial: bool = False
    fresh: bool = False


def make_values(template: PyTree) -> PyTree:
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


def name_leaves(tree: PyTree) -> dict[str, Any]:
    """Leaf name → leaf, of nested dicts or of flat ones whose keys are leaf names already.

    Skips the placeholders (`...`) that a partial restore returns for leaves it was not asked for.
    """
    import jax

    return {
        ".".join(str(key.key) for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if leaf is not ...
    }


def count_bytes(tree: PyTree) -> int:
    """Bytes of all leaves, which may be arrays or `jax.ShapeDtypeStruct`s."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in name_leaves(tree).values())


def _first_device() -> jax.sharding.Sharding:
    import jax

    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def _make_structs(shapes: PyTree, dtype: str) -> PyTree:
    """Leaves on the first device: without a sharding, Orbax would take the one in the file."""
    import jax

    sharding = _first_device()
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def _replace(
    tree: PyTree, *, dtype: str | None = None, sharding: jax.sharding.Sharding | None = None
) -> PyTree:
    import jax

    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, dtype or leaf.dtype, sharding=sharding or leaf.sharding
        ),
        tree,
    )


def _make_matrix(scale: float) -> PyTree:
    return _make_structs({"w": (max(1, round(16_384 * scale)), 16_384)}, "float32")


def _make_transformer(scale: float, dtype: str = "bfloat16") -> PyTree:
    """Like GPT-2: 148 leaves, 1.075 GiB in bfloat16. Width and vocabulary shrink alike."""
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
    return _make_structs(tree, dtype)


def _make_scanned_transformer(scale: float) -> PyTree:
    """The same transformer with its layers stacked, as `jax.lax.scan` takes them."""
    import jax

    tree = _make_transformer(scale)
    layers = [tree.pop(f"layer_{i}") for i in range(12)]
    stacked = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            (len(layers), *leaf.shape), leaf.dtype, sharding=leaf.sharding
        ),
        layers[0],
    )
    return {**tree, "layers": stacked}


def _make_small_leaves(scale: float) -> PyTree:
    blocks = max(1, round(1000 * scale))
    tree = {f"block_{i}": {f"w_{j}": (256,) for j in range(20)} for i in range(blocks)}
    return _make_structs(tree, "float32")


def _make_tiny_model(scale: float) -> PyTree:
    del scale
    layer = {"kernel": (8, 8), "bias": (8,)}
    return _make_structs({f"dense_{i}": layer for i in range(3)}, "float32")


def _make_sharded_rows(scale: float) -> PyTree:
    """8 leaves of 64 MiB at scale 1, each in 8 chunks along axis 0."""
    n = 8 * max(1, round(512 * scale**0.5))
    tree = _make_structs({f"w_{i}": (n, n) for i in range(8)}, "float32")
    return _shard(tree, (8,), ("x", None))


def _shard(tree: PyTree, mesh: tuple[int, ...], spec: tuple[str | None, ...]) -> PyTree:
    import jax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    names = ("x", "y")[: len(mesh)]
    devices = jax.make_mesh(mesh, names, axis_types=(AxisType.Auto,) * len(mesh))
    return _replace(tree, sharding=NamedSharding(devices, PartitionSpec(*spec)))


def _select_one_leaf(tree: PyTree) -> PyTree:
    kernel = tree["layer_5"]["attention"]["query"]["kernel"]
    return {"layer_5": {"attention": {"query": {"kernel": kernel}}}}


def _make_reshard(name: str, about: str, make_template: Callable[[PyTree], PyTree]) -> Workload:
    about = f"8 leaves of 8 chunks along axis 0, {about}"
    stored = _make_sharded_rows
    return Workload(name, about, "orbax", _COMPRESSED, stored, make_template, devices=8)


def _make_llama_move(devices: int, saved: tuple[int, int], wanted: tuple[int, int]) -> Workload:
    """A Llama saved on one mesh and restored on another; each is the sizes of data and fsdp."""
    (d0, f0), (d1, f1) = saved, wanted
    return Workload(
        f"llama-{d0}x{f0}-to-{d1}x{f1}",
        f"a Llama saved on data={d0} x fsdp={f0}, restored on data={d1} x fsdp={f1}",
        "orbax",
        ("templax", "templax-same", *ORBAX, *LIMITS),
        lambda scale: make_llama(scale, data=d0, fsdp=f0),
        lambda tree: move_to_mesh(tree, data=d1, fsdp=f1),
        devices=devices,
    )


WARM_UP = Workload(
    "warm-up", "restored first, so that imports are done", "orbax", (), _make_tiny_model
)

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            "matrix", "one float32 matrix, saved by Orbax", "orbax", _COMPRESSED, _make_matrix
        ),
        Workload(
            "tree", "bfloat16 transformer, saved by Orbax", "orbax", _COMPRESSED, _make_transformer
        ),
        Workload(
            "tree-raw",
            "the same tree, saved by Orbax without compression",
            "orbax-raw",
            ("templax", *MAPPED, *ORBAX, *RAW_LIMITS),
            _make_transformer,
        ),
        Workload(
            "tree-safetensors",
            "the same tree in one safetensors file",
            "safetensors",
            _SAFETENSORS,
            _make_transformer,
        ),
        *(
            Workload(
                f"tree-{kind}",
                f"the same tree in one file of {writer}",
                kind,
                ("templax", "templax-mapped", kind, *RAW_LIMITS),
                _make_transformer,
            )
            for kind, writer in (
                ("msgpack", "Flax"),
                ("npz", "numpy"),
                ("equinox", "Equinox"),
                ("torch", "PyTorch"),
            )
        ),
        Workload(
            "tree-mapped",
            "the same tree with stacked layers, from a safetensors file of transposed layers",
            "layers.safetensors",
            ("templax-view", "templax-plain", "script"),
            _make_scanned_transformer,
        ),
        Workload(
            "small",
            "leaves of 256 float32, saved by Orbax",
            "orbax",
            _COMPRESSED,
            _make_small_leaves,
        ),
        Workload(
            "small-safetensors",
            "the same leaves in one safetensors file",
            "safetensors",
            _SAFETENSORS,
            _make_small_leaves,
        ),
        Workload("tree-own", "the same tree, saved by templax", "templax", _OWN, _make_transformer),
        Workload(
            "tree-own-zstd",
            "the same tree, saved by templax with zstd",
            "templax-zstd",
            ("templax", *ORBAX, "orbax-standard-ours", *LIMITS),
            _make_transformer,
        ),
        Workload(
            "small-own", "the same leaves, saved by templax", "templax", _OWN, _make_small_leaves
        ),
        Workload(
            "tiny",
            "a small model from the start of the process to its end",
            "orbax",
            ("templax", *ORBAX, "floor"),
            _make_tiny_model,
            fresh=True,
        ),
        _make_reshard(
            "reshard-axis1", "to axis 1 of 8 devices", lambda tree: _shard(tree, (8,), (None, "x"))
        ),
        _make_reshard(
            "reshard-4x2",
            "to both axes of a 4x2 mesh",
            lambda tree: _shard(tree, (4, 2), ("x", "y")),
        ),
        _make_reshard(
            "reshard-one", "to one device", lambda tree: _replace(tree, sharding=_first_device())
        ),
        _make_llama_move(8, (4, 2), (1, 8)),
        _make_llama_move(16, (8, 2), (1, 4)),
        _make_llama_move(16, (8, 2), (1, 16)),
        _make_llama_move(16, (8, 2), (2, 8)),
        Workload(
            "one-leaf",
            "one leaf of the transformer's 148",
            "orbax",
            ("templax", *ORBAX, "npz", "limit-pread", "limit-decode"),
            _make_transformer,
            _select_one_leaf,
            partial=True,
        ),
        Workload(
            "cast",
            "a float32 transformer of half the parameters, restored as bfloat16",
            "orbax",
            ("templax", "templax-nocast", *ORBAX, "limit-pread", "limit-decode"),
            lambda scale: _make_transformer(scale / 2, "float32"),
            lambda tree: _replace(tree, dtype="bfloat16"),
        ),
    )
}

OPTIONAL = ("tree-torch",)
"""Workloads that need what the extras don't install. They run if they are named."""
