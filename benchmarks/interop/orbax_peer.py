"""Stock Orbax at work: saves trees, or restores them with each of its calls and describes them.

A single file that needs JAX, numpy and any Orbax since 0.6, so that it runs where templax can't:

    python orbax_peer.py save TREES VALUES.npz DIRECTORY
    python orbax_peer.py restore TREES DIRECTORY [DIRECTORY ...]

TREES is a JSON file: name -> node, as described in `trees`. Each answer is printed at once, as one
line of JSON, so that the answers before a crash are not lost.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import logging
import os
import platform
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

try:
    from orbax.checkpoint.experimental import v1
except ImportError:
    v1 = None

PyTree = Any
Node = Mapping[str, Any]
Template = Callable[[], PyTree]
Row = list[Any]
Answer = dict[str, Any]
STEP = 7
METRICS = {"loss": 0.25}
CONTAINERS = ("dict", "list", "tuple", "namedtuple")


def main() -> None:
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    # Answers get a stream of their own: Orbax and its libraries print to standard output.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for answer in _run(*sys.argv[1:]):
        out.write(json.dumps(answer) + "\n")
        out.flush()
    out.close()
    # A normal exit would wait 300 s for the threads that a failed save of Orbax leaves behind.
    os._exit(0)


def _run(mode: str, trees_file: str, *arguments: str) -> Iterator[Answer]:
    packages = {name: metadata.version(name) for name in ("jax", "tensorstore", "numpy")}
    packages["Python"] = platform.python_version()
    yield {"orbax": ocp.__version__, "devices": jax.device_count(), "packages": packages}
    with open(trees_file, encoding="utf-8") as file:
        trees = json.load(file)
    if mode == "save":
        values, directory = np.load(arguments[0]), os.path.abspath(arguments[1])
        for name, node in trees.items():
            for layout in SAVES:
                path = os.path.join(directory, name, layout)
                answer = try_call(_save, layout, path, node, values)
                yield {"tree": name, "layout": layout, **answer}
    else:
        for directory in arguments:
            for name, node in trees.items():
                path = os.path.abspath(os.path.join(directory, name))
                for call, answer in restore_layouts(path, node):
                    yield {"directory": directory, "tree": name, "call": call, **answer}


def _save(layout: str, path: str, node: Node, values: Mapping[str, np.ndarray]) -> None:
    SAVES[layout](path, build_tree(node, lambda leaf: make_leaf(leaf, values)))


def try_call(call: Callable[..., Any], *arguments: Any) -> Answer:
    """`ok` with what the call returned, or its `error`, and `where` in Orbax it was raised."""
    try:
        return {"ok": call(*arguments)}
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        frames = traceback.extract_tb(error.__traceback__)
        inside = [frame for frame in frames if "/orbax/" in frame.filename.replace(os.sep, "/")]
        where = ""
        if inside:
            last = inside[-1]
            where = last.filename.replace(os.sep, "/").rsplit("site-packages/", 1)[-1]
            where = f"{where}:{last.lineno} {last.name}"
        text = " ".join(str(error).split())
        return {"error": type(error).__name__ + (": " + text[:400] if text else ""), "where": where}


def build_tree(node: Node, make_leaf: Callable[[Node], Any]) -> PyTree:
    """The pytree that a node describes; `make_leaf` makes its arrays and Python values."""
    kind = node["kind"]
    if kind == "dict":
        keys = [int(key) if node.get("ints") else key for key, _ in node["items"]]
        return dict(
            zip(keys, [build_tree(child, make_leaf) for _, child in node["items"]], strict=True)
        )
    if kind in CONTAINERS:
        items = [build_tree(child, make_leaf) for _, child in node["items"]]
        if kind == "namedtuple":
            return collections.namedtuple("State", [key for key, _ in node["items"]])(*items)
        return items if kind == "list" else tuple(items)
    if kind == "none":
        return None
    return make_leaf(node)


def make_leaf(node: Node, values: Mapping[str, np.ndarray]) -> Any:
    """A leaf with its value, on the devices that it was on."""
    kind = node["kind"]
    if kind == "python":
        return make_python_value(node)
    data = values[node["values"]]
    if kind == "key":
        return jax.random.wrap_key_data(jax.numpy.asarray(data), impl=node["impl"])
    array = data.view(to_dtype(node["dtype"])).reshape(node["shape"])
    if kind == "numpy":
        return array[()] if node.get("scalar") else array
    return jax.device_put(array, make_sharding(node.get("mesh")))


def make_template_leaf(node: Node) -> Any:
    """An abstract leaf: on one device, or spread over all of them."""
    kind = node["kind"]
    if kind == "python":
        return make_python_value(node)
    shape = tuple(node["shape"])
    if kind == "key":
        dtype = jax.random.key(0, impl=node["impl"]).dtype
        return jax.ShapeDtypeStruct(shape, dtype, sharding=spread_over_devices(shape))
    dtype = to_dtype(node["dtype"])
    if kind == "numpy" and not node.get("scalar"):  # Orbax accepts no numpy scalars
        return np.zeros(shape, dtype)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=spread_over_devices(shape))


def make_python_value(node: Node) -> Any:
    read = {"int": int, "float": float.fromhex, "complex": complex, "str": str}
    if node["type"] == "bool":
        return node["value"] == "True"
    return read[node["type"]](node["value"])


def to_dtype(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))


def make_sharding(mesh: Sequence[Any] | None) -> jax.sharding.Sharding:
    """A sharding, given as mesh shape, axis names and spec; the first device if None."""
    if mesh is None:
        return SingleDeviceSharding(jax.devices()[0])
    shape, names, spec = mesh
    devices = np.asarray(jax.devices()[: int(np.prod(shape))]).reshape(shape)
    spec = [tuple(entry) if isinstance(entry, list) else entry for entry in spec]
    return NamedSharding(Mesh(devices, names), PartitionSpec(*spec))


def spread_over_devices(shape: tuple[int, ...]) -> jax.sharding.Sharding:
    """Splits the first dimension that the devices divide; replicates if there is none."""
    devices = jax.devices()
    if len(devices) == 1:
        return SingleDeviceSharding(devices[0])
    mesh = Mesh(np.asarray(devices), ("x",))
    for i, size in enumerate(shape):
        if size and size % len(devices) == 0:
            return NamedSharding(mesh, PartitionSpec(*[None] * i, "x"))
    return NamedSharding(mesh, PartitionSpec())


def restore_layouts(directory: str, node: Node) -> Iterator[tuple[str, Answer]]:
    """The name and the answer of each call, for each layout that was saved of one tree."""
    for layout, calls in CALLS.items():
        path = os.path.join(directory, layout)
        # A manager creates its directory even if the save fails.
        if os.path.isdir(path) and (layout != "manager" or str(STEP) in os.listdir(path)):
            for call, restore in calls.items():
                yield call, try_call(_restore, node, restore, path)
            if layout == "item":
                yield "metadata", try_call(describe_metadata, node, path)


def _restore(node: Node, restore: Callable[[str, Template], PyTree], path: str) -> list[Row]:
    return describe_tree(node, restore(path, lambda: make_template(node)))


def make_template(node: Node) -> PyTree:
    """The tree, abstract: on one device, or spread over all of them."""
    return build_tree(node, make_template_leaf)


def _make_item_args(template: Template) -> dict[str, Any]:
    item = template()
    return {"item": item, "restore_args": ocp.checkpoint_utils.construct_restore_args(item)}


def restore_item(path: str, template: Template) -> PyTree:
    return ocp.PyTreeCheckpointer().restore(path, **_make_item_args(template))


def restore_step(path: str, args: Any) -> PyTree:
    """Restores the only step; also checks which steps and metrics the manager finds."""
    manager = ocp.CheckpointManager(path, options=make_manager_options())
    with contextlib.closing(manager):
        found = [manager.latest_step(), manager.best_step(), list(manager.all_steps())]
        if found != [STEP, STEP, [STEP]]:
            raise LookupError(f"latest, best and all steps are {found}")
        metrics = manager.metrics(STEP)
        if metrics != METRICS:
            raise LookupError(f"metrics are {metrics}")
        return manager.restore(STEP) if args is None else manager.restore(STEP, args=args)


def save_next_step(path: str, template: Template) -> PyTree:
    """Saves another step into a copy of the directory, which deletes the first, and restores it."""
    copy = f"{path}-continued-{ocp.__version__}-{jax.device_count()}"
    shutil.copytree(path, copy)
    manager = ocp.CheckpointManager(copy, options=ocp.CheckpointManagerOptions(max_to_keep=1))
    with contextlib.closing(manager):
        args = ocp.args.PyTreeRestore(**_make_item_args(template))
        manager.save(STEP + 1, args=ocp.args.PyTreeSave(manager.restore(STEP, args=args)))
        manager.wait_until_finished()
        if list(manager.all_steps()) != [STEP + 1] or str(STEP) in os.listdir(copy):
            raise LookupError(f"all steps are {list(manager.all_steps())}")
        return manager.restore(STEP + 1, args=args)


def make_manager_options() -> Any:
    return ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics["loss"], best_mode="min")


CALLS = {
    "item": {
        "pytree": lambda path, _: ocp.PyTreeCheckpointer().restore(path),
        "pytree+item": restore_item,
        "standard": lambda path, _: ocp.StandardCheckpointer().restore(path),
        "standard+template": lambda path, t: ocp.StandardCheckpointer().restore(path, t()),
    },
    "manager": {
        "manager": lambda path, _: restore_step(path, ocp.args.PyTreeRestore()),
        "manager+template": lambda path, t: restore_step(path, ocp.args.StandardRestore(t())),
        "manager, saving on": save_next_step,
    },
    "v1": {},
}
"""Layout -> call -> a function of a path and of a function that makes the template."""

if v1 is not None:  # older managers can't restore without args what they didn't save themselves
    CALLS["manager"]["manager, no args"] = lambda path, _: restore_step(path, None)
if hasattr(v1, "load"):
    CALLS["item"]["v1"] = lambda path, _: v1.load(path, checkpointable_name=None)
    CALLS["item"]["v1+template"] = lambda path, t: v1.load(path, t(), checkpointable_name=None)
elif v1 is not None:  # restores an item only from a directory of items
    CALLS["v1"]["v1"] = lambda path, _: v1.load_pytree(path)
    CALLS["v1"]["v1+template"] = lambda path, t: v1.load_pytree(path, t())


def describe_tree(node: Node, value: PyTree, path: str = "") -> list[Row]:
    """A row per path of the tree: [path, type, dtype, shape, digest, sharding]."""
    kind = node["kind"]
    if kind in CONTAINERS:
        found = get_children(value) if node["items"] or value is not None else {}
        expected = [key for key, _ in node["items"]]
        if sorted(found) != sorted(expected):
            raise LookupError(f"at `{path}`: expected {expected}, got {list(found)}")
        rows = [[path, type(value).__name__, "", [], "", ""]]
        for key, child in node["items"]:
            rows += describe_tree(child, found[key], path + "/" + key)
        return rows
    if value is None or is_python_value(value):
        return [[path, type(value).__name__, "", [], format_value(value), ""]]
    sharding, dtype = "", str(getattr(value, "dtype", ""))
    if isinstance(value, jax.Array):
        sharding = format_sharding(value.sharding)
        if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            data = np.asarray(jax.random.key_data(value))
            return [[path, "key", dtype, list(value.shape), compute_digest(data), sharding]]
    kind = "jax" if isinstance(value, jax.Array) else type(value).__name__
    array = np.asarray(value)
    return [[path, kind, array.dtype.name, list(array.shape), compute_digest(array), sharding]]


def is_python_value(value: Any) -> bool:
    return isinstance(value, (str, int, float, complex)) and not isinstance(value, np.generic)


def format_value(value: Any) -> str:
    """A Python value as text from which it can be read back."""
    return value.hex() if isinstance(value, float) else str(value)


def get_children(value: Any) -> Mapping[str, Any]:
    """Key -> child of a container of any type."""
    if isinstance(value, dict):
        return {str(key): child for key, child in value.items()}
    if hasattr(value, "_asdict"):
        return value._asdict()
    if isinstance(value, (list, tuple)):
        return {str(i): child for i, child in enumerate(value)}
    raise LookupError(f"expected a container, got {type(value).__name__}")


def compute_digest(array: np.ndarray) -> str:
    # Integers of 2 and 4 bits leave the other bits of their byte undefined.
    if array.dtype.name in ("int2", "int4"):
        array = array.astype(np.int8)
    elif array.dtype.name in ("uint2", "uint4"):
        array = array.astype(np.uint8)
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def format_sharding(sharding: jax.sharding.Sharding) -> str:
    if isinstance(sharding, NamedSharding):
        return f"{tuple(sharding.spec)} over {dict(sharding.mesh.shape)}"
    return f"{len(sharding.device_set)} devices"


def describe_metadata(node: Node, path: str) -> list[Row]:
    found = ocp.StandardCheckpointer().metadata(path)
    found = getattr(found, "item_metadata", found)
    return describe_metadata_tree(node, getattr(found, "tree", found), "")


def describe_metadata_tree(node: Node, value: Any, path: str) -> list[Row]:
    if node["kind"] in CONTAINERS:
        found = get_children(value) if node["items"] or value is not None else {}
        return [
            row
            for key, child in node["items"]
            for row in describe_metadata_tree(child, found[key], path + "/" + key)
        ]
    shape = getattr(value, "shape", None)
    dtype = getattr(value, "dtype", None)
    name = "" if dtype is None else getattr(dtype, "name", None) or str(dtype)
    return [[path, type(value).__name__, name, list(shape or ()), "", ""]]


def save_pytree(path: str, tree: PyTree, **options: Any) -> None:
    ocp.PyTreeCheckpointer(**options).save(path, tree)


def save_manager(path: str, tree: PyTree) -> None:
    manager = ocp.CheckpointManager(path, options=make_manager_options())
    with contextlib.closing(manager):
        manager.save(STEP, args=ocp.args.PyTreeSave(tree), metrics=METRICS)
        manager.wait_until_finished()


def save_standard(path: str, tree: PyTree) -> None:
    checkpointer = ocp.StandardCheckpointer()
    with contextlib.closing(checkpointer):
        checkpointer.save(path, tree)
        getattr(checkpointer, "wait_until_finished", lambda: None)()


SAVES = {
    "item": save_pytree,
    "standard": save_standard,
    "files": lambda path, tree: save_pytree(path, tree, use_ocdbt=False),
    "zarr3": lambda path, tree: save_pytree(path, tree, use_zarr3=True),
    "manager": save_manager,
}
if v1 is not None:
    SAVES["v1"] = lambda path, tree: v1.save_pytree(path, tree)


if __name__ == "__main__":
    main()
